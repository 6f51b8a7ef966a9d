"""Norms backward, deterministic and without atomics: programs that loop over blocks of rows.

With n = (x - mean) * rstd and g = dy * weight, dx = rstd * (g - n * along - level), where along and level are the
row's means of n * g and of g (without a mean, level is 0). dweight and dbias are the column sums of dy * n and of dy:
each program keeps its own in float32 over all of its rows, and one more kernel adds the programs' in a fixed order.

A row too long for the registers takes two kernels: the means of every row first, then the same by blocks of columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.host import device_of, interpreting, widened
from .plan import Launch, flat, programs, table_of
from .rows import load_columns, load_tile, rows_of, store_tile

# A few hundred rows of sums: 16 columns are the shortest run that memory reads whole, and make the most programs.
SUM = Launch(128, 16, 4)


@triton.jit
def load_normal(x, mean, rstd, i, j, rows, columns, x_row, CENTRED: tl.constexpr):
    """(x normalised [R, C], rstd [R]); rstd is 0 beyond the rows."""
    value = load_tile(x, i, j, rows, columns, x_row)
    if CENTRED:
        value = value - tl.load(mean + i, mask=i < rows, other=0.0)[:, None]
    scale = tl.load(rstd + i, mask=i < rows, other=0.0)
    return value * scale[:, None], scale


@triton.jit
def store_sums(base, j, columns, value):
    """The column sums of value [R, C] as this program's row of base: float32 (programs, columns)."""
    tl.store(base + tl.program_id(0).to(tl.int64) * columns + j, tl.sum(value, 0), mask=j < columns)


