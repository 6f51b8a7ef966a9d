"""The passes over the hidden layer that follow a library product, where the product itself is not fused."""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import hidden, hidden_gradients


@triton.jit(do_not_specialize=["rows"])
def activation_kernel(
    h, g, a,  # (rows, d_ff), contiguous; g is read only when GATED; a may be h
    rows, d_ff,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """a = act(h), times g when GATED; a [M, N] tile a program."""
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (i[:, None] < rows) & (j[None, :] < d_ff)
    at = i.to(tl.int64)[:, None] * d_ff + j[None, :]
    pre = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    gate = pre
    if GATED:
        gate = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(a + at, hidden(pre, gate, ACTIVATION, GATED).to(a.dtype.element_ty), mask=inside)


@triton.jit
def finish_gradients(
    da,  # float32 [M, N], 0 beyond rows and d_ff
    h, g,  # (rows, d_ff), contiguous; g is read only when GATED
    dh, dg, a,  # the same, written; dg only when GATED, a only when WITH_A
    sums,  # float32 (row blocks, d_ff): column sums of dh, written only when WITH_SUMS
    m, i, j,  # the row block, its rows [M] and the columns [N]
    rows, d_ff,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, WITH_A: tl.constexpr, WITH_SUMS: tl.constexpr,
):  # fmt: skip
    """What follows da, the gradient of a, for one tile: shared by the fused kernel and the pointwise one."""
    inside = (i[:, None] < rows) & (j[None, :] < d_ff)
    at = i.to(tl.int64)[:, None] * d_ff + j[None, :]
    pre = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    gate = pre
    if GATED:
        gate = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
    d_pre, d_gate, value = hidden_gradients(da, pre, gate, ACTIVATION, GATED)
    tl.store(dh + at, d_pre.to(dh.dtype.element_ty), mask=inside)
    if GATED:
        tl.store(dg + at, d_gate.to(dg.dtype.element_ty), mask=inside)
    if WITH_A:
        tl.store(a + at, value.to(a.dtype.element_ty), mask=inside)
    if WITH_SUMS:
        # Each row block has its own line of partial sums, added up afterwards in a fixed order: no atomics.
        # Rows outside are left out by name: 0 times an infinite weight would make their da NaN.
        line = tl.sum(tl.where(inside, d_pre, 0.0), 0)
        tl.store(sums + m.to(tl.int64) * d_ff + j, line, mask=j < d_ff)


@triton.jit(do_not_specialize=["rows"])
def gradients_kernel(
    da, h, g,  # (rows, d_ff), contiguous; g is read only when GATED
    dh, dg, a,  # the same, written; dh may be da; dg only when GATED, a only when WITH_A
    sums,  # float32 (row blocks, d_ff), written only when WITH_SUMS
    rows, d_ff,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, WITH_A: tl.constexpr, WITH_SUMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dh, dg, a and column sums of dh from da; an [M, N] tile a program."""
    m = tl.program_id(0)
    i = m * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (i[:, None] < rows) & (j[None, :] < d_ff)
    at = i.to(tl.int64)[:, None] * d_ff + j[None, :]
    grad = tl.load(da + at, mask=inside, other=0.0).to(tl.float32)
    finish_gradients(grad, h, g, dh, dg, a, sums, m, i, j, rows, d_ff, ACTIVATION, GATED, WITH_A, WITH_SUMS)
