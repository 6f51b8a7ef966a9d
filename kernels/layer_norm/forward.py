"""Layer norm forward: the launcher. The kernels are in `../norm/forward.py`."""

from __future__ import annotations

from torch import Tensor

from ..norm.forward import norm_forward


def layer_norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(y, summed, mean, rstd): (x - mean) * rstd * weight + bias of each row (Ba et al. 2016, section 3).

    Args:
        x: (..., columns), float32, bfloat16 or float16; any strides.
        weight, bias: (columns,), any float dtype, or None.
        residual: as x, or None; with it, `summed` = x + residual, rounded to x's dtype, is what is normalised.

    Returns:
        y: x's shape and dtype, contiguous. summed: the same, or None without residual. mean, rstd: float32 (rows,).
    """
    return norm_forward(x, weight, bias, residual, eps, centred=True)
