"""From symbols to vectors, and from vectors to logits."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops
from ..ops.checks import readable
from .checks import check_ids


class Embedding(nn.Embedding):
    """Vectors of length about 1, scaled up to unit variance, so that the same table can be the output's weights.

    `scale` is another factor than the square root of d_model.
    """

    def __init__(self, vocab: int, d_model: int, scale: float | None = None) -> None:
        super().__init__(vocab, d_model)
        self.scale = d_model**0.5 if scale is None else scale
        nn.init.normal_(self.weight, std=d_model**-0.5)

    def check(self, name: str, ids: Tensor) -> Tensor:
        """Raises: TypeError or ValueError for what is no batch of symbol numbers."""
        check_ids(name, ids)
        vocab = self.num_embeddings
        if readable(ids):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= vocab:
                raise ValueError(f"id {low if low < 0 else high} is outside the vocabulary: allowed 0 to {vocab - 1}")
        return ids

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.scale


class Head(nn.Module):
    """Logits (..., vocabulary) from x (..., d_model), by the embedding's own table (vocabulary, d_model)."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return ops.linear(x, table)
