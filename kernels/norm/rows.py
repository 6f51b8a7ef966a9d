"""A block of rows as a float32 tile [R, C]: loading, storing, statistics. What lies outside is 0 and never written.

Rows are numbered in 64 bits, so that row times stride cannot overflow.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(block, ROWS: tl.constexpr):
    """int64 [R]: the rows of a block."""
    return tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)


@triton.jit
def load_tile(base, i, j, rows, columns, stride):
    """float32 [R, C] of a matrix whose rows are `stride` elements apart. i: int64 [R]; j [C]."""
    at = base + i[:, None] * stride + j[None, :]
    return tl.load(at, mask=(i[:, None] < rows) & (j[None, :] < columns), other=0.0).to(tl.float32)


@triton.jit
def store_tile(base, i, j, rows, columns, stride, value):
    """The inverse of `load_tile`, in the dtype of the memory."""
    at = base + i[:, None] * stride + j[None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=(i[:, None] < rows) & (j[None, :] < columns))


@triton.jit
def load_columns(base, j, columns):
    """float32 [C] of a vector of one number a column."""
    return tl.load(base + j, mask=j < columns, other=0.0).to(tl.float32)


@triton.jit
def load_summed(x, residual, i, j, rows, columns, x_row, residual_row, HAS_RESIDUAL: tl.constexpr):
    """What is normalised: x, or x + residual rounded to the dtype of x."""
    value = load_tile(x, i, j, rows, columns, x_row)
    if HAS_RESIDUAL:
        value += load_tile(residual, i, j, rows, columns, residual_row)
        value = value.to(x.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def statistics(value, j, columns, number, CENTRED: tl.constexpr):
    """(mean, sum of the squared distances from it), each [R]; about 0 when not CENTRED. number: columns inside.

    Two passes over registers: the sum of squares minus the squared mean would cancel where the mean is large.
    """
    mean = tl.zeros((value.shape[0],), tl.float32)
    if CENTRED:
        mean = tl.sum(value, 1) / number
        value = tl.where(j[None, :] < columns, value - mean[:, None], 0.0)
    return mean, tl.sum(value * value, 1)


@triton.jit
def merged(mean, squares, before, part_mean, part_squares, number, CENTRED: tl.constexpr):
    """The statistics of `before` columns and of `number` more, as one (Chan, Golub and LeVeque 1983, section 2)."""
    if CENTRED:
        share = number / (before + number)
        distance = part_mean - mean
        mean += distance * share
        squares += distance * (distance * (before * share))  # in this order: 0 stays 0 where the square overflows
    return mean, squares + part_squares


@triton.jit
def scale_and_shift(value, weight, bias, j, columns, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """value * weight + bias."""
    if HAS_WEIGHT:
        value = value * load_columns(weight, j, columns)[None, :]
    if HAS_BIAS:
        value = value + load_columns(bias, j, columns)[None, :]
    return value
