"""Norms forward: a program holds a few whole rows, or goes through one long row twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.host import device_of, interpreting, widened
from .plan import flat, table_of
from .rows import load_summed, merged, rows_of, scale_and_shift, statistics, store_tile


@triton.jit
def forward_kernel(
    x, residual,  # (rows, columns), rows x_row and residual_row elements apart
    weight, bias,  # (columns,)
    y, summed,  # (rows, columns), contiguous
    mean, rstd,  # float32 (rows,)
    x_row, residual_row, rows, columns, eps,
    CENTRED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = rows_of(tl.program_id(0), ROWS)
    j = tl.arange(0, COLUMNS)
    value = load_summed(x, residual, i, j, rows, columns, x_row, residual_row, HAS_RESIDUAL)  # [R, C]
    if HAS_RESIDUAL:
        store_tile(summed, i, j, rows, columns, columns, value)
    centre, squares = statistics(value, j, columns, columns, CENTRED)
    scale = tl.rsqrt(squares / columns + eps)
    if CENTRED:
        tl.store(mean + i, centre, mask=i < rows)
        value = value - centre[:, None]
    tl.store(rstd + i, scale, mask=i < rows)
    value = scale_and_shift(value * scale[:, None], weight, bias, j, columns, HAS_WEIGHT, HAS_BIAS)
    store_tile(y, i, j, rows, columns, columns, value)


@triton.jit
def long_forward_kernel(
    x, residual,  # (rows, columns), rows x_row and residual_row elements apart
    weight, bias,  # (columns,)
    y, summed,  # (rows, columns), contiguous
    mean, rstd,  # float32 (rows,)
    x_row, residual_row, rows, columns, eps,
    CENTRED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = rows_of(tl.program_id(0), ROWS)
    centre = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    for first in range(0, columns, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        value = load_summed(x, residual, i, j, rows, columns, x_row, residual_row, HAS_RESIDUAL)  # [R, C]
        if HAS_RESIDUAL:
            store_tile(summed, i, j, rows, columns, columns, value)
        number = tl.minimum(columns - first, COLUMNS)
        part_centre, part_squares = statistics(value, j, columns, number, CENTRED)
        centre, squares = merged(centre, squares, first, part_centre, part_squares, number, CENTRED)
    scale = tl.rsqrt(squares / columns + eps)
    if CENTRED:
        tl.store(mean + i, centre, mask=i < rows)
    tl.store(rstd + i, scale, mask=i < rows)
    for first in range(0, columns, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        # Added again, not read from `summed`: another thread may have written what this one would read.
        value = load_summed(x, residual, i, j, rows, columns, x_row, residual_row, HAS_RESIDUAL)
        value = (value - centre[:, None]) * scale[:, None]
        value = scale_and_shift(value, weight, bias, j, columns, HAS_WEIGHT, HAS_BIAS)
        store_tile(y, i, j, rows, columns, columns, value)


def norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(y, summed, mean, rstd): layer norm when `centred`, else RMS norm, whose mean is not written.

    x: (..., columns); the arguments and results are those of `layer_norm_forward`.
    """
    shape, dtype, added = x.shape, x.dtype, None
    if residual is not None and interpreting() and dtype == torch.bfloat16:
        # Widened inputs would be added without the rounding to bfloat16, so torch adds them.
        added = x + residual
        x, residual = added, None
    x, weight, bias, residual = widened(x, weight, bias, residual)  # type: ignore[assignment]
    x, residual = flat(x), None if residual is None else flat(residual)
    rows, columns = x.shape
    y = x.new_empty((rows, columns))
    summed = None if residual is None else x.new_empty((rows, columns))
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    table = table_of("forward", centred, x)
    whole = table.choose(columns)
    row, kernel = (table.long, long_forward_kernel) if whole is None else (whole, forward_kernel)
    if rows:
        with device_of(x):
            kernel[(triton.cdiv(rows, row.ROWS),)](
                x, x if residual is None else residual, x if weight is None else weight.contiguous(),
                x if bias is None else bias.contiguous(), y, x if summed is None else summed, mean, rstd,
                x.stride(0), 0 if residual is None else residual.stride(0), rows, columns, float(eps),
                CENTRED=centred, HAS_RESIDUAL=residual is not None, HAS_WEIGHT=weight is not None,
                HAS_BIAS=bias is not None, ROWS=row.ROWS, COLUMNS=row.COLUMNS, num_warps=row.num_warps,
            )  # fmt: skip
    if added is None and summed is not None:
        added = summed.view(shape)
    return y.to(dtype).view(shape), added, mean, rstd
