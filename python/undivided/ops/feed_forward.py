"""The feed-forward network: the public op and its autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..dispatch import FeedForwardCall, choose, load
from .checks import autocast_to, is_float, is_like, last_contiguous
from .derivatives import first_derivatives_only, given_back, refuse_transforms
from .direct import DIRECT, may_go_directly
from .feed_forward_table import FEED_FORWARD
from .norm_checks import wants_grad
from .registration import by_registered_op, register, register_gradient

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


def feed_forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None = None,
    activation: str = "gelu",
    w_gate: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """act(x w_in^T + b_in) w_out^T + b_out (Vaswani et al. 2017, section 3.3), gated when `w_gate` is given.

    Args:
        x: (..., d_model), float32, bfloat16 or float16 (float64 on the reference).
        w_in: (d_ff, d_model); b_in: (d_ff,) or None; w_out: (d_model, d_ff); b_out: (d_model,) or None. x's dtype.
        activation: relu, gelu (exact, by erf), gelu_tanh or silu.
        w_gate: (d_ff, d_model) or None. With it the activation is multiplied by x w_gate^T: silu makes SwiGLU, gelu
            GEGLU (Shazeer 2020, equation 6).

    Returns:
        (..., d_model), x's dtype; under autocast everything is cast to its dtype first, as in torch's linear.

    Raises:
        ValueError, TypeError: a shape, value or dtype that is not allowed.
        BackendRefused: the backend asked for cannot run the call.
        NotImplementedError: a second or forward-mode derivative, or a torch.func transform, of a kernel; the reference
            has them all.
    """
    if may_go_directly(backend, x, w_in, b_in, w_out, b_out, w_gate):
        found: Tensor | None = load(DIRECT).feed_forward(x, w_in, b_in, w_out, b_out, activation, w_gate)
        if found is not None:
            return found
    x, w_in, b_in, w_out, b_out, w_gate = autocast_to(x, w_in, b_in, w_out, b_out, w_gate)  # type: ignore[assignment]
    _check(x, w_in, b_in, w_out, b_out, activation, w_gate)
    d_ff, d_model = w_in.shape
    call = FeedForwardCall(
        device=x.device.type,
        dtype=str(x.dtype).removeprefix("torch."),
        rows=x.numel() // max(d_model, 1),
        d_model=d_model,
        d_ff=d_ff,
        activation=activation,
        gated=w_gate is not None,
        needs_grad=wants_grad(x, w_in, b_in, w_out, b_out, w_gate),
    )
    row = choose(FEED_FORWARD, call, backend)
    if row.name == "reference":
        return reference.feed_forward(x, w_in, b_in, w_out, b_out, activation, w_gate)
    values = (x, w_in, b_in, w_out, b_out, w_gate)
    if by_registered_op(*values):
        return torch.ops.undivided.feed_forward_forward(row.module, activation, call.needs_grad, *values)[0]
    refuse_transforms("feed_forward", *values)
    if call.needs_grad:
        return FeedForwardFunction.apply(row.module, activation, *values)
    return _launch(row.module, activation, False, *values)[0]


def _check(x: Tensor, w_in: Tensor, b_in: Any, w_out: Tensor, b_out: Any, activation: str, w_gate: Any) -> None:
    is_float("x", x)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; allowed: {', '.join(ACTIVATIONS)}")
    is_float("w_in", w_in)
    if w_in.dim() != 2 or x.dim() < 1 or x.shape[-1] != w_in.shape[1]:
        raise ValueError(f"w_in has shape {tuple(w_in.shape)}, expected (d_ff, d_model) with x {tuple(x.shape)}")
    d_ff, d_model = w_in.shape
    if d_ff == 0 or d_model == 0:
        raise ValueError(f"d_ff {d_ff} and d_model {d_model} must be at least 1")
    for name, value, shape, words in (
        ("w_in", w_in, (d_ff, d_model), "(d_ff, d_model)"),
        ("b_in", b_in, (d_ff,), "(d_ff,)"),
        ("w_out", w_out, (d_model, d_ff), "(d_model, d_ff)"),
        ("b_out", b_out, (d_model,), "(d_model,)"),
        ("w_gate", w_gate, (d_ff, d_model), "(d_ff, d_model)"),
    ):
        if value is not None or name == "w_out":
            is_like(name, value, shape, words, "x", x)


def _launch(module: str, activation: str, save: bool, *values: Any) -> Any:
    """(out, h or None, g or None): h and g are the pre-activation and the gate, (rows, d_ff), for the backward."""
    x, w_in, b_in, w_out, b_out, w_gate = values
    launcher = load(module).feed_forward_forward
    out, h, g = launcher(_rows(x), w_in, b_in, w_out, b_out, activation, w_gate, save=save)
    # A view that leaves a Function could not be changed in place.
    return out if x.dim() == 2 else torch.ops.aten._unsafe_view(out, x.shape), h, g


def _launch_backward(module: str, activation: str, dout: Tensor, saved: Any, needs: Sequence[bool]) -> Any:
    """(dx, dw_in, db_in, dw_out, db_out, dw_gate), None where `needs`, in the same order, is False."""
    x, h, g, w_in, w_out, w_gate = saved
    given_back("feed_forward", dout.dtype, x=x, h=h, g=g, w_in=w_in, w_out=w_out, w_gate=w_gate)
    h, g = h.contiguous(), None if g is None else g.contiguous()  # a hook may give them back with other strides
    launcher = load(module).feed_forward_backward
    dout = dout.reshape(-1, dout.shape[-1]).contiguous()
    dx, *grads = launcher(dout, _rows(x), h, g, w_in, w_out, w_gate, activation, tuple(needs))
    return None if dx is None else dx.view(x.shape), *grads


def _rows(x: Tensor) -> Tensor:
    """(..., d_model) as (rows, d_model), a view where the strides allow it."""
    return last_contiguous(x.reshape(-1, x.shape[-1]))


class FeedForwardFunction(torch.autograd.Function):
    """apply(module, activation, x, w_in, b_in, w_out, b_out, w_gate) -> out; x is (..., d_model)."""

    @staticmethod
    def forward(ctx: Any, module: str, activation: str, *values: Any) -> Tensor:
        x, w_in, _, w_out, _, w_gate = values
        out, h, g = _launch(module, activation, True, *values)
        ctx.save_for_backward(x, h, g, w_in, w_out, w_gate)
        ctx.names = module, activation
        return out

    @staticmethod
    @first_derivatives_only("feed_forward")
    def backward(ctx: Any, saved: Any, dout: Tensor) -> Any:
        module, activation = ctx.names
        needs = ctx.needs_input_grad[2:]
        return None, None, *_launch_backward(module, activation, dout, saved, needs)


def _forward(module: str, activation: str, save: bool, x: Tensor, *rest: Any) -> Any:
    """A registered op returns tensors only: an empty one stands for None."""
    return tuple(x.new_empty(0) if t is None else t for t in _launch(module, activation, save, x, *rest))


def _forward_fake(
    module: str, activation: str, save: bool, x: Tensor, w_in: Tensor, b_in: Any, w_out: Any, b_out: Any, w_gate: Any
) -> Any:
    hidden = math.prod(x.shape[:-1]), w_in.shape[0]
    h = x.new_empty(hidden if save else 0)
    return x.new_empty(x.shape), h, x.new_empty(hidden if save and w_gate is not None else 0)


def _backward(module: str, activation: str, dout: Tensor, x: Tensor, *rest: Any) -> Any:
    grads = _launch_backward(module, activation, dout, (x, *rest[:-1]), rest[-1])
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)


def _backward_fake(
    module: str, activation: str, dout: Any, x: Any, h: Any, g: Any, w_in: Any, w_out: Any, w_gate: Any, needs: Any
) -> Any:
    d_ff, d_model = w_in.shape
    shapes = x.shape, w_in.shape, (d_ff,), w_out.shape, (d_model,), w_in.shape
    return tuple(x.new_empty(shape if needed else 0) for shape, needed in zip(shapes, needs, strict=True))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    module, activation, _, x, w_in, _, w_out, _, w_gate = inputs
    _, h, g = output
    ctx.save_for_backward(x, h, None if w_gate is None else g, w_in, w_out, w_gate)
    ctx.names = module, activation


@first_derivatives_only("feed_forward")
def _autograd(ctx: Any, saved: Any, dout: Tensor, *_: Any) -> Any:
    needs = list(ctx.needs_input_grad[3:])
    grads = torch.ops.undivided.feed_forward_backward(*ctx.names, dout, *saved, needs)
    return None, None, None, *(grad if needed else None for grad, needed in zip(grads, needs, strict=True))


register(
    "feed_forward_forward",
    "(str module, str activation, bool save, Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, Tensor? b_out, "
    "Tensor? w_gate) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
register(
    "feed_forward_backward",
    "(str module, str activation, Tensor dout, Tensor x, Tensor h, Tensor? g, Tensor w_in, Tensor w_out, "
    "Tensor? w_gate, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
register_gradient("feed_forward_forward", _autograd, _setup)
