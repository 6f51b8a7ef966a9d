"""Layer norm as it is defined."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `undivided.layer_norm`; statistics in float32, or float64 for float64 input."""
    summed = x if residual is None else x + residual
    wide = summed if x.dtype == torch.float64 else summed.float()
    centred = wide - wide.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(wide.dtype)
    if bias is not None:
        y = y + bias.to(wide.dtype)
    return y.to(x.dtype) if residual is None else (y.to(x.dtype), summed)
