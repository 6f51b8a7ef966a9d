"""Whisper (Radford et al. 2023): from a spectrogram to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...nn import Fixed, Learned, Positions
from .bart import block_names
from .family import Family
from .positions import reaching_sinusoidal
from .weights import Names


class Convolutions(nn.Module):
    """A spectrogram (batch, bins, frames) as vectors (batch, (frames + 1) // 2, d_model)."""

    mixes_neighbours = True

    def __init__(self, bins: int, d_model: int) -> None:
        super().__init__()
        self.bins = bins
        self.first = nn.Conv1d(bins, d_model, kernel_size=3, padding=1)
        self.second = nn.Conv1d(d_model, d_model, kernel_size=3, stride=2, padding=1)

    def check(self, name: str, x: Tensor) -> Tensor:
        """Raises: TypeError or ValueError for what is no batch of spectrograms."""
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}, expected a floating-point one")
        if x.dim() != 3 or x.shape[1] != self.bins or x.shape[2] == 0:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected (batch, {self.bins}, frames)")
        return x

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.second(F.gelu(self.first(x)))).transpose(1, 2)


@dataclass(frozen=True)
class Whisper(Family):
    """Norm first, convolutions before the encoder, fixed positions there and learned ones in the decoder.

    `src_vocab` is the number of bins of the spectrogram; `longest_src` (half the frames) and `longest_tgt` are the
    numbers of positions.
    """

    norm: str = "pre-layer"
    activation: str = "gelu"
    positions: str = "learned"
    one_embedding: bool = False
    longest_src: int = 1500
    longest_tgt: int = 448

    MODEL: ClassVar[str] = "WhisperForConditionalGeneration"
    FIELDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "src_vocab": ("num_mel_bins",),
        "tgt_vocab": ("vocab_size",),
        "d_model": ("d_model",),
        "encoder_layers": ("encoder_layers",),
        "decoder_layers": ("decoder_layers",),
        "nheads": ("encoder_attention_heads", "decoder_attention_heads"),
        "d_ff": ("encoder_ffn_dim", "decoder_ffn_dim"),
        "dropout": ("dropout",),
        "activation": ("activation_function",),
        "longest_src": ("max_source_positions",),
        "longest_tgt": ("max_target_positions",),
    }
    EMBEDDINGS: ClassVar[tuple[str | None, str]] = (None, "model.decoder.embed_tokens.weight")

    def make_embedding(self, encoder: bool) -> Any:
        return Convolutions(self.src_vocab, self.d_model) if encoder else super().make_embedding(encoder)

    def make_positions(self, encoder: bool) -> Positions:
        if encoder:
            return Fixed(reaching_sinusoidal(self.longest_src, self.d_model))
        return Learned(self.d_model, self.longest_tgt)

    def names(self) -> Names:
        names: Names = {
            "encoder.embedding.first": ("model.encoder.conv1",),
            "encoder.embedding.second": ("model.encoder.conv2",),
            "decoder.embedding.weight": (self.EMBEDDINGS[1],),
            "decoder.head.weight": ("proj_out.weight",),
        }
        for side in ("encoder", "decoder"):
            names |= block_names(side)
            names[f"{side}.positions.table"] = (f"model.{side}.embed_positions.weight",)
        # Their keys have no bias: one would add the same to all scores of a query, and the softmax takes that away.
        for ours, theirs in [(k, v) for k, v in names.items() if k.endswith(".kv")]:
            names[f"{ours}.bias"] = (None, f"{theirs[1]}.bias")
        return names
