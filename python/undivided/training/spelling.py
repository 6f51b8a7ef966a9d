"""An embedding that reads a word by its letters, besides knowing it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..tasks.spelling import LETTERS, SPELLING
from ..tasks.vocabulary import PAD, UNKNOWN

LETTER_WIDTH, LETTERS_AT_ONCE = 32, 5
FORGOTTEN = 0.2


class WordEmbedding(nn.Module):
    """src (batch, seqlen, 1 + SPELLING) -> (batch, seqlen, d_model): a vector of the word plus one of its letters.

    The second is a convolution over the letters and its maximum (Kim et al. 2016). In training every fifth word is
    taken for an unknown one, so that the letters learn to stand for it.
    """

    def __init__(self, vocab: int, d_model: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, d_model, padding_idx=PAD)
        self.letters = nn.Embedding(LETTERS, LETTER_WIDTH, padding_idx=PAD)
        self.convolution = nn.Conv1d(LETTER_WIDTH, d_model, LETTERS_AT_ONCE, padding=LETTERS_AT_ONCE // 2)
        # A word vector starts small: what is not seen often is then known by its letters.
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.zeros_(self.words.weight[PAD].detach())

    def check(self, name: str, src: Tensor) -> Tensor:
        """Raises: TypeError or ValueError for what is no batch of spelled words."""
        if src.dtype != torch.int64:
            raise TypeError(f"{name} has dtype {src.dtype}, expected torch.int64")
        if src.dim() != 3 or src.shape[1] == 0 or src.shape[2] != 1 + SPELLING:
            raise ValueError(f"{name} has shape {tuple(src.shape)}, expected (batch, seqlen, {1 + SPELLING})")
        return src

    def forward(self, src: Tensor) -> Tensor:
        words, letters = src[..., 0], src[..., 1:]
        if self.training:
            forgotten = torch.rand(words.shape, device=words.device) < FORGOTTEN
            words = words.masked_fill(forgotten & (words != PAD), UNKNOWN)
        x = self.letters(letters.flatten(0, 1)).transpose(1, 2)  # (batch * seqlen, LETTER_WIDTH, SPELLING)
        spelled = self.convolution(x).relu().amax(-1)  # (batch * seqlen, d_model)
        return self.words(words) + spelled.view(*words.shape, -1)
