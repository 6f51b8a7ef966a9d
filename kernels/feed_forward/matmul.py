"""One tile of a product x w^T: which tile a program takes, and the sum over the depth."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(number, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """(row of tiles, column of tiles) of tile `number`.

    Tiles are counted down GROUP_M rows before the next column, so that programs that run together read the same few
    rows of x and of w, out of the second-level cache. The last group may have fewer rows.
    """
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    first = number // (GROUP_M * tiles_n) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    within = number % (GROUP_M * tiles_n)
    return first + within % height, within // height


@triton.jit
def load_weights(at, columns, k, depth, EVEN_K: tl.constexpr):
    """[K, N] of the addresses `at`; 0 outside. columns: bool [N]; k: [K]."""
    if EVEN_K:
        return tl.load(at, mask=columns[None, :], other=0.0)
    else:
        return tl.load(at, mask=columns[None, :] & (k[:, None] < depth), other=0.0)


@triton.jit
def products(
    x, x_m,  # (rows, depth), its stride of rows; depth is contiguous
    w, w_n, w_k,  # (columns, depth) by strides
    v, v_n, v_k,  # the same, read only when TWO
    i, j,  # [M] and [N]: the tile's rows and columns
    rows, columns, depth,
    TWO: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(x w^T, x v^T), float32 [M, N] each, 0 beyond rows and columns; the first twice when not TWO."""
    k = tl.arange(0, BLOCK_K)
    inside_m, inside_n = i < rows, j < columns
    # Strides of views can be large, so offsets and steps are 64-bit.
    x_at = x + i.to(tl.int64)[:, None] * x_m + k[None, :]
    w_at = w + k.to(tl.int64)[:, None] * w_k + j.to(tl.int64)[None, :] * w_n
    v_at = v + k.to(tl.int64)[:, None] * v_k + j.to(tl.int64)[None, :] * v_n
    w_step = tl.full((), BLOCK_K, tl.int64) * w_k
    v_step = tl.full((), BLOCK_K, tl.int64) * v_k
    first = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    second = first
    for done in range(0, depth, BLOCK_K):
        left = depth - done
        if EVEN_K:
            tile = tl.load(x_at, mask=inside_m[:, None], other=0.0)  # [M, K]
        else:
            tile = tl.load(x_at, mask=inside_m[:, None] & (k[None, :] < left), other=0.0)
        first = tl.dot(tile, load_weights(w_at, inside_n, k, left, EVEN_K), first, input_precision=PRECISION)
        if TWO:
            second = tl.dot(tile, load_weights(v_at, inside_n, k, left, EVEN_K), second, input_precision=PRECISION)
            v_at += v_step
        x_at += BLOCK_K
        w_at += w_step
    if TWO:
        return first, second
    else:
        return first, first


@triton.jit
def halves(tile, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half, [M, N / 2] each, of [M, N].

    What follows a product is done on one half after the other: with twice the elements in flight, the backward spilled
    registers for compute capability 8.0 and 9.0.
    """
    return tl.split(tl.permute(tl.reshape(tile, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
