"""Rows turned by their positions as they are loaded, for kernels that read each row once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_turned(
    base, offsets, position, inside, cos, sin, places, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """`load_at` of a masked tile, [R, BLOCK_D], turned and rounded to the dtype of the memory.

    position: int [R]. cos, sin: float32 (places, HEAD_DIM / 2), contiguous. A row whose position they do not have is
    NaN.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    d = tl.arange(0, BLOCK_D)
    first = d < HALF  # the first of a pair, whose second stands HALF further on
    here = inside[:, None] & (d < HEAD_DIM)[None, :]
    known = here & ((position >= 0) & (position < places))[:, None]
    at = position.to(tl.int64)[:, None] * HALF + tl.where(first, d, d - HALF)[None, :]
    c = tl.load(cos + at, mask=known, other=float("nan"))
    s = tl.load(sin + at, mask=known, other=float("nan"))
    row = base + offsets[:, None]
    own = tl.load(row + d[None, :], mask=here, other=0.0).to(tl.float32)
    other = tl.load(row + tl.where(first, d + HALF, d - HALF)[None, :], mask=here, other=0.0).to(tl.float32)
    turned = own * c + other * tl.where(first[None, :], -s, s)
    return tl.where(here, turned, 0.0).to(base.dtype.element_ty)
