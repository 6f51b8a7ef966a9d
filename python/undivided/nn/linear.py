"""A linear map with its weights."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops


class Linear(nn.Linear):
    """torch.nn.Linear, on a CPU by the fastest of `undivided.products`."""

    def forward(self, x: Tensor) -> Tensor:  # (..., in_features)
        return ops.linear(x, self.weight, self.bias)
