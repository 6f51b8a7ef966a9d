"""Layer norm on a CPU: launchers over `undivided._C`."""

from __future__ import annotations

import torch

from .. import _C
from . import CPU, DTYPES, READS_TENSORS, address


def layer_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """(y, summed, mean, rstd) for `x` (..., columns) in float32, bfloat16 or float16.

    `weight`, `bias` (columns,) in any of these dtypes, or None; `residual` like `x`, or None. What is normalised
    is `summed = x + residual`, rounded to x's dtype (None without residual). `mean`, `rstd` are float32 (rows,).
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
    bias = None if bias is None else bias.contiguous()
    mean = torch.empty(rows, dtype=torch.float32, device=CPU)
    rstd = torch.empty(rows, dtype=torch.float32, device=CPU)
    threads = torch.get_num_threads()
    if READS_TENSORS and _C.layer_norm_direct(x, residual, weight, bias, y, summed, mean, rstd, eps, threads):
        return y, summed, mean, rstd
    dtype = DTYPES[x.dtype]
    _C.layer_norm_forward(
        address(x),
        address(residual),
        address(weight),
        address(bias),
        y.data_ptr(),
        address(summed),
        address(mean),
        address(rstd),
        rows,
        columns,
        eps,
        dtype,
        dtype if weight is None else DTYPES[weight.dtype],
        dtype if bias is None else DTYPES[bias.dtype],
        threads,
    )
    return y, summed, mean, rstd


def layer_norm_backward(
    dy: torch.Tensor,
    dsummed: torch.Tensor | None,
    x_or_summed: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    has_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(dx, dweight, dbias); `dx` is also the gradient of the residual.

    `dy` (..., columns) and `dsummed` (like it, or None: the gradient that reaches `summed` from elsewhere) in x's
    dtype. `dweight` is None without weight, `dbias` without bias; both in the weight's dtype, summed in float32 in an
    order that depends on the shape alone.
    """
    x, dy = x_or_summed.contiguous(), dy.contiguous()
    dsummed = None if dsummed is None else dsummed.contiguous()
    weight = None if weight is None else weight.contiguous()
    columns = x.shape[-1]
    rows = x.numel() // columns
    dx = torch.empty_like(x)
    dweight = None if weight is None else torch.empty_like(weight)
    parameter_dtype = x.dtype if weight is None else weight.dtype
    dbias = x.new_empty(columns, dtype=parameter_dtype) if has_bias else None
    threads = torch.get_num_threads()
    if READS_TENSORS and _C.layer_norm_backward_direct(dy, dsummed, x, weight, mean, rstd, dx, dweight, dbias, threads):
        return dx, dweight, dbias
    code = DTYPES[parameter_dtype]
    _C.layer_norm_backward(
        address(dy),
        address(dsummed),
        address(x),
        address(weight),
        address(mean),
        address(rstd),
        address(dx),
        address(dweight),
        address(dbias),
        rows,
        columns,
        DTYPES[x.dtype],
        code,
        code,
        threads,
    )
    return dx, dweight, dbias
