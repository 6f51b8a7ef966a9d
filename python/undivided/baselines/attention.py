"""Attention of a recurrent decoder to the encoder's outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GeneralAttention(nn.Module):
    """The `general` score of Luong et al. 2015, section 3.1, after the recurrence and without feeding back.

    Unlike the score of Bahdanau et al. 2015, which stands inside the recurrence, it is computed for all target
    positions at once.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.score = nn.Linear(d_model, d_model, bias=False)
        self.combine = nn.Linear(2 * d_model, d_model, bias=False)

    def weights(self, x: Tensor, memory: Tensor, src_lengths: Tensor | None) -> Tensor:
        """(batch, seqlen_tgt, seqlen_src), rows sum to 1; x (batch, seqlen_tgt, d_model), memory likewise."""
        # Unlike the paper's, the scores are scaled: without that their softmax saturates at initialisation.
        scores = self.score(x) @ memory.transpose(1, 2) * memory.shape[-1] ** -0.5
        if src_lengths is not None:
            beyond = torch.arange(memory.shape[1], device=memory.device) >= src_lengths[:, None]
            scores = scores.masked_fill(beyond[:, None], -torch.inf)
        return scores.softmax(-1)

    def forward(self, x: Tensor, memory: Tensor, src_lengths: Tensor | None) -> Tensor:
        """x with what it found in the memory: (batch, seqlen_tgt, d_model)."""
        context = self.weights(x, memory, src_lengths) @ memory
        return self.combine(torch.cat([context, x], -1)).tanh()
