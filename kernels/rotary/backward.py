"""Rotary backward: the launcher. A turn keeps lengths and angles, so its gradient is turned back."""

from __future__ import annotations

from torch import Tensor

from ..common.host import on_its_device
from .forward import turn


@on_its_device
def rotary_backward(dy: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None) -> Tensor:
    """The gradient of x, from dy as x; the other arguments and the result are those of `rotary_forward`."""
    return turn(dy, cos, sin, positions, inverse=True)
