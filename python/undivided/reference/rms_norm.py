"""RMS norm as it is defined."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `undivided.rms_norm`; the mean square in float32, or float64 for float64 input."""
    summed = x if residual is None else x + residual
    wide = summed if x.dtype == torch.float64 else summed.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(wide.dtype)
    return y.to(x.dtype) if residual is None else (y.to(x.dtype), summed)
