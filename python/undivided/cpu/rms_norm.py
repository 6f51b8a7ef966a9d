"""RMS norm on a CPU: launchers over `undivided._C`."""

from __future__ import annotations

import torch

from .. import _C
from . import CPU, DTYPES, READS_TENSORS, address


def rms_norm_forward(
    x: torch.Tensor, weight: torch.Tensor | None, residual: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(y, summed, rstd) for `x` (..., columns) in float32, bfloat16 or float16.

    `weight` (columns,) in any of these dtypes, or None; `residual` like `x`, or None. What is normalised is
    `summed = x + residual`, rounded to x's dtype (None without residual). `rstd` is float32 (rows,).
    """
    x = x.contiguous()
    columns = x.shape[-1]
    rows = x.numel() // columns
    y = torch.empty_like(x)
    summed = None
    if residual is not None:
        residual = residual.contiguous()
        summed = torch.empty_like(x)
    weight = None if weight is None else weight.contiguous()
    rstd = torch.empty(rows, dtype=torch.float32, device=CPU)
    threads = torch.get_num_threads()
    if READS_TENSORS and _C.rms_norm_direct(x, residual, weight, None, y, summed, None, rstd, eps, threads):
        return y, summed, rstd
    dtype = DTYPES[x.dtype]
    _C.rms_norm_forward(
        address(x),
        address(residual),
        address(weight),
        y.data_ptr(),
        address(summed),
        address(rstd),
        rows,
        columns,
        eps,
        dtype,
        dtype if weight is None else DTYPES[weight.dtype],
        threads,
    )
    return y, summed, rstd


def rms_norm_backward(
    dy: torch.Tensor,
    dsummed: torch.Tensor | None,
    x_or_summed: torch.Tensor,
    weight: torch.Tensor | None,
    rstd: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(dx, dweight); `dx` is also the gradient of the residual.

    `dy` (..., columns) and `dsummed` (like it, or None: the gradient that reaches `summed` from elsewhere) in x's
    dtype. `dweight` is None without weight, else in its dtype, summed in float32 in an order that depends on the
    shape alone.
    """
    x, dy = x_or_summed.contiguous(), dy.contiguous()
    dsummed = None if dsummed is None else dsummed.contiguous()
    weight = None if weight is None else weight.contiguous()
    columns = x.shape[-1]
    rows = x.numel() // columns
    dx = torch.empty_like(x)
    dweight = None if weight is None else torch.empty_like(weight)
    threads = torch.get_num_threads()
    if READS_TENSORS and _C.rms_norm_backward_direct(dy, dsummed, x, weight, None, rstd, dx, dweight, None, threads):
        return dx, dweight
    dtype = DTYPES[x.dtype]
    _C.rms_norm_backward(
        address(dy),
        address(dsummed),
        address(x),
        address(weight),
        address(rstd),
        dx.data_ptr(),
        address(dweight),
        rows,
        columns,
        dtype,
        dtype if weight is None else DTYPES[weight.dtype],
        threads,
    )
    return dx, dweight
