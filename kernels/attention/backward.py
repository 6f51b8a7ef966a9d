"""Attention backward: the launcher. The kernels are in `gradients.py`."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..common.host import capability, on_its_device, power_of_two, widened
from .delta import make_delta
from .gradients import dbias_kernel, dkdv_kernel, dq_kernel
from .launch import Launch, launch_of
from .plan import Plan, make_plan
from .schedule import longest_first

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


@on_its_device
def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    dlse: Tensor | None = None,
    need_bias: bool = False,
    need_table: bool = False,
    need_sinks: bool = False,
    **words: Any,
) -> Gradients:
    """(dq, dk, dv, dbias, dtable, dsinks), None for the last three where they are not needed.

    Args:
        dout: as `out`; dlse: as `lse`, or None. q, k, v, out, lse and `words`: those of `attention_forward`.

    Returns:
        Each in the dtype and shape of what it is the gradient of; dbias has size 1 where the bias has stride 0.
    """
    dtype, bias = q.dtype, words.get("bias")
    q, k, v, out, words["bias"] = widened(q, k, v, out, bias)  # type: ignore[assignment]
    dout = dout.to(q.dtype)
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    plan, sinks, table = make_plan(q, k, v, **words), words.get("sinks"), words.get("relative_table")
    delta = make_delta(out if out.stride(-1) == 1 else out.contiguous(), dout, dlse)
    lse = lse.contiguous()
    # The kernels write every row, but of packed tensors those of their sequences alone. Without queries or keys there
    # is nothing to run.
    whole = q.dim() == 4 and plan.longest_q and plan.longest_k
    dq, dk, dv = ((torch.empty if whole else torch.zeros)(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    shared = dict(
        plan.arguments,
        dout_b=batch_stride(dout),
        dout_s=dout.stride(-3),
        dout_h=dout.stride(-2),
        lse_b=0 if q.dim() == 3 else lse.stride(0),
        lse_h=lse.stride(-2),
    )
    width, compute = max(q.shape[-1], v.shape[-1]), capability(q.device)

    def row_of(kernel: str) -> Launch:
        return launch_of(kernel, plan.arguments, width, q.dtype, compute)

    tensors = (q, k, v, dout, lse, delta)
    dtable = _dq(tensors, dq, plan, row_of("dq"), table if need_table else None, shared)
    row = row_of("dkdv")
    programs = triton.cdiv(plan.longest_k, row.BLOCK_N) * plan.batch * plan.nheads_kv
    if programs and dk.numel():
        order = longest_first(plan, row.BLOCK_N, programs, q.device, of_keys=True)
        names = {f"{n}_{d}": s for n, t in (("dk", dk), ("dv", dv)) for d, s in zip("bsh", strides(t), strict=True)}
        dkdv_kernel[(programs,)](
            *tensors, dk, dv, q if order is None else order, **names, ORDERED=order is not None, **shared, **vars(row)
        )  # fmt: skip
    dbias = _dbias(tensors, bias, plan, row_of("dbias"), shared) if need_bias and bias is not None else None
    dsinks = None
    if need_sinks and sinks is not None:
        # The sink's probability of a row; the loss falls with it as the row's other probabilities shrink.
        p = torch.where(lse == -torch.inf, 0.0, torch.exp(sinks.float()[:, None] - lse))
        dsinks = -(p * delta).sum(-1)
        dsinks = (dsinks if dsinks.dim() == 1 else dsinks.sum(0)).to(sinks.dtype)
    return dq.to(dtype), dk.to(dtype), dv.to(dtype), dbias, dtable, dsinks


def batch_stride(x: Tensor) -> int:
    return 0 if x.dim() == 3 else x.stride(0)


def strides(x: Tensor) -> tuple[int, int, int]:
    """Of batch, sequence and head."""
    return batch_stride(x), x.stride(-3), x.stride(-2)


def _dq(tensors: Any, dq: Tensor, plan: Plan, row: Launch, table: Tensor | None, shared: Any) -> Tensor | None:
    """Fills dq; returns the gradient of the relative table, where one is given."""
    number = 1 if table is None else table.shape[0]
    width = power_of_two(number, 1)
    blocks = triton.cdiv(plan.longest_q, row.BLOCK_M)
    programs = blocks * plan.batch * plan.nheads
    partial = dq.new_zeros((plan.batch, plan.nheads, blocks, width), dtype=torch.float32) if table is not None else dq
    buckets = dq if plan.buckets is None else plan.buckets
    if programs and dq.numel():
        order = longest_first(plan, row.BLOCK_M, programs, dq.device)
        names = dict(zip(("dq_b", "dq_s", "dq_h"), strides(dq), strict=True))
        dq_kernel[(programs,)](
            *tensors, dq, buckets, partial, dq if order is None else order, **names,
            NEEDS_TABLE=table is not None, ORDERED=order is not None, BLOCK_B=width, **shared, **vars(row),
        )  # fmt: skip
    if table is None:
        return None
    return partial.sum((0, 2))[:, :number].T.to(table.dtype).contiguous()  # (num_buckets, nheads)


def _dbias(tensors: Any, bias: Tensor, plan: Plan, row: Launch, shared: Any) -> Tensor:
    sums = [stride == 0 for stride in bias.stride()]
    sizes = [1 if summed else size for summed, size in zip(sums, bias.shape, strict=True)]
    dbias = torch.zeros(sizes, dtype=torch.float32, device=bias.device)
    # All on one axis: the others of a grid end at 65535.
    programs = sizes[0] * sizes[1] * triton.cdiv(sizes[2], row.BLOCK_M) * triton.cdiv(sizes[3], row.BLOCK_N)
    if programs and min(plan.batch, plan.longest_q, plan.longest_k):
        flags = dict(zip(("SUM_B", "SUM_H", "SUM_M", "SUM_N"), sums, strict=True))
        dbias_kernel[(programs,)](*tensors, dbias, plan.batch, **flags, **shared, **vars(row))
    return dbias.to(bias.dtype)
