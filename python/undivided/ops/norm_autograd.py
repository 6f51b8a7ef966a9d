"""Autograd of layer norm and RMS norm over any backend of kernels.

The two differ only in their launchers: RMS norm has neither a mean nor a bias.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..dispatch import load
from .derivatives import first_derivatives_only, given_back, refuse_transforms
from .direct import DIRECT, any_requires_grad, plain_call, without_python
from .norm_checks import kernel_weight, wants_grad
from .registration import by_registered_op, register, register_gradient

CPU = {op: f"undivided.cpu.{op}" for op in ("layer_norm", "rms_norm")}


def launch(op: str, module: str, x: Tensor, weight: Any, bias: Any, residual: Any, eps: float) -> Any:
    """(y, summed or None, mean or None, rstd); x and residual are (..., columns)."""
    launchers = load(module)
    if op == "layer_norm":
        return launchers.layer_norm_forward(x, weight, bias, residual, eps)
    y, summed, rstd = launchers.rms_norm_forward(x, weight, residual, eps)
    return y, summed, None, rstd


def launch_backward(
    op: str,
    module: str,
    dy: Tensor | None,
    dsummed: Any,
    x: Tensor,
    weight: Any,
    mean: Any,
    rstd: Tensor,
    has_bias: bool,
) -> Any:
    """(dx, dweight or None, dbias or None); x is what was normalised.

    What was saved may come back from hooks with other strides, a weight in any float dtype."""
    launchers = load(module)
    dy = torch.zeros_like(x) if dy is None else dy
    given_back(op, dy.dtype, x=x)
    given_back(op, torch.float32, mean=mean, rstd=rstd)
    weight = kernel_weight(weight)
    mean, rstd = None if mean is None else mean.contiguous(), rstd.contiguous()
    if op == "layer_norm":
        return launchers.layer_norm_backward(dy, dsummed, x, weight, mean, rstd, has_bias)
    dx, dweight = launchers.rms_norm_backward(dy, dsummed, x, weight, rstd)
    return dx, dweight, None


def _backward_directly(ctx: Any, saved: Any, dy: Tensor | None, dsummed: Tensor | None) -> Any:
    op, module = ctx.names
    if module != CPU[op] or dy is None or dy.is_neg() or (dsummed is not None and dsummed.is_neg()):
        return None
    grads = load(DIRECT).norm_backward(op, dy, dsummed, *saved, ctx.has_bias)
    return None if grads is None else (*grads, grads[0] if ctx.has_residual else None, None, None)


class NormFunction(torch.autograd.Function):
    """apply(x, weight, bias, residual, (op, module), what `launch` gave for them) -> (y, summed or None)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, residual: Any, names: Any, launched: Any) -> Any:
        y, summed, mean, rstd = launched
        ctx.save_for_backward(x if summed is None else summed, weight, mean, rstd)
        ctx.names, ctx.has_bias, ctx.has_residual = names, bias is not None, residual is not None
        ctx.set_materialize_grads(False)
        return y, summed

    @staticmethod
    @first_derivatives_only("layer_norm or rms_norm", directly=_backward_directly)
    def backward(ctx: Any, saved: Any, dy: Tensor | None, dsummed: Tensor | None) -> Any:
        x, weight, mean, rstd = saved
        op, module = ctx.names
        grads = launch_backward(op, module, dy, dsummed, x, weight, mean, rstd, ctx.has_bias)
        return *grads, grads[0] if ctx.has_residual else None, None, None


apply_plainly = without_python(NormFunction)


def _absent(x: Tensor) -> Tensor:
    """A registered op returns tensors only: an empty one stands for None."""
    return x.new_empty(0)


def _forward(op: str, module: str, x: Tensor, weight: Any, bias: Any, residual: Any, eps: float) -> Any:
    y, summed, mean, rstd = launch(op, module, x, weight, bias, residual, eps)
    return y, _absent(x) if summed is None else summed, _absent(rstd) if mean is None else mean, rstd


