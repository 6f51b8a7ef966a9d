"""Layer norm backward: the launcher. The kernels are in `../norm/backward.py`."""

from __future__ import annotations

from torch import Tensor

from ..norm.backward import norm_backward


def layer_norm_backward(
    dy: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias); dx is also the gradient of the residual.

    Args:
        dy: (..., columns), the gradient of y, in x's dtype.
        dsummed: as dy: what reaches x + residual from elsewhere, added to dx; or None.
        x: what was normalised: x, or x + residual. mean, rstd: of the forward.
        weight: (columns,), any float dtype, or None.

    Returns:
        dx: x's shape and dtype, contiguous. dweight: None without weight; dbias: None without `has_bias`; (columns,)
        in the weight's dtype (x's without weight), summed in float32 in an order that the shape and the device fix.
    """
    return norm_backward(dy, dsummed, x, weight, mean, rstd, has_bias)
