"""Layer norm and RMS norm with their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops


class LayerNorm(nn.Module):
    """Ba et al. 2016. `norm(x)` gives y; `norm(x, residual)` gives (y, x + residual) in one pass.

    x, residual: (..., columns). Statistics are float32 whatever the dtype.
    """

    def __init__(self, columns: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(columns))
        self.bias = nn.Parameter(torch.zeros(columns))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return ops.layer_norm(x, self.weight, self.bias, self.eps, residual)


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019: no mean, no bias. Called as `LayerNorm` is."""

    def __init__(self, columns: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(columns))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        return ops.rms_norm(x, self.weight, self.eps, residual)
