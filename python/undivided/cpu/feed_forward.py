"""The feed-forward network on a CPU: library matrix products, and one pass of `undivided._C` between them.

Where libraries are slow in bfloat16 the whole of it runs in float32, some rows at a time, and rounds what it returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import _C
from ..products import MOST_WIDENED, by_onednn, by_widening, product
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
    """(out, h, g): out (rows, d_model); h = x w_in^T + b_in and g = x w_gate^T, (rows, d_ff), None unless `save`.

    Of relu without a gate h is the activation, which has the same sign where a gradient passes.
    """
    if by_widening(x, w_in, x.dtype):
        return _widened_forward(x, (w_in, b_in, w_out, b_out), activation, w_gate, save)
    # In 16 bits the library adds the bias before it rounds; in float32 our pass is cheaper than the library's copy.
    bias = b_in if b_in is None or b_in.dtype != torch.float32 else b_in.contiguous()
    separate = bias is not None and bias.dtype == torch.float32
    h = product(x, w_in, None if separate else bias)
    g = None if w_gate is None else product(x, w_gate)
    keeps_h = save and not _is_own_derivative(activation, g)
    a = torch.empty_like(h) if keeps_h else h
    rows, columns = h.shape
    _C.feed_forward_forward(
        address(h),
        address(bias) if separate else 0,
        address(g),
        address(h) if keeps_h else 0,
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

    The activation is made again from h where it was not kept; bias gradients are summed in float32 in an order that
    depends on the shape alone.
    """
    if by_widening(x, w_in, x.dtype):
        return _widened_backward(dout, (x, h, g), (w_in, w_out, w_gate), activation, needs)
    needs_x, needs_in, needs_bias, needs_out, needs_b_out, needs_gate = needs
    dx = dw_in = db_in = dw_out = dw_gate = None
    if any((needs_x, needs_in, needs_bias, needs_gate)) or needs_out:
        dh = product(dout, w_out.T)
        kept = _is_own_derivative(activation, g)
        a = None if not needs_out else h if kept else torch.empty_like(dh)
        dg = None if g is None else torch.empty_like(dh)
        db_in = dh.new_empty(dh.shape[1]) if needs_bias else None
        _C.feed_forward_backward(
            dh.data_ptr(),
            address(h),
            address(g),
            dh.data_ptr(),
            address(dg),
            0 if kept else address(a),
            address(db_in),
            *dh.shape,
            DTYPES[dh.dtype],
            ACTIVATIONS[activation],
            torch.get_num_threads(),
        )
        dw_out = product(dout.T, a.T) if a is not None else None
        dw_in = product(dh.T, x.T) if needs_in else None
        dw_gate = product(dg.T, x.T) if needs_gate and dg is not None else None
        if needs_x:
            dx = product(dh, w_in.T)
            if dg is not None and w_gate is not None:
                dx = dx.add_(product(dg, w_gate.T)) if by_onednn(dg, w_gate.T) else dx.addmm_(dg, w_gate)
    db_out = dout.sum(0) if needs_b_out else None  # torch sums 16 bits in float32, and rounds once
    return dx, dw_in, db_in, dw_out, db_out, dw_gate


def _is_own_derivative(activation: str, g: Tensor | None) -> bool:
    """Whether the derivative can be told from the activation."""
    return activation == "relu" and g is None


def _parts(rows: int, columns: int) -> Iterator[slice]:
    """Rows at a time of which float32 copies, `columns` wide, are small enough; they depend on the shape alone."""
    step = max(MOST_WIDENED // columns, 1)
    return (slice(top, top + step) for top in range(0, rows, step))


def _float(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float()


@torch.autocast("cpu", enabled=False)
def _widened_forward(
    x: Tensor, parameters: Sequence[Tensor | None], activation: str, w_gate: Tensor | None, save: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    w_in, b_in, w_out, b_out = (_float(value) for value in parameters)
    w_gate = _float(w_gate)
    assert w_in is not None and w_out is not None
    hidden = (x.shape[0], w_in.shape[0])
    out, h = torch.empty_like(x), x.new_empty(hidden) if save else None
    g = x.new_empty(hidden) if save and w_gate is not None else None
    for part in _parts(*hidden):
        found = feed_forward_forward(x[part].float(), w_in, b_in, w_out, b_out, activation, w_gate, save=save)
        for whole, value in zip((out, h, g), found, strict=True):
            if whole is not None and value is not None:
                whole[part] = value
    return out, h, g


@torch.autocast("cpu", enabled=False)
def _widened_backward(
    dout: Tensor,
    saved: tuple[Tensor, Tensor, Tensor | None],
    weights: tuple[Tensor, Tensor, Tensor | None],
    activation: str,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of weights are summed over the parts in float32."""
    x, h, g = saved
    w_in, w_out, w_gate = (_float(value) for value in weights)
    assert w_in is not None and w_out is not None
    dx = torch.empty_like(x) if needs[0] else None
    sums: list[Tensor | None] = [None] * 5
    for part in _parts(*h.shape):
        of_part = None if g is None else g[part].float()
        values = dout[part].float(), x[part].float(), h[part].float(), of_part, w_in, w_out, w_gate
        found, *more = feed_forward_backward(*values, activation, needs)
        if dx is not None and found is not None:
            dx[part] = found
        sums = [new if old is None or new is None else old.add_(new) for old, new in zip(sums, more, strict=True)]
    return dx, *(None if total is None else total.to(x.dtype) for total in sums)
