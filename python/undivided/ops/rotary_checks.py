"""Validation of the tables and positions of rotary, alone and as a word of attention."""

from __future__ import annotations

from torch import Tensor

from .checks import has_shape, is_float, is_integer, readable, same_device


def check_tables(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """x: (..., head_dim), head_dim even."""
    for name, value in (("cos", cos), ("sin", sin)):
        is_float(name, value)
        same_device("x", x, name, value)
        longest = value.shape[0] if value.dim() == 2 else 0
        has_shape(name, value, (longest, x.shape[-1] // 2), "(max_seqlen, head_dim / 2)")
    has_shape("sin", sin, tuple(cos.shape), "the shape of cos")


def check_pair(rotary: tuple[Tensor, Tensor] | None, q: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(cos, sin) that attention was given to turn its queries and keys by."""
    if rotary is None:
        return None, None
    if not isinstance(rotary, tuple) or len(rotary) != 2:
        raise TypeError(f"rotary is a {type(rotary).__name__}; allowed: the pair (cos, sin), or None")
    if q.shape[-1] % 2:
        raise ValueError(f"head_dim {q.shape[-1]} must be even for rotary")
    check_tables(q, *rotary)
    return rotary


def check_positions(positions: Tensor, x: Tensor, longest: int) -> None:
    is_integer("positions", positions)
    same_device("x", x, "positions", positions)
    batch, seqlen = x.shape[:2]
    if tuple(positions.shape) not in ((seqlen,), (batch, seqlen)):
        shape = tuple(positions.shape)
        raise ValueError(f"positions has shape {shape}, expected (seqlen,) = ({seqlen},) or ({batch}, {seqlen})")
    if readable(positions):
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= longest:
            raise ValueError(f"positions holds values from {low} to {high}; allowed: 0 to {longest - 1}")
