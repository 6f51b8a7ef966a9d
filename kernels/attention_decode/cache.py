"""Where a cache keeps its tokens, contiguous or in blocks that a table lists; and the append of new ones."""

from __future__ import annotations

import triton
import triton.language as tl

from ..attention.tile import load_at, store_at
from ..rotary.load import load_turned

# New tokens are few: a program takes this many at a time.
NEW = tl.constexpr(16)


@triton.jit
def locate(table, b, n, j, inside, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr):
    """(block, slot), int64 [N] or a number, of the tokens j = n, n + 1, ... [N] of batch row b.

    table: int32, the blocks of this row's positions 0, PAGE, 2 PAGE, ... A contiguous cache (PAGE 0) has one block a
    batch row. n: a multiple of BLOCK_N.
    """
    if PAGE == 0:
        return b, j.to(tl.int64)
    else:
        number = j.to(tl.uint32)  # positions are not negative: without a sign a division by 16 is a shift
        slot = (number % PAGE).to(tl.int64)
        if PAGE % BLOCK_N == 0:  # the tokens are in one block
            return tl.load(table + n // PAGE).to(tl.int64), slot
        else:
            if MASKED:
                block = tl.load(table + number // PAGE, mask=inside, other=0)
            else:
                block = tl.load(table + number // PAGE)
            return block.to(tl.int64), slot


@triton.jit
def append(
    k_cache, v_cache,  # this head's (blocks, slots, head_dim) by strides
    k, v,  # this batch row's and head's new tokens (seqlen_new, head_dim) by strides
    table, b, start, worker, workers,
    k_cache_b, k_cache_s, v_cache_b, v_cache_s, k_s, v_s, seqlen_new, longest, num_blocks, cos, sin, places,
    PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, HAS_ROTARY: tl.constexpr,
):  # fmt: skip
    """Writes the new tokens, keys turned, to the positions from `start` on; those beyond the cache are left out.

    `workers` programs share the tokens. No program reads what another one writes: attention takes new tokens from k and
    v. Any of them may hence write at any time.
    """
    for first in range(worker * NEW, seqlen_new, workers * NEW):
        t = first + tl.arange(0, NEW)
        fits = (t < seqlen_new) & (start + t < longest)
        if PAGE == 0:
            block, slot = b, (start + t).to(tl.int64)
        else:
            found = tl.load(table + (start + t) // PAGE, mask=fits, other=-1)
            fits = fits & (found >= 0) & (found < num_blocks)
            block, slot = found.to(tl.int64), ((start + t) % PAGE).to(tl.int64)
        token = t.to(tl.int64)
        if HAS_ROTARY:
            key = load_turned(k, token * k_s, start + t, fits, cos, sin, places, HEAD_DIM, BLOCK_D)
        else:
            key = load_at(k, token * k_s, fits, HEAD_DIM, BLOCK_D, True)
        store_at(k_cache, block * k_cache_b + slot * k_cache_s, fits, key, HEAD_DIM, BLOCK_D)
        value = load_at(v, token * v_s, fits, HEAD_DIM_V, BLOCK_DV, True)
        store_at(v_cache, block * v_cache_b + slot * v_cache_s, fits, value, HEAD_DIM_V, BLOCK_DV)
