"""One tile of scores: what is added to q k^T, and which elements are visible."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-2.3e38)  # a bias that is finite times LOG2E


@triton.jit
def load_at(base, offsets, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """[R, BLOCK_D]: the rows that start at base + offsets, int64 [R]; 0 beyond HEAD_DIM and where not `inside` [R]."""
    d = tl.arange(0, BLOCK_D)
    at = base + offsets[:, None] + d[None, :]
    if MASKED:
        return tl.load(at, mask=inside[:, None] & (d[None, :] < HEAD_DIM), other=0.0)
    else:
        if HEAD_DIM == BLOCK_D:
            return tl.load(at)
        else:
            return tl.load(at, mask=d[None, :] < HEAD_DIM, other=0.0)


@triton.jit
def store_at(base, offsets, inside, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of `load_at`, in the dtype of the memory."""
    d = tl.arange(0, BLOCK_D)
    at = base + offsets[:, None] + d[None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=inside[:, None] & (d[None, :] < HEAD_DIM))


@triton.jit
def load_rows(base, first, rows, limit, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Rows [R] of a (seqlen, head_dim) matrix as [R, BLOCK_D]; 0 beyond `limit` rows and beyond HEAD_DIM."""
    return load_at(base, (first + rows.to(tl.int64)) * stride, rows < limit, HEAD_DIM, BLOCK_D, MASKED)


@triton.jit
def store_rows(base, first, rows, limit, stride, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of `load_rows`, in the dtype of the memory."""
    store_at(base, (first + rows.to(tl.int64)) * stride, rows < limit, value, HEAD_DIM, BLOCK_D)


@triton.jit
def visible(
    i, j, shift, lenq, lenk, left, right, mask, mask_m, mask_n,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """bool [M, N]. mask: bytes of this batch row and head, or nothing."""
    inside = (i[:, None] < lenq) & (j[None, :] < lenk)
    seen = inside
    distance = j[None, :] - i[:, None] - shift
    if HAS_LEFT:
        seen = seen & (distance >= -left)
    if HAS_RIGHT:
        seen = seen & (distance <= right)
    if HAS_MASK:
        at = mask + i.to(tl.int64)[:, None] * mask_m + j.to(tl.int64)[None, :] * mask_n
        seen = seen & (tl.load(at, mask=inside, other=0) != 0)
    return seen


@triton.jit
def scores(
    q, k, i, j, shift, lenq, lenk, scale, softcap, bias, bias_m, bias_n, slope,
    HAS_SOFTCAP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ALIBI: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(scores times log2(e) [M, N], derivative of the cap [M, N]), not masked.

    q [M, D], k [N, D]. bias: this batch row's and head's (seqlen_q, seqlen_k) by strides. slope: this head's of
    ALiBi, or [M, 1].
    """
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    factor = s
    if HAS_SOFTCAP:
        # tanh(x) = 1 - 2 / (e^(2 x) + 1), which neither overflows nor needs a library. Near 0 the difference loses what
        # x is, which 16 bits hide: there it is Taylor's.
        x = s * (scale / softcap)
        tanh = 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)
        if q.dtype == tl.float32:
            square = x * x
            series = ((0.021869489 * square - 0.053968254) * square + 0.13333333) * square - 0.33333333
            tanh = tl.where(tl.abs(x) < 0.3, series * square * x + x, tanh)
        factor = 1.0 - tanh * tanh
        s = softcap * tanh
    else:
        s = s * scale
    if HAS_BIAS:
        at = bias + i.to(tl.int64)[:, None] * bias_m + j.to(tl.int64)[None, :] * bias_n
        b = tl.load(at, mask=(i[:, None] < lenq) & (j[None, :] < lenk), other=0.0).to(tl.float32)
        # Many write the lowest float for -inf, and a row of nothing else gives the mean: it must stay finite.
        s += tl.where((b < LOWEST) & (b != float("-inf")), LOWEST, b)
    if HAS_ALIBI:
        s -= slope * tl.abs(j[None, :] - i[:, None] - shift).to(tl.float32)
    return s * LOG2E, factor


@triton.jit
def finite(x):
    """x with 0 in place of NaN and infinity: 0 * NaN would carry a hidden row into a product."""
    return tl.where(tl.abs(x.to(tl.float32)) < float("inf"), x, 0.0).to(x.dtype)
