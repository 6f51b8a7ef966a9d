"""RMS norm: the public op."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..dispatch import choose
from . import norm_autograd
from .norm_checks import check_norm, describe, kernel_weight, wants_grad, widest
from .norm_table import RMS_NORM


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, section 4).

    Args:
        x: (..., columns), float32, bfloat16 or float16 (float64 on the reference).
        weight: (columns,), any float dtype, or None. Statistics are float32 whatever the dtypes.
        eps: added to the mean square.
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
    found = norm_autograd.directly("rms_norm", backend, x, residual, weight, None, eps)
    if found is not None:
        return found
    x, residual = widest(x, residual)
    check_norm(x, weight, None, eps, residual)
    row = choose(RMS_NORM, describe(x, residual, wants_grad(x, weight, residual)), backend)
    if row.name == "reference":
        return reference.rms_norm(x, weight, eps, residual)
    y, summed = norm_autograd.apply("rms_norm", row.module, x, kernel_weight(weight), None, residual, eps)
    return y if residual is None else (y, summed)
