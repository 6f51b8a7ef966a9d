"""Autograd of rotary over any backend of kernels.

A turn is linear in x, and its gradient is the turn by the negative angle: derivatives of every order are turns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import load
from .checks import last_contiguous
from .derivatives import refuse_batched, refuse_transforms
from .direct import DIRECT, any_requires_grad, plain_call, without_python
from .registration import by_registered_op, register, register_gradient

CPU = "undivided.cpu.rotary"


def launch(module: str, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, inverse: bool) -> Tensor:
    launchers = load(module)
    turn = launchers.rotary_backward if inverse else launchers.rotary_forward
    return turn(last_contiguous(x), cos, sin, positions)


class RotaryFunction(torch.autograd.Function):
    """apply(x, cos, sin, positions, (module, inverse), (y,)) -> y, which is what `launch` gave: in a tuple, since a
    tensor that a Function gets and gives could not be changed in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, positions: Any, names: Any, launched: tuple[Tensor]
    ) -> Tensor:
        ctx.save_for_backward(cos, sin, positions)
        ctx.names = names
        return launched[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        refuse_batched("rotary", dy)
        cos, sin, positions = ctx.saved_tensors
        module, inverse = ctx.names
        dx = directly("cpu", dy, cos, sin, positions, not inverse) if module == CPU else None
        dx = apply(module, dy, cos, sin, positions, not inverse) if dx is None else dx
        return dx, None, None, None, None, None


apply_plainly = without_python(RotaryFunction)


def _fake(module: str, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, inverse: bool) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    module, _, cos, sin, positions, inverse = inputs
    ctx.save_for_backward(cos, sin, positions)
    ctx.module, ctx.inverse = module, inverse


def _autograd(ctx: Any, dy: Tensor) -> Any:
    dx = torch.ops.undivided.rotary(ctx.module, dy, *ctx.saved_tensors, not ctx.inverse)
    return None, dx, None, None, None, None


register(
    "rotary", "(str module, Tensor x, Tensor cos, Tensor sin, Tensor? positions, bool inverse) -> Tensor", launch, _fake
)
register_gradient("rotary", _autograd, _setup)


def apply(module: str, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, inverse: bool = False) -> Tensor:
    """y with gradients, by the cheapest path that the caller's mode allows."""
    if by_registered_op(x, cos, sin, positions):
        return torch.ops.undivided.rotary(module, x, cos, sin, positions, inverse)
    refuse_transforms("rotary", x, cos, sin)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return launch(module, x, cos, sin, positions, inverse)
    with torch.no_grad():
        y = launch(module, x, cos, sin, positions, inverse)
    return RotaryFunction.apply(x, cos, sin, positions, (module, inverse), (y,))


def directly(backend: str, x: Any, cos: Any, sin: Any, positions: Any, inverse: bool = False) -> Tensor | None:
    """What the op gives, past its checks and the choice of a backend; None where it must go its usual way."""
    if not plain_call(backend, x) or (torch.is_grad_enabled() and any_requires_grad(cos, sin)):
        return None
    y: Tensor | None = load(DIRECT).rotary(x, cos, sin, positions, inverse)
    if y is not None and torch.is_grad_enabled() and x.requires_grad:
        y = apply_plainly(x, cos, sin, positions, (CPU, inverse), (y,))
    return y
