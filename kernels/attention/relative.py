"""The relative bias of one tile of scores, and the tile's share of the table's gradient.

The bias is a function of the key's position minus the query's that is one number from `span` on, on either side (Raffel
et al. 2020, section 2.1). A tile that lies beyond the span on one side is called far: it adds a scalar, and its
gradient is one sum, of one bucket. A tile near the diagonal looks the distance of each element up. `values` (this
head's bias times log2(e)) and `buckets` have 2 * span + 1 entries, for the distances from -span to span.

What it costs, in instructions of one warp for a tile of bfloat16 at head_dim 64, compiled for compute capability 9.0:

            no bias     far           near
    forward 242         245 to 253    341
    dq      138         147 to 156    501, of which the table's gradient takes most
    dkdv    202         212           272

A far tile hence takes 1 to 5 % more forward and 6 to 8 % more backward. What a call takes depends on how many tiles are
near, 2 * span + BLOCK_M keys of each block of queries. On an H200, bfloat16, sequences of 4096, each with the best of
its tiles: forward 269 TFLOP/s where a call without a bias reaches 382 at head_dim 64, 345 and 471 at 128; dq with the
table's gradient 277 and 522 at 64, 313 and 596 at 128.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def near_range(first, size, span, low, high, BLOCK: tl.constexpr):
    """(low, high) of the near among the blocks of other rows from low to high, for the `size` rows from `first`.

    Rows are counted on the axis of the other rows. low and high are multiples of BLOCK; blocks before the result are
    far on one side, those after it on the other.
    """
    near_low = tl.maximum(first - span + 1, 0) // BLOCK * BLOCK
    near_high = (tl.maximum(first + size - 1 + span, 0) + BLOCK - 1) // BLOCK * BLOCK
    near_low = tl.minimum(tl.maximum(near_low, low), high)
    return near_low, tl.minimum(tl.maximum(near_high, near_low), high)


@triton.jit
def entry(distance, span):
    return tl.minimum(tl.maximum(distance, -span), span) + span


@triton.jit
def add_relative(s, values, far, i, j, at, span, FAR: tl.constexpr):
    """s [M, N] + the bias times log2(e). far: the one number of a FAR tile; query 0 stands `at` on the key axis."""
    if FAR:
        return s + far
    else:
        return s + tl.load(values + entry(j[None, :] - i[:, None] - at, span))


@triton.jit
def add_bucket(acc, ds, number, BLOCK_B: tl.constexpr):
    """acc [BLOCK_B] + the sum of ds [M, N] in the place of one bucket."""
    return acc + tl.where(tl.arange(0, BLOCK_B) == number, tl.sum(ds), 0.0)


@triton.jit
def add_near(
    acc, ds, buckets, m, n, at, span, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr
):  # fmt: skip
    """acc [BLOCK_B] + the sums of ds [M, N], of the queries from m and the keys from n, by bucket.

    First by distance: in row i the t-th lowest distance of the tile is at key t - (M - 1) + i.
    """
    t = tl.arange(0, 2 * (BLOCK_M if BLOCK_M > BLOCK_N else BLOCK_N))  # at least the M + N - 1 distances
    place = t[None, :] - (BLOCK_M - 1) + tl.arange(0, BLOCK_M)[:, None]
    turned = tl.gather(ds, tl.minimum(tl.maximum(place, 0), BLOCK_N - 1), 1)  # [M, T]
    by_distance = tl.sum(tl.where((place >= 0) & (place < BLOCK_N), turned, 0.0), 0)  # [T]
    bucket = tl.load(buckets + entry(n - (m + BLOCK_M - 1) - at + t, span))
    own = bucket[:, None] == tl.arange(0, BLOCK_B)[None, :]
    return acc + tl.sum(tl.where(own, by_distance[:, None], 0.0), 0)
