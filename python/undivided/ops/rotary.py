"""Rotary position embedding: the public op."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from .checks import has_shape, is_float, is_integer, readable, same_device


def rotary(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Turns each pair (x[i], x[i + head_dim / 2]) by its position's angle (Su et al. 2021, section 3.2).

    Args:
        x: (batch, seqlen, nheads, head_dim), head_dim even.
        cos, sin: (max_seqlen, head_dim / 2), float32, of position times frequency.
        positions: int (seqlen,) or (batch, seqlen), rows of cos and sin; None is 0, 1, 2, ...

    Returns:
        as x. Differentiable in x.

    Raises:
        ValueError, TypeError: a shape or dtype that is not allowed.
    """
    is_float("x", x)
    if x.dim() != 4 or x.shape[-1] % 2 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, seqlen, nheads, head_dim) with head_dim even")
    for name, value in (("cos", cos), ("sin", sin)):
        is_float(name, value)
        same_device("x", x, name, value)
        longest = value.shape[0] if value.dim() == 2 else 0
        has_shape(name, value, (longest, x.shape[-1] // 2), "(max_seqlen, head_dim / 2)")
    has_shape("sin", sin, tuple(cos.shape), "the shape of cos")
    if positions is not None:
        _check_positions(positions, x, cos.shape[0])
    elif cos.shape[0] < x.shape[1]:
        raise ValueError(f"cos has {cos.shape[0]} positions, x has seqlen {x.shape[1]}; make the table longer")
    return reference.rotary(x, cos, sin, positions)


def _check_positions(positions: Tensor, x: Tensor, longest: int) -> None:
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