def _forward_fake(op: str, module: str, x: Tensor, weight: Any, bias: Any, residual: Any, eps: float) -> Any:
    rstd = torch.empty(math.prod(x.shape[:-1]), dtype=torch.float32, device=x.device)
    mean = torch.empty_like(rstd) if op == "layer_norm" else _absent(rstd)
    return x.new_empty(x.shape), _absent(x) if residual is None else x.new_empty(x.shape), mean, rstd


def _backward(
    op: str, module: str, dy: Tensor, dsummed: Any, x: Tensor, weight: Any, mean: Any, rstd: Any, has_bias: bool
) -> Any:
    grads = launch_backward(op, module, dy, dsummed, x, weight, mean, rstd, has_bias)
    return tuple(_absent(x) if grad is None else grad for grad in grads)


def _backward_fake(
    op: str, module: str, dy: Tensor, dsummed: Any, x: Tensor, weight: Any, mean: Any, rstd: Any, has_bias: bool
) -> Any:
    dweight = _absent(x) if weight is None else torch.empty_like(weight)
    return x.new_empty(x.shape), dweight, torch.empty_like(weight) if has_bias else _absent(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    op, module, x, weight, bias, residual, _ = inputs
    _, summed, mean, rstd = output
    ctx.save_for_backward(x if residual is None else summed, weight, mean, rstd)
    ctx.names, ctx.has_bias, ctx.has_residual = (op, module), bias is not None, residual is not None
    ctx.has_weight = weight is not None
    ctx.set_materialize_grads(False)


@first_derivatives_only("layer_norm or rms_norm")
def _autograd(ctx: Any, saved: Any, dy: Tensor | None, dsummed: Tensor | None, *_: Any) -> Any:
    x = saved[0]
    dy = torch.zeros_like(x) if dy is None else dy
    dsummed = dsummed if ctx.has_residual else None
    dx, dweight, dbias = torch.ops.undivided.norm_backward(*ctx.names, dy, dsummed, *saved, ctx.has_bias)
    dweight, dbias = dweight if ctx.has_weight else None, dbias if ctx.has_bias else None
    return None, None, dx, dweight, dbias, dx if ctx.has_residual else None, None


register(
    "norm_forward",
    "(str op, str module, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
register(
    "norm_backward",
    "(str op, str module, Tensor dy, Tensor? dsummed, Tensor x, Tensor? weight, Tensor mean, Tensor rstd, "
    "bool has_bias) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
register_gradient("norm_forward", _autograd, _setup)


def apply(op: str, module: str, x: Tensor, weight: Any, bias: Any, residual: Any, eps: float) -> tuple[Tensor, Any]:
    """(y, summed) with gradients, by the cheapest path that the caller's mode allows."""
    if by_registered_op(x, weight, bias, residual):
        return torch.ops.undivided.norm_forward(op, module, x, weight, bias, residual, eps)[:2]
    refuse_transforms(op, x, weight, bias, residual)
    if not wants_grad(x, weight, bias, residual):
        return launch(op, module, x, weight, bias, residual, eps)[:2]
    with torch.no_grad():
        launched = launch(op, module, x, weight, bias, residual, eps)
    return NormFunction.apply(x, weight, bias, residual, (op, module), launched)


def directly(
    op: str, backend: str, x: Any, residual: Any, weight: Any, bias: Any, eps: Any
) -> Tensor | tuple[Tensor, Tensor] | None:
    """What the op gives, past its checks and the choice of a backend; None where it must go its usual way."""
    if not plain_call(backend, x):
        return None
    wanted = torch.is_grad_enabled() and any_requires_grad(x, residual, weight, bias)
    launched = load(DIRECT).norm(op, x, residual, weight, bias, eps, wanted)
    if launched is None:
        return None
    y, summed = launched[:2]
    if wanted:
        y, summed = apply_plainly(x, weight, bias, residual, (op, CPU[op]), launched)
    return y if summed is None else (y, summed)