@triton.jit
def means_kernel(
    dy, x,  # (rows, columns), rows dy_row and x_row elements apart
    weight,  # (columns,)
    mean, rstd,  # float32 (rows,)
    along, level,  # float32 (rows,)
    dy_row, x_row, rows, columns,
    CENTRED: tl.constexpr, HAS_WEIGHT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = rows_of(tl.program_id(0), ROWS)
    along_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    level_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, columns, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        normal, _ = load_normal(x, mean, rstd, i, j, rows, columns, x_row, CENTRED)  # [R, C]
        grad = load_tile(dy, i, j, rows, columns, dy_row)
        if HAS_WEIGHT:
            grad = grad * load_columns(weight, j, columns)[None, :]
        along_sum += normal * grad
        if CENTRED:
            level_sum += grad
    tl.store(along + i, tl.sum(along_sum, 1) / columns, mask=i < rows)
    if CENTRED:
        tl.store(level + i, tl.sum(level_sum, 1) / columns, mask=i < rows)


@triton.jit
def backward_kernel(
    dy, dsummed, x,  # (rows, columns), rows dy_row, dsummed_row and x_row elements apart
    weight,  # (columns,)
    mean, rstd,  # float32 (rows,)
    along, level,  # float32 (rows,), read where a tile does not hold WHOLE rows
    dx,  # (rows, columns), contiguous
    weight_sums, bias_sums,  # float32 (programs, columns)
    dy_row, dsummed_row, x_row, rows, columns,
    CENTRED: tl.constexpr, HAS_DSUMMED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    WHOLE: tl.constexpr, KEEPS_WEIGHT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if HAS_WEIGHT and KEEPS_WEIGHT:
        kept = load_columns(weight, j, columns)[None, :]
    weight_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    bias_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        i = rows_of(block, ROWS)
        normal, scale = load_normal(x, mean, rstd, i, j, rows, columns, x_row, CENTRED)  # [R, C]
        grad = load_tile(dy, i, j, rows, columns, dy_row)
        if HAS_BIAS:
            bias_sum += grad
        if HAS_WEIGHT:
            weight_sum += grad * normal
            if KEEPS_WEIGHT:
                grad = grad * kept
            else:
                grad = grad * load_columns(weight, j, columns)[None, :]
        if WHOLE:
            result = grad - normal * (tl.sum(normal * grad, 1) / columns)[:, None]
            if CENTRED:
                result -= (tl.sum(grad, 1) / columns)[:, None]
        else:
            result = grad - normal * tl.load(along + i, mask=i < rows, other=0.0)[:, None]
            if CENTRED:
                result -= tl.load(level + i, mask=i < rows, other=0.0)[:, None]
        result = result * scale[:, None]
        if HAS_DSUMMED:
            result += load_tile(dsummed, i, j, rows, columns, dsummed_row)
        store_tile(dx, i, j, rows, columns, columns, result)
    if HAS_WEIGHT:
        store_sums(weight_sums, j, columns, weight_sum)
    if HAS_BIAS:
        store_sums(bias_sums, j, columns, bias_sum)


@triton.jit
def sum_kernel(
    weight_sums, bias_sums,  # float32 (programs, columns)
    dweight, dbias,  # (columns,)
    programs, columns,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    weight_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    bias_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, programs, ROWS):
        i = first + tl.arange(0, ROWS).to(tl.int64)
        if HAS_WEIGHT:
            weight_sum += load_tile(weight_sums, i, j, programs, columns, columns)
        if HAS_BIAS:
            bias_sum += load_tile(bias_sums, i, j, programs, columns, columns)
    if HAS_WEIGHT:
        tl.store(dweight + j, tl.sum(weight_sum, 0).to(dweight.dtype.element_ty), mask=j < columns)
    if HAS_BIAS:
        tl.store(dbias + j, tl.sum(bias_sum, 0).to(dbias.dtype.element_ty), mask=j < columns)


def norm_backward(
    dy: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dweight, dbias): of layer norm, or without a mean of RMS norm.

    x: (..., columns), what was normalised; the arguments and results are those of `layer_norm_backward`.
    """
    shape, dtype, parameter_dtype = x.shape, x.dtype, x.dtype if weight is None else weight.dtype
    dy, dsummed, x, weight = widened(dy, dsummed, x, weight)  # type: ignore[assignment]
    x, dy, dsummed = flat(x), flat(dy), None if dsummed is None else flat(dsummed)
    rows, columns = x.shape
    table = table_of("backward", mean is not None, x)
    whole = table.choose(columns)
    row = table.long if whole is None else whole
    chunks, blocks = triton.cdiv(columns, row.COLUMNS), triton.cdiv(rows, row.ROWS)
    number = programs(row, blocks, chunks, x.device)
    dx = x.new_empty((rows, columns))
    weight_sums = rstd if weight is None else x.new_empty((number, columns), dtype=torch.float32)
    bias_sums = x.new_empty((number, columns), dtype=torch.float32) if has_bias else rstd
    if rows:
        shared: dict[str, Any] = dict(
            dy=dy, x=x, weight=x if weight is None else weight.contiguous(), mean=rstd if mean is None else mean,
            rstd=rstd, along=rstd, level=rstd, dy_row=dy.stride(0), x_row=x.stride(0), rows=rows, columns=columns,
            CENTRED=mean is not None, HAS_WEIGHT=weight is not None,
        )  # fmt: skip
        with device_of(x):
            if whole is None:
                shared["along"], shared["level"] = rstd.new_empty(rows), rstd.new_empty(rows)
                tile = table.means
                means_kernel[(triton.cdiv(rows, tile.ROWS),)](
                    **shared, ROWS=tile.ROWS, COLUMNS=tile.COLUMNS, num_warps=tile.num_warps
                )
            backward_kernel[(number, chunks)](
                **shared, dsummed=x if dsummed is None else dsummed, dx=dx, weight_sums=weight_sums,
                bias_sums=bias_sums, dsummed_row=0 if dsummed is None else dsummed.stride(0),
                HAS_DSUMMED=dsummed is not None, HAS_BIAS=has_bias, WHOLE=whole is not None,
                KEEPS_WEIGHT=row.keeps_weight, ROWS=row.ROWS, COLUMNS=row.COLUMNS, STAGES=row.STAGES,
                num_warps=row.num_warps,
            )  # fmt: skip
    dweight, dbias = _summed(weight_sums, bias_sums, parameter_dtype, weight is not None, has_bias)
    return dx.to(dtype).view(shape), dweight, dbias


def _summed(
    weight_sums: Tensor, bias_sums: Tensor, dtype: torch.dtype, has_weight: bool, has_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(dweight, dbias) of the programs' sums, in an order that their shape fixes: by one kernel, in one launch."""
    if not (has_weight or has_bias):
        return None, None
    number, columns = (weight_sums if has_weight else bias_sums).shape
    wide = torch.float32 if interpreting() and dtype == torch.bfloat16 else dtype
    dweight, dbias = (weight_sums.new_empty(columns, dtype=wide) if has else None for has in (has_weight, has_bias))
    if columns:
        with device_of(weight_sums):
            sum_kernel[(triton.cdiv(columns, SUM.COLUMNS),)](
                weight_sums, bias_sums, weight_sums if dweight is None else dweight,
                weight_sums if dbias is None else dbias, number, columns, HAS_WEIGHT=has_weight, HAS_BIAS=has_bias,
                ROWS=SUM.ROWS, COLUMNS=SUM.COLUMNS, num_warps=SUM.num_warps,
            )  # fmt: skip
    return tuple(None if total is None else total.to(dtype) for total in (dweight, dbias))  # type: ignore[return-value]
