"""Rotary position embedding on a CPU: launchers over `undivided._C`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from . import CPU, DTYPES, address


def _turn(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    shift: int = 0,
    inverse: bool = False,
) -> Tensor:
    batch, seqlen, nheads, head_dim = x.shape
    y = x.new_empty(x.shape)
    if not y.numel():
        return y
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    places: tuple[int, ...] = (0, 0)
    if positions is not None:
        positions = positions.long()
        places = (0, *positions.stride())[-2:]
    _C.rotary(
        address(x),
        address(cos),
        address(sin),
        address(positions),
        address(starts),
        shift,
        y.data_ptr(),
        batch,
        seqlen,
        nheads,
        head_dim // 2,
        cos.shape[0],
        *x.stride()[:3],
        *places,
        inverse,
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return y


def turn_behind(x: Tensor, cos: Tensor, sin: Tensor, starts: Tensor, shift: int) -> Tensor:
    """As `rotary_forward`, for tokens one after the other: x[b, 0] has position starts[b] + shift; starts int32
    (batch,), contiguous. Before the first position is the first, as in the reference."""
    if shift < 0:
        places = starts.long()[:, None] + torch.arange(shift, shift + x.shape[1], device=CPU)
        return _turn(x, cos, sin, places.clamp_(min=0))
    return _turn(x, cos, sin, starts=starts, shift=shift)


def rotary_forward(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None) -> Tensor:
    """`undivided.rotary` on plain tensors (Su et al. 2021, section 3.2), computed in float32.

    Args:
        x: (batch, seqlen, nheads, head_dim), head_dim even, last stride 1; float32, bfloat16 or float16.
        cos, sin: (longest, head_dim / 2), any float dtype and strides.
        positions: int (seqlen,) or (batch, seqlen), rows of cos and sin; None is 0, 1, 2, ... One that they do not
            have gives NaN.

    Returns:
        x's shape and dtype, contiguous.
    """
    return _turn(x, cos, sin, positions)


def rotary_backward(dy: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None) -> Tensor:
    """The gradient of x, from that of y: the turn by the negative angle. Arguments and result as `rotary_forward`."""
    return _turn(dy, cos, sin, positions, inverse=True)
