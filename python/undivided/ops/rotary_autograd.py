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
from .registration import by_registered_op, register, register_gradient


def launch(module: str, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, inverse: bool) -> Tensor:
    launchers = load(module)
    turn = launchers.rotary_backward if inverse else launchers.rotary_forward
    return turn(last_contiguous(x), cos, sin, positions)


class RotaryFunction(torch.autograd.Function):
    """apply(module, x, cos, sin, positions, inverse) -> y."""

    @staticmethod
    def forward(ctx: Any, module: str, x: Tensor, cos: Tensor, sin: Tensor, positions: Any, inverse: bool) -> Tensor:
        ctx.save_for_backward(cos, sin, positions)
        ctx.module, ctx.inverse = module, inverse
        return launch(module, x, cos, sin, positions, inverse)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        refuse_batched("rotary", dy)
        cos, sin, positions = ctx.saved_tensors
        return None, apply(ctx.module, dy, cos, sin, positions, not ctx.inverse), None, None, None, None


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
    if torch.is_grad_enabled() and x.requires_grad:
        return RotaryFunction.apply(module, x, cos, sin, positions, inverse)
    return launch(module, x, cos, sin, positions, inverse)
