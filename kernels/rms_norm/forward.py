"""RMS norm forward: the launcher. The kernels are in `../norm/forward.py`."""

from __future__ import annotations

from torch import Tensor

from ..norm.forward import norm_forward


def rms_norm_forward(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(y, summed, rstd): x * rstd * weight of each row (Zhang and Sennrich 2019, section 4).

    Args:
        x: (..., columns), float32, bfloat16 or float16; any strides.
        weight: (columns,), any float dtype, or None.
        residual: as x, or None; with it, `summed` = x + residual, rounded to x's dtype, is what is normalised.

    Returns:
        y: x's shape and dtype, contiguous. summed: the same, or None without residual. rstd: float32 (rows,).
    """
    y, summed, _, rstd = norm_forward(x, weight, None, residual, eps, centred=False)
    return y, summed, rstd
