"""Feed-forward forward: x w_in^T with bias and activation in one kernel, or a library product and a pointwise pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.host import on_its_device, widened
from . import plan
from .activation import hidden
from .matmul import halves, products, tile_of
from .pointwise import activation_kernel


@triton.jit
def finish_forward(
    pre, gate,  # float32 [M, N]: x w_in^T and x w_gate^T
    b_in, h, g, a,  # as in `forward_kernel`
    i, j,  # [M] and [N]: the rows and columns
    rows, d_ff,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """What follows the products, for one tile or a part of it."""
    if HAS_BIAS:
        pre += tl.load(b_in + j, mask=j < d_ff, other=0.0).to(tl.float32)[None, :]
    inside = (i[:, None] < rows) & (j[None, :] < d_ff)
    at = i.to(tl.int64)[:, None] * d_ff + j[None, :]
    if SAVE:
        tl.store(h + at, pre.to(h.dtype.element_ty), mask=inside)
        if GATED:
            tl.store(g + at, gate.to(g.dtype.element_ty), mask=inside)
    tl.store(a + at, hidden(pre, gate, ACTIVATION, GATED).to(a.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    x, x_m,  # (rows, d_model), its stride of rows, in elements; d_model is contiguous
    w_in, w_in_n, w_in_k,  # (d_ff, d_model) by strides
    w_gate, w_gate_n, w_gate_k,  # the same, read only when GATED
    b_in,  # (d_ff,), read only when HAS_BIAS
    h, g, a,  # (rows, d_ff), contiguous, written; h only when SAVE, g only when SAVE and GATED
    rows, d_model, d_ff,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """h = x w_in^T + b_in, g = x w_gate^T, a = act(h) [g]; an [M, N] tile a program, x's tile shared by both products.

    a is made from the float32 sums, before h and g are rounded to be stored.
    """
    m, n = tile_of(tl.program_id(0), rows, d_ff, BLOCK_M, BLOCK_N, GROUP_M)
    i, j = m * BLOCK_M + tl.arange(0, BLOCK_M), n * BLOCK_N + tl.arange(0, BLOCK_N)
    pre, gate = products(
        x, x_m, w_in, w_in_n, w_in_k, w_gate, w_gate_n, w_gate_k, i, j, rows, d_ff, d_model,
        GATED, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    left, right = halves(pre, BLOCK_M, BLOCK_N)
    gate_left, gate_right = left, right
    if GATED:
        gate_left, gate_right = halves(gate, BLOCK_M, BLOCK_N)
    j = n * BLOCK_N + tl.arange(0, BLOCK_N // 2)
    finish_forward(left, gate_left, b_in, h, g, a, i, j, rows, d_ff, ACTIVATION, GATED, HAS_BIAS, SAVE)
    j += BLOCK_N // 2
    finish_forward(right, gate_right, b_in, h, g, a, i, j, rows, d_ff, ACTIVATION, GATED, HAS_BIAS, SAVE)


@on_its_device
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
        x: (rows, d_model), last stride 1. w_in, w_gate: (d_ff, d_model); w_out: (d_model, d_ff), any strides.
        b_in: (d_ff,), b_out: (d_model,), or None. One dtype: float32, bfloat16 or float16.
        save: whether h and g are wanted.

    Returns:
        out: (rows, d_model). h = x w_in^T + b_in and g = x w_gate^T: (rows, d_ff), or None without `save`; g is None
        without w_gate. All contiguous, in x's dtype.
    """
    dtype = x.dtype
    x, w_in, b_in, w_out, b_out, w_gate = widened(x, w_in, b_in, w_out, b_out, w_gate)  # type: ignore[assignment]
    rows, (d_ff, d_model) = x.shape[0], w_in.shape
    own = plan.fuses(rows, d_model, d_ff, w_gate is not None, x.dtype)
    a, h, g = (_fused if own else _library)(x, w_in, b_in, w_gate, activation, save)
    out = linear(a, w_out, b_out)
    return out.to(dtype), h if h is None else h.to(dtype), g if g is None else g.to(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias by the library. With `out` given it is exempt from autocast, so the dtype stays x's."""
    out = x.new_empty((x.shape[0], weight.shape[0]))
    if bias is None:
        return torch.mm(x, weight.T, out=out)
    return torch.addmm(bias, x, weight.T, out=out)


Hidden = tuple[Tensor, Tensor | None, Tensor | None]


def _fused(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_gate: Tensor | None, activation: str, save: bool) -> Hidden:
    """(a, h, g) by one kernel."""
    rows, (d_ff, d_model), gated = x.shape[0], w_in.shape, w_gate is not None
    a = x.new_empty((rows, d_ff))
    h = torch.empty_like(a) if save else None
    g = torch.empty_like(a) if save and gated else None
    row = plan.launch_of("forward", gated, x.dtype)
    grid = (triton.cdiv(rows, row.BLOCK_M) * triton.cdiv(d_ff, row.BLOCK_N),)
    gate = w_in if w_gate is None else w_gate
    if min(grid):
        forward_kernel[grid](
            x, x.stride(0), w_in, *w_in.stride(), gate, *gate.stride(), x if b_in is None else b_in.contiguous(),
            a if h is None else h, a if g is None else g, a, rows, d_model, d_ff,
            ACTIVATION=activation, GATED=gated, HAS_BIAS=b_in is not None, SAVE=save,
            EVEN_K=d_model % row.BLOCK_K == 0, PRECISION=plan.precision(x.dtype),
            BLOCK_M=row.BLOCK_M, BLOCK_N=row.BLOCK_N, BLOCK_K=row.BLOCK_K, GROUP_M=row.GROUP_M,
            num_warps=row.num_warps, num_stages=row.num_stages,
        )  # fmt: skip
    return a, h, g


def _library(
    x: Tensor, w_in: Tensor, b_in: Tensor | None, w_gate: Tensor | None, activation: str, save: bool
) -> Hidden:
    """(a, h, g) by the library's products, which add the bias for nothing, and one pointwise pass."""
    h = linear(x, w_in, b_in)
    g = None if w_gate is None else linear(x, w_gate, None)
    a = apply_activation(h, g, activation, torch.empty_like(h) if save else h)
    return (a, h, g) if save else (a, None, None)


def apply_activation(h: Tensor, g: Tensor | None, activation: str, a: Tensor) -> Tensor:
    """Fills a, which may be h, with act(h) [g]; all (rows, d_ff), contiguous."""
    row = plan.pass_launch()
    grid = tuple(triton.cdiv(size, block) for size, block in zip(h.shape, (row.BLOCK_M, row.BLOCK_N), strict=True))
    if min(grid):
        activation_kernel[grid](
            h, h if g is None else g, a, *h.shape, ACTIVATION=activation, GATED=g is not None,
            BLOCK_M=row.BLOCK_M, BLOCK_N=row.BLOCK_N, num_warps=row.num_warps,
        )  # fmt: skip
    return a
