"""The feed-forward network on a CPU: library matrix products, and one pass of `undivided._C` between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _C
from ..products import add_product, gradient_of_weight, product
from . import DTYPES, address

ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3}  # the codes of csrc/cpu/feed_forward.h


def feed_forward_forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    activation: str,
    w_gate: Tensor | None,
    *,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(out, h, g): out (rows, d_model); h = x w_in^T + b_in and g = x w_gate^T, (rows, d_ff), None unless `save`."""
    # In 16 bits the library adds the bias before it rounds; in float32 our pass is cheaper than the library's copy.
    bias = b_in if b_in is None or b_in.dtype != torch.float32 else b_in.contiguous()
    separate = bias is not None and bias.dtype == torch.float32
    h = product(x, w_in, None if separate else bias)
    g = None if w_gate is None else product(x, w_gate)
    a = torch.empty_like(h) if save else h
    rows, columns = h.shape
    _C.feed_forward_forward(
        h.data_ptr(),
        address(bias) if separate else 0,
        address(g),
        h.data_ptr() if save else 0,
        a.data_ptr(),
        rows,
        columns,
        DTYPES[h.dtype],
        ACTIVATIONS[activation],
        torch.get_num_threads(),
    )
    out = product(a, w_out, b_out)
    return (out, h, g) if save else (out, None, None)


def feed_forward_backward(
    dout: Tensor,
    x: Tensor,
    h: Tensor,
    g: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    w_gate: Tensor | None,
    activation: str,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """(dx, dw_in, db_in, dw_out, db_out, dw_gate), None where `needs`, in the same order, is False.

    The activation is made again from h, so that it was not kept; bias gradients are summed in float32 in an order that
    depends on the shape alone.
    """
    needs_x, needs_in, needs_bias, needs_out, needs_b_out, needs_gate = needs
    dx = dw_in = db_in = dw_out = dw_gate = None
    if any((needs_x, needs_in, needs_bias, needs_gate)) or needs_out:
        dh = product(dout, w_out.T)
        a = torch.empty_like(dh) if needs_out else None
        dg = None if g is None else torch.empty_like(dh)
        db_in = dh.new_empty(dh.shape[1]) if needs_bias else None
        _C.feed_forward_backward(
            dh.data_ptr(),
            h.data_ptr(),
            address(g),
            dh.data_ptr(),
            address(dg),
            address(a),
            address(db_in),
            *dh.shape,
            DTYPES[dh.dtype],
            ACTIVATIONS[activation],
            torch.get_num_threads(),
        )
        dw_out = gradient_of_weight(dout, a) if a is not None else None
        dw_in = gradient_of_weight(dh, x) if needs_in else None
        dw_gate = gradient_of_weight(dg, x) if needs_gate and dg is not None else None
        if needs_x:
            dx = product(dh, w_in.T)
            if dg is not None and w_gate is not None:
                add_product(dx, dg, w_gate)
    db_out = dout.sum(0, dtype=torch.float32).to(dout.dtype) if needs_b_out else None
    return dx, dw_in, db_in, dw_out, db_out, dw_gate
