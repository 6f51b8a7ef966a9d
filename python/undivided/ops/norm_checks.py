"""Validation that layer norm and RMS norm share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import NormCall
from ..reference.precision import autocasting
from .checks import has_shape, is_float, is_like, is_number, same_device, same_dtype


def check_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None) -> None:
    is_float("x", x)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (..., columns) with at least one column")
    columns = x.shape[-1:]
    is_number("eps", eps)
    if not eps >= 0:
        raise ValueError(f"eps = {eps} must be at least 0")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            is_float(name, value)
            has_shape(name, value, columns, "(columns,)")
            same_device("x", x, name, value)
    if bias is not None and weight is None:
        raise ValueError("bias is given without weight; allowed: both, weight alone, or neither")
    if bias is not None and weight is not None:
        same_dtype("weight", weight, "bias", bias)
    if residual is not None:
        is_like("residual", residual, x.shape, "x's shape", "x", x)


def widest(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Under autocast a 16-bit x meets a float32 residual: both then take the wider dtype, as torch's own sum would."""
    if not isinstance(x, Tensor) or not isinstance(residual, Tensor) or x.dtype == residual.dtype:
        return x, residual
    if not autocasting(x) or not (x.is_floating_point() and residual.is_floating_point()):
        return x, residual
    dtype = torch.promote_types(x.dtype, residual.dtype)
    return x.to(dtype), residual.to(dtype)


def kernel_weight(weight: Tensor | None) -> Tensor | None:
    """Kernels compute in float32, so a float64 weight is rounded to it first."""
    return weight.float() if weight is not None and weight.dtype == torch.float64 else weight


def describe(x: Tensor, residual: Tensor | None, needs_grad: bool) -> NormCall:
    columns = x.shape[-1]
    return NormCall(
        x.device.type,
        str(x.dtype).removeprefix("torch."),
        x.numel() // columns,
        columns,
        residual is not None,
        needs_grad,
    )


def wants_grad(*values: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in values)
