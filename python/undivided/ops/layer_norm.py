"""Layer norm: the public op."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..dispatch import choose
from . import norm_autograd
from .norm_checks import check_norm, describe, kernel_weight, wants_grad, widest
from .norm_table import LAYER_NORM


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba et al. 2016, section 3).

    Args:
        x: (..., columns), float32, bfloat16 or float16 (float64 on the reference).
        weight, bias: (columns,), any float dtype, or None; bias needs a weight of its dtype. Statistics are float32.
        eps: added to the variance.
        residual: as x. With it, x + residual is normalised, in the same pass.

    Returns:
        y, x's shape and dtype; with `residual`, (y, x + residual).

    Autocast changes no dtype: y has x's, and statistics are float32 anyway. Only where it made x 16 bits wide and left
    `residual` in float32 are both taken as float32.

    Raises:
        ValueError, TypeError: a shape, value or dtype that is not allowed.
        BackendRefused: the backend asked for cannot run the call.
        NotImplementedError: a second or forward-mode derivative, or a torch.func transform, of a kernel; the reference
            has them all.
    """
    found = norm_autograd.directly("layer_norm", backend, x, residual, weight, bias, eps)
    if found is not None:
        return found
    x, residual = widest(x, residual)
    check_norm(x, weight, bias, eps, residual)
    row = choose(LAYER_NORM, describe(x, residual, wants_grad(x, weight, bias, residual)), backend)
    if row.name == "reference":
        return reference.layer_norm(x, weight, bias, eps, residual)
    weight, bias = kernel_weight(weight), kernel_weight(bias)
    y, summed = norm_autograd.apply("layer_norm", row.module, x, weight, bias, residual, eps)
    return y if residual is None else (y, summed)
