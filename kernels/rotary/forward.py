"""Rotary forward: a program turns a block of rows, a row being one head of one token."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..common.host import on_its_device, power_of_two, widened

# Pairs of one program: 8 a thread, which in 16-bit types are two loads and two stores of 16 bytes. Not timed yet.
PAIRS = 1024
WARPS = 4


@triton.jit
def turn_kernel(
    x, y,  # (batch, seqlen, nheads, 2 * HALF) by strides; the same, contiguous
    cos, sin,  # (longest, HALF) by strides
    positions,  # int (seqlen,) or (batch, seqlen) by strides, when HAS_POSITIONS
    x_b, x_s, x_h, cos_s, cos_d, sin_s, sin_d, positions_b, positions_s,  # strides, in elements
    rows, seqlen, nheads, longest,
    HALF: tl.constexpr, HAS_POSITIONS: tl.constexpr, INVERSE: tl.constexpr, ROWS: tl.constexpr, PAIRED: tl.constexpr,
):  # fmt: skip
    """(x1, x2) become (x1 cos - x2 sin, x2 cos + x1 sin); INVERSE turns by the negative angle."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    h, token = row % nheads, row // nheads
    b, s = token // seqlen, token % seqlen
    d = tl.arange(0, PAIRED)
    inside = (row[:, None] < rows) & (d[None, :] < HALF)  # [R, PAIRED]
    at = s
    if HAS_POSITIONS:
        at = tl.load(positions + b * positions_b + s * positions_s, mask=row < rows, other=0).to(tl.int64)
    # A position that the tables do not have gives NaN, never what lies beyond them.
    known = inside & (at >= 0)[:, None] & (at < longest)[:, None]
    c = tl.load(cos + (at * cos_s)[:, None] + d[None, :] * cos_d, mask=known, other=float("nan")).to(tl.float32)
    n = tl.load(sin + (at * sin_s)[:, None] + d[None, :] * sin_d, mask=known, other=float("nan")).to(tl.float32)
    if INVERSE:
        n = -n
    of = x + (b * x_b + s * x_s + h * x_h)[:, None] + d[None, :]
    first = tl.load(of, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(of + HALF, mask=inside, other=0.0).to(tl.float32)
    to = y + (row * (2 * HALF))[:, None] + d[None, :]
    tl.store(to, (first * c - second * n).to(y.dtype.element_ty), mask=inside)
    tl.store(to + HALF, (second * c + first * n).to(y.dtype.element_ty), mask=inside)


def arguments_of(
    x: Tensor, y: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, inverse: bool
) -> dict[str, object]:
    """The kernel's arguments by name."""
    half = x.shape[-1] // 2
    places = (0, 0) if positions is None else (0, *positions.stride())[-2:]
    names = ("x_b", "x_s", "x_h", "cos_s", "cos_d", "sin_s", "sin_d", "positions_b", "positions_s")
    strides = (*x.stride()[:3], *cos.stride(), *sin.stride(), *places)
    return dict(
        zip(names, strides, strict=True), x=x, y=y, cos=cos, sin=sin, positions=x if positions is None else positions,
        rows=x.shape[0] * x.shape[1] * x.shape[2], seqlen=x.shape[1], nheads=x.shape[2], longest=cos.shape[0],
        HALF=half, HAS_POSITIONS=positions is not None, INVERSE=inverse, PAIRED=power_of_two(half, 1),
        ROWS=max(1, PAIRS // power_of_two(half, 1)),
    )  # fmt: skip


def turn(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, inverse: bool) -> Tensor:
    """x turned, contiguous, in x's dtype."""
    dtype = x.dtype
    x, cos, sin = widened(x, cos, sin)  # type: ignore[assignment]
    y = x.new_empty(x.shape)
    words = arguments_of(x, y, cos, sin, positions, inverse)
    programs = triton.cdiv(words["rows"], words["ROWS"])
    if programs:
        turn_kernel[(programs,)](**words, num_warps=WARPS)
    return y.to(dtype)


@on_its_device
def rotary_forward(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None) -> Tensor:
    """`undivided.rotary` on plain tensors (Su et al. 2021, section 3.2), computed in float32.

    Args:
        x: (batch, seqlen, nheads, head_dim), head_dim even, last stride 1.
        cos, sin: (longest, head_dim / 2), any float dtype and strides.
        positions: int (seqlen,) or (batch, seqlen), rows of cos and sin; None is 0, 1, 2, ... One that they do not
            have gives NaN.

    Returns:
        x's shape and dtype, contiguous.
    """
    return turn(x, cos, sin, positions, inverse=False)
