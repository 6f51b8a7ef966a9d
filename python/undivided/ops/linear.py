"""The linear maps of the layers: torch's, by the fastest of `undivided.products`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.autograd import forward_ad

from ..dispatch import load
from ..products import FLOATS, MOST_WIDENED, by_onednn, by_widening, for_few_rows, product, widened
from ..reference.precision import autocasting
from .direct import DIRECT, may_go_directly
from .registration import by_registered_op


class Linear(torch.autograd.Function):
    """apply(x, w, bias, dtype): x w^T + bias in `dtype`, with derivatives of any order, x (rows, k)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, w)
        return _product(x, w, bias, dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_bias, _ = ctx.needs_input_grad
        if needs_x and needs_w and dy.numel() <= MOST_WIDENED and by_widening(dy, w.T, dy.dtype):
            dy = dy.float()  # once for both products
        return (
            _linear(dy, w.T, None, x.dtype) if needs_x else None,
            _linear(dy.T, x.T, None, w.dtype) if needs_w else None,
            dy.sum(0, dtype=w.dtype) if needs_bias else None,
            None,
        )


def _product(x: Tensor, w: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    if x.dtype == w.dtype == dtype:
        return product(x, w, bias)
    return widened(x, w, bias, dtype)


def _linear(x: Tensor, w: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What linear takes, differentiable where gradients are wanted; of different dtypes in float32."""
    if x.dtype == w.dtype == dtype:
        return linear(x, w, bias)
    return Linear.apply(x, w, bias, dtype)  # type: ignore[no-untyped-call, no-any-return]


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x w^T + bias, as torch.nn.functional.linear: x (..., k), w (n, k), bias (n,) or None -> (..., n), of any dtype.

    On a CPU it takes what is faster than torch's choice (`undivided.products`); under autocast too, where bfloat16 is
    widened: then the weights are not rounded first. Under torch.compile, torch.jit.trace, torch.func and modes it is
    torch's own.
    Raises: what torch's raises.
    """
    if may_go_directly("auto", x, w, bias):
        found: Tensor | None = load(DIRECT).linear(x, w, bias)
        if found is not None:
            return found
    if x is None or w is None or by_registered_op(x, w, bias):  # the registered op is torch's here, the errors too
        return F.linear(x, w, bias)
    autocast = autocasting(x)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    if (
        not (x.dtype in FLOATS and w.dtype in FLOATS if autocast else w.dtype == dtype)
        or w.dim() != 2
        or x.dim() < 2
        or x.shape[-1] != w.shape[1]
        or x.device != w.device
        or not (bias is None or (bias.dtype == w.dtype and bias.device == w.device and bias.shape == w.shape[:1]))
        or is_batchedtensor(x)  # of many gradients at once
        or is_batchedtensor(w)
    ):
        return F.linear(x, w, bias)
    few = None if autocast else for_few_rows(x, w)
    differentiable = torch.is_grad_enabled()
    added = None if differentiable else bias  # what oneDNN gains by adding it is less than autograd takes in Python
    if (
        not (few is not None or by_widening(x, w, dtype) or (not autocast and by_onednn(x, w, added)))
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return F.linear(x, w, bias)
    if few is not None and not differentiable:
        return few(x, w, bias)
    rows = x.flatten(0, -2) if x.dim() != 2 else x
    if differentiable:
        out: Tensor = Linear.apply(rows, w, bias, dtype)  # type: ignore[no-untyped-call]
    else:
        out = _product(rows, w, bias, dtype)
    return out if x.dim() == 2 else out.view(*x.shape[:-1], -1)
