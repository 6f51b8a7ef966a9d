"""The linear maps of the layers: torch's, by the fastest of `undivided.products`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ..products import by_few_rows, by_onednn, product

PLAIN = (Tensor, torch.nn.Parameter)  # a subclass, such as a sharded tensor, has its own rules for torch's op alone


class Linear(torch.autograd.Function):
    """product(x, w, bias) with derivatives of any order, x (rows, k)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        return product(x, w, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_bias = ctx.needs_input_grad
        return (
            linear(dy, w.T) if needs_x else None,
            linear(dy.T, x.T) if needs_w else None,
            dy.sum(0) if needs_bias else None,
        )


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """x w^T + bias, as torch.nn.functional.linear: x (..., k), w (n, k), bias (n,) or None -> (..., n), of any dtype.

    On a CPU it takes what is faster than torch's choice (`undivided.products`). Under autocast, torch.compile and
    torch.func it is torch's own. Raises: what torch's raises.
    """
    if (
        type(x) not in PLAIN
        or type(w) not in PLAIN
        or w.dtype != x.dtype
        or w.dim() != 2
        or x.dim() < 2
        or not (bias is None or (bias.dtype == w.dtype and bias.device == w.device and bias.shape == w.shape[:1]))
        or x.shape[-1] != w.shape[1]
        or x.device != w.device
        or torch.compiler.is_compiling()
        or not (by_few_rows(x, w) or by_onednn(x, w))
        or torch.is_autocast_enabled(x.device.type)
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return F.linear(x, w, bias)
    rows = x.flatten(0, -2) if x.dim() != 2 else x
    if torch.is_grad_enabled():
        out: Tensor = Linear.apply(rows, w, bias)  # type: ignore[no-untyped-call]
    else:
        out = product(rows, w, bias)
    return out if x.dim() == 2 else out.unflatten(0, x.shape[:-1])
