"""Feed-forward backward: dout w_out with the activation's gradient in one kernel, or a library product and a pass.

The hidden layer a is not kept from the forward: it is computed again from h (and g) in the same pass over them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.host import on_its_device, widened
from . import plan
from .forward import apply_activation
from .matmul import halves, products, tile_of
from .pointwise import finish_gradients, gradients_kernel


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    dout, dout_m,  # (rows, d_model), its stride of rows, in elements; d_model is contiguous
    w_out, w_out_n, w_out_k,  # by strides: n counts d_ff, k counts d_model
    h, g,  # (rows, d_ff), contiguous; g is read only when GATED
    dh, dg, a,  # the same, written; dg only when GATED, a only when WITH_A
    sums,  # float32 (row blocks, d_ff): column sums of dh, written only when WITH_SUMS
    rows, d_model, d_ff,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, WITH_A: tl.constexpr, WITH_SUMS: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """dh, dg, a and column sums of dh; an [M, N] tile a program."""
    m, n = tile_of(tl.program_id(0), rows, d_ff, BLOCK_M, BLOCK_N, GROUP_M)
    i, j = m * BLOCK_M + tl.arange(0, BLOCK_M), n * BLOCK_N + tl.arange(0, BLOCK_N)
    da, _ = products(
        dout, dout_m, w_out, w_out_n, w_out_k, w_out, w_out_n, w_out_k, i, j, rows, d_ff, d_model,
        False, EVEN_K, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    left, right = halves(da, BLOCK_M, BLOCK_N)
    j = n * BLOCK_N + tl.arange(0, BLOCK_N // 2)
    finish_gradients(left, h, g, dh, dg, a, sums, m, i, j, rows, d_ff, ACTIVATION, GATED, WITH_A, WITH_SUMS)
    j += BLOCK_N // 2
    finish_gradients(right, h, g, dh, dg, a, sums, m, i, j, rows, d_ff, ACTIVATION, GATED, WITH_A, WITH_SUMS)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


@on_its_device
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
    dtype = x.dtype
    need_x, need_in, need_b_in, need_out, need_b_out, need_gate = needs
    need_gate = need_gate and w_gate is not None
    dout, x, h, g, w_in, w_out, w_gate = widened(dout, x, h, g, w_in, w_out, w_gate)  # type: ignore[assignment]
    dx = dw_in = db_in = dw_gate = None
    if need_x or need_in or need_b_in or need_gate:
        own = plan.fuses(*dout.shape, h.shape[1], g is not None, dout.dtype)
        dh, dg, a, sums = (_fused if own else _library)(dout, h, g, w_out, activation, need_out, need_b_in)
        dx = product(dh, w_in) if need_x else None
        if dx is not None and w_gate is not None:
            torch.addmm(dx, dg, w_gate, out=dx)
        dw_in = product(dh.T, x) if need_in else None
        dw_gate = product(dg.T, x) if need_gate else None
        db_in = None if sums is None else sums.sum(0)
    else:
        a = apply_activation(h, g, activation, torch.empty_like(h)) if need_out else None
    dw_out = None if a is None else product(dout.T, a)
    db_out = dout.sum(0, dtype=torch.float32) if need_b_out else None
    grads = dx, dw_in, db_in, dw_out, db_out, dw_gate
    return tuple(grad if grad is None else grad.to(dtype) for grad in grads)  # type: ignore[return-value]


def product(first: Tensor, second: Tensor) -> Tensor:
    """first second by the library. With `out` given it is exempt from autocast, so the dtype stays first's."""
    return torch.mm(first, second, out=first.new_empty((first.shape[0], second.shape[1])))


HiddenGradients = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _fused(
    dout: Tensor, h: Tensor, g: Tensor | None, w_out: Tensor, activation: str, with_a: bool, with_sums: bool
) -> HiddenGradients:
    """(dh, dg, a or None, column sums of dh by row block or None) by one kernel; dg is dh without a gate."""
    (rows, d_model), d_ff = dout.shape, h.shape[1]
    row = plan.launch_of("backward", g is not None, dout.dtype)
    blocks = triton.cdiv(rows, row.BLOCK_M)
    dh, dg, a, sums = outputs(torch.empty_like(h), g, blocks, with_a, with_sums)
    grid = (blocks * triton.cdiv(d_ff, row.BLOCK_N),)
    if min(grid):
        backward_kernel[grid](
            dout, dout.stride(0), w_out, w_out.stride(1), w_out.stride(0), h, h if g is None else g,
            dh, dg, dh if a is None else a, dh if sums is None else sums, rows, d_model, d_ff,
            ACTIVATION=activation, GATED=g is not None, WITH_A=with_a, WITH_SUMS=with_sums,
            EVEN_K=d_model % row.BLOCK_K == 0, PRECISION=plan.precision(dout.dtype),
            BLOCK_M=row.BLOCK_M, BLOCK_N=row.BLOCK_N, BLOCK_K=row.BLOCK_K, GROUP_M=row.GROUP_M,
            num_warps=row.num_warps, num_stages=row.num_stages,
        )  # fmt: skip
    return dh, dg, a, sums


def _library(
    dout: Tensor, h: Tensor, g: Tensor | None, w_out: Tensor, activation: str, with_a: bool, with_sums: bool
) -> HiddenGradients:
    """The same by the library's product and one pointwise pass, which writes dh over da."""
    da = product(dout, w_out)
    row = plan.pass_launch()
    grid = tuple(triton.cdiv(size, block) for size, block in zip(h.shape, (row.BLOCK_M, row.BLOCK_N), strict=True))
    dh, dg, a, sums = outputs(da, g, grid[0], with_a, with_sums)
    if min(grid):
        gradients_kernel[grid](
            da, h, h if g is None else g, dh, dg, dh if a is None else a, dh if sums is None else sums, *h.shape,
            ACTIVATION=activation, GATED=g is not None, WITH_A=with_a, WITH_SUMS=with_sums,
            BLOCK_M=row.BLOCK_M, BLOCK_N=row.BLOCK_N, num_warps=row.num_warps,
        )  # fmt: skip
    return dh, dg, a, sums


def outputs(dh: Tensor, g: Tensor | None, blocks: int, with_a: bool, with_sums: bool) -> HiddenGradients:
    """Memory for what a pass over the hidden layer writes, beside dh."""
    dg = dh if g is None else torch.empty_like(g)
    a = torch.empty_like(dh) if with_a else None
    sums = dh.new_empty((blocks, dh.shape[1]), dtype=torch.float32) if with_sums else None
    return dh, dg, a, sums
