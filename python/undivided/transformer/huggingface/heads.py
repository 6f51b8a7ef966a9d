"""How published models make logits where it is not by the embedding's table alone. Each wraps another head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..embedding import Head


class OwnHead(Head):
    """By weights (vocabulary, d_model) of its own."""

    def __init__(self, d_model: int, vocab: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab, d_model) * d_model**-0.5)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return super().forward(x, self.weight)


class ScaledHead(nn.Module):
    """From x * scale: T5's makes up for embeddings of unit variance (Raffel et al. 2020)."""

    def __init__(self, head: nn.Module, scale: float) -> None:
        super().__init__()
        self.head, self.scale = head, scale

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.head(x * self.scale, table)


class BiasedHead(nn.Module):
    """With a bias (1, vocabulary), which does not learn, on the logits."""

    bias: Tensor

    def __init__(self, head: nn.Module, vocab: int) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("bias", torch.zeros(1, vocab))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.head(x, table) + self.bias
