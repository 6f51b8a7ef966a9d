"""Which block a program has, which key blocks a query block visits, and which query blocks a key block; and where each
tensor starts.

Query i stands at i + shift on the key axis and sees the keys from i + shift - left to i + shift + right. Blocks between
`full_low` and `full_high` are seen whole, so they need no mask; those up to `low` and from `high` on are skipped.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(order, seqlen, nheads, BLOCK: tl.constexpr, ORDERED: tl.constexpr, LAST_FIRST: tl.constexpr):
    """(first row of its block, batch row, head) of this program; a GPU starts programs in the order of their numbers.

    order: int32 (batch * blocks,), the blocks b * blocks + n with the longest work first, as `schedule.py` finds them.
    LAST_FIRST: where that is the last block of a sequence: under a right bound a late query sees most keys.
    """
    blocks = tl.cdiv(seqlen, BLOCK)
    number = tl.program_id(0)
    if ORDERED:
        entry = tl.load(order + number // nheads)
        return entry % blocks * BLOCK, entry // blocks, number % nheads
    else:
        n = number % blocks
        if LAST_FIRST:
            n = blocks - 1 - n
        head = number // blocks
        return n * BLOCK, head // nheads, head % nheads


@triton.jit
def sequence(cu, lengths, seqlen, b, PACKED: tl.constexpr, HAS_LENGTHS: tl.constexpr):
    """(first row, number of rows) of sequence b; the first row is 64-bit, as it is multiplied by a stride."""
    if PACKED:
        first = tl.load(cu + b)
        return first.to(tl.int64), tl.load(cu + b + 1) - first
    else:
        number = seqlen
        if HAS_LENGTHS:
            number = tl.minimum(tl.load(lengths + b), seqlen)
        return tl.zeros((), tl.int64), number


@triton.jit
def shift_of(shifts, shift, lenq, lenk, b, PACKED: tl.constexpr, HAS_SHIFTS: tl.constexpr, OWN_SHIFT: tl.constexpr):
    """Where query 0 stands on the key axis."""
    if HAS_SHIFTS:
        return tl.load(shifts + b)
    else:
        if PACKED and not OWN_SHIFT:
            return lenk - lenq
        else:
            return shift


@triton.jit
def key_range(
    first, last, shift, lenk, left, right, BLOCK_N: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr
):
    """(low, full_low, full_high, high), multiples of BLOCK_N but for high, for the queries first to last."""
    low, full_low, high, full_high = 0, 0, lenk, lenk
    if HAS_LEFT:
        low = tl.maximum(first + shift - left, 0) // BLOCK_N * BLOCK_N
        full_low = (tl.maximum(last + shift - left, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    if HAS_RIGHT:
        high = tl.minimum(lenk, last + 1 + shift + right)
        full_high = tl.minimum(lenk, first + shift + right + 1)
    full_high = tl.maximum(full_high, 0) // BLOCK_N * BLOCK_N
    full_low = tl.maximum(full_low, low)
    # Without a whole block in between, all blocks are visited by the last of the loops, which masks.
    if full_high <= full_low:
        full_low = low
        full_high = low
    return low, full_low, full_high, high


@triton.jit
def query_range(
    n, shift, lenq, lenk, left, right,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
):  # fmt: skip
    """(low, full_low, full_high, high) of the queries that see the keys n to n + BLOCK_N - 1."""
    low, full_low, high, full_high = 0, 0, lenq, lenq
    if HAS_RIGHT:
        low = tl.maximum(n - right - shift, 0) // BLOCK_M * BLOCK_M
        full_low = (tl.maximum(n + BLOCK_N - 1 - right - shift, 0) + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    if HAS_LEFT:
        high = tl.minimum(lenq, n + BLOCK_N + left - shift)
        full_high = tl.minimum(lenq, n + left - shift + 1)
    full_high = tl.maximum(full_high, 0) // BLOCK_M * BLOCK_M
    full_low = tl.maximum(full_low, low)
    if n >= lenk:
        high = low
    if (full_high <= full_low) | (n + BLOCK_N > lenk):
        full_low = tl.maximum(high, low)
        full_high = full_low
    return low, full_low, full_high, high
