"""The feed-forward network on a Hopper GPU: the launchers of csrc/cuda/feed_forward_forward.cu and its backward.

The products that touch the activation are ours; the others are the library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C
from .addresses import ALIGNMENT, DTYPES, FARTHEST, address, stream_of

ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_tanh": 2, "silu": 3}  # those of csrc/cuda/feed_forward.h
BLOCK = 64  # rows of x whose gradients of b_in are summed together


def feed_forward_forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    activation: str,
    w_gate: Tensor | None = None,
    *,
    save: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(out, h, g): `undivided.feed_forward` on a matrix of rows, and what its backward needs.

    Args:
        x: (rows, d_model), last stride 1. w_in, w_gate: (d_ff, d_model); w_out: (d_model, d_ff), any strides: what the
            copy engine cannot address is copied first. d_model and d_ff are multiples of 8.
        b_in: (d_ff,), b_out: (d_model,), or None. One dtype: bfloat16 or float16.
        save: whether h and g are wanted.

    Returns:
        out: (rows, d_model). h = x w_in^T + b_in and g = x w_gate^T: (rows, d_ff), or None without `save`; g is None
        without w_gate. All contiguous, in x's dtype. The activation is made from h as it is rounded, saved or not.
    """
    a = x.new_empty((x.shape[0], w_in.shape[0]))
    h = torch.empty_like(a) if save else None
    g = torch.empty_like(a) if save and w_gate is not None else None
    if a.numel():
        x, w_in = addressable(x), addressable(w_in)
        w_gate = None if w_gate is None else addressable(w_gate)
        b_in = None if b_in is None else addressable(b_in)
        _C.cuda_feed_forward_forward(
            sizes(x, w_in.shape[0], activation), *matrix(x), *matrix(w_in), *matrix(w_gate), address(b_in), address(h),
            address(g), address(a),
        )  # fmt: skip
    out = a.new_empty((a.shape[0], w_out.shape[0]))
    if b_out is None:
        return torch.mm(a, w_out.T, out=out), h, g
    return torch.addmm(b_out, a, w_out.T, out=out), h, g


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def feed_forward_backward(
    dout: Tensor,
    x: Tensor,
    h: Tensor,
    g: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    w_gate: Tensor | None,
    activation: str,
    needs: Sequence[bool] = (True,) * 6,
) -> Gradients:
    """(dx, dw_in, db_in, dw_out, db_out, dw_gate), None where `needs`, in the same order, is False.

    Args:
        dout: (rows, d_model), contiguous. x, w_in, w_out, w_gate: those of `feed_forward_forward`; h, g: its results.
        needs: False as well for a bias or a gate that the forward did not have.

    Returns:
        Each contiguous, in x's dtype and the shape of what it is the gradient of.
    """
    need_x, need_in, need_b_in, need_out, need_b_out, need_gate = needs
    dx = dw_in = db_in = dw_out = dw_gate = None
    if any((need_x, need_in, need_b_in, need_out, need_gate)):
        dh, dg, a, sums = hidden_gradients(dout, h, g, w_out, activation, need_out, need_b_in)
        dx = product(dh, w_in) if need_x else None
        if dx is not None and dg is not None and w_gate is not None:
            torch.addmm(dx, dg, w_gate, out=dx)
        dw_in = product(dh.T, x) if need_in else None
        dw_gate = product(dg.T, x) if need_gate and dg is not None else None
        db_in = None if sums is None else sums.sum(0).to(x.dtype)
        dw_out = None if a is None else product(dout.T, a)
    db_out = dout.sum(0, dtype=torch.float32).to(x.dtype) if need_b_out else None
    return dx, dw_in, db_in, dw_out, db_out, dw_gate


def hidden_gradients(
    dout: Tensor, h: Tensor, g: Tensor | None, w_out: Tensor, activation: str, with_a: bool, with_sums: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(dh, dg, a, float32 column sums of dh by blocks of rows); all but the first None where not wanted."""
    dh = torch.empty_like(h)
    dg = None if g is None else torch.empty_like(g)
    a = torch.empty_like(h) if with_a else None
    blocks = -(-h.shape[0] // BLOCK)
    sums = h.new_empty((blocks, h.shape[1]), dtype=torch.float32) if with_sums else None
    if h.numel():
        dout, w_out = addressable(dout), addressable(w_out)
        _C.cuda_feed_forward_backward(
            sizes(dout, h.shape[1], activation), *matrix(dout), *matrix(w_out), address(h), address(g), address(dh),
            address(dg), address(a), address(sums),
        )  # fmt: skip
    return dh, dg, a, sums


def product(first: Tensor, second: Tensor) -> Tensor:
    """first second by the library. With `out` given it is exempt from autocast, so the dtype stays first's."""
    return torch.mm(first, second, out=first.new_empty((first.shape[0], second.shape[1])))


def sizes(x: Tensor, d_ff: int, activation: str) -> Any:
    """What both calls have, as the extension takes it. x: (rows, d_model)."""
    device = x.device.index or 0
    return _C.CudaFeedForward(DTYPES[x.dtype], ACTIVATIONS[activation], *x.shape, d_ff, device, stream_of(x.device))


def matrix(x: Tensor | None) -> tuple[int, int]:
    """Address and stride of rows; of one row no stride is used."""
    return (0, 0) if x is None else (x.data_ptr(), x.shape[1] if x.shape[0] == 1 else x.stride(0))


def addressable(x: Tensor) -> Tensor:
    """`x`, a matrix or a vector, or a contiguous copy where the copy engine cannot address it: rows that are not
    contiguous or on top of one another, or starts that are no multiples of 16 bytes."""
    step = x.stride(0) * x.element_size() if x.dim() == 2 and x.shape[0] > 1 else ALIGNMENT
    ok = x.stride(-1) == 1 and x.data_ptr() % ALIGNMENT == 0 and 0 < step < FARTHEST and step % ALIGNMENT == 0
    return x if ok else x.clone(memory_format=torch.contiguous_format)
