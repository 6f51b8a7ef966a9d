"""Attention on a Hopper GPU: the launchers of csrc/cuda/attention_forward.cu and attention_backward.cu."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _C
from ..reference.bias import relative_buckets
from .addresses import ALIGNMENT, DTYPES, FARTHEST, address, stream_of

LOG2E = 1.4426950408889634
PADDING = KEYS = 128  # kPadding of csrc/cuda/attention.h; the keys of a block of the backward


def attention_forward(q: Tensor, k: Tensor, v: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    """(out, lse): `undivided.attention` on plain tensors, as far as the rules of this backend let a call through.

    Args:
        q, k, v: (batch, seqlen, nheads, head_dim), or (total, nheads, head_dim) with cu_seqlens; head_dim 64 or 128,
            last stride 1, bfloat16 or float16. What the copy engine cannot address is copied first.
        words: those of `undivided.attention`, causal folded into the window or not.

    Returns:
        out: like q, contiguous. lse: float32 (batch, nheads, seqlen_q), packed (nheads, total).
    """
    packed = words.get("cu_seqlens_q") is not None
    shape = (q.shape[1], q.shape[0]) if packed else (q.shape[0], q.shape[2], q.shape[1])
    if packed or not k.numel():  # rows that belong to no sequence, or that have nothing to see
        out, lse = q.new_zeros(q.shape), q.new_full(shape, -math.inf, dtype=torch.float32)
    else:
        out, lse = q.new_empty(q.shape), q.new_empty(shape, dtype=torch.float32)
    job = Job.of(q, k, v, out, lse, **words)
    if job is not None:
        _C.cuda_attention_forward(job.call)
    return out, lse


Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


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
    """(dq, dk, dv, None, dtable or None, dsinks or None). The last bits of dq differ from run to run.

    Args:
        dout: as `out`; dlse: as `lse`, or None. q, k, v, out, lse and `words`: those of `attention_forward`.
        need_bias: must be False.
    """
    assert not need_bias
    packed, make = words.get("cu_seqlens_q") is not None, torch.zeros_like
    if not packed and k.numel() and q.numel():  # every row is written
        make = torch.empty_like
    dq, dk, dv = (make(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    out, dout, lse = addressable(out), addressable(dout.to(q.dtype)), lse.contiguous()
    if dlse is not None:
        dlse = dlse.float().expand_as(lse).contiguous()
    job, table, dtable = Job.of(q, k, v, out, lse, **words), words.get("relative_table"), None
    if need_table and table is not None:
        dtable = torch.zeros_like(table)
    if job is not None:
        by_distance = None
        if dtable is not None and job.buckets is not None:
            blocks = -(-job.seqlen_k // KEYS)
            sizes = (job.batch, q.shape[-2], blocks, job.buckets.shape[0])
            by_distance = q.new_empty(sizes, dtype=torch.float32)
        rows_padded = padded(job.rows_q + job.batch * PADDING) if packed else padded(job.seqlen_q)
        shape = (*(() if packed else q.shape[:1]), q.shape[-2], rows_padded)
        lse2, delta = (q.new_empty(shape, dtype=torch.float32) for _ in range(2))
        sums = q.new_empty((*shape, q.shape[-1]), dtype=torch.float32)
        _C.cuda_attention_backward(
            job.call, *rows(dout), *rows(dq), *rows(dk), *rows(dv), address(dlse), address(lse2), address(delta),
            address(sums), address(by_distance), rows_padded,
        )  # fmt: skip
        if by_distance is not None and table is not None and job.buckets is not None:
            own = members(q.device, table.shape[0], words.get("max_distance", 128), words.get("bidirectional", True))
            dtable = torch.where(own, by_distance.sum((0, 2)), 0.0).sum(-1).to(table.dtype)
    dsinks = None
    if need_sinks and words.get("sinks") is not None:
        dsinks = gradient_of_sinks(words["sinks"], dout, out, lse, dlse)
    return dq, dk, dv, None, dtable, dsinks


def gradient_of_sinks(sinks: Tensor, dout: Tensor, out: Tensor, lse: Tensor, dlse: Tensor | None) -> Tensor:
    """(nheads,): a sink's probability of a row is one that the row's others lack."""
    delta = (out.float() * dout.float()).sum(-1).transpose(-1, -2)
    delta = delta if dlse is None else delta - dlse
    p = torch.where(lse == -math.inf, 0.0, torch.exp(sinks.float()[:, None] - lse))
    grad = -(p * delta).sum(-1)
    return (grad if grad.dim() == 1 else grad.sum(0)).to(sinks.dtype)


class Job(NamedTuple):
    """A call as the extension takes it, the sizes that its backward needs, and the tensors that must live as long."""

    call: Any
    batch: int
    seqlen_q: int
    seqlen_k: int
    rows_q: int
    buckets: Tensor | None
    tensors: tuple[Tensor | None, ...]

    @staticmethod
    def of(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, scale: float, causal: bool = False,
        window: Any = (None, None), query_offset: Any = None, key_lengths: Tensor | None = None,
        query_lengths: Tensor | None = None, relative_table: Tensor | None = None, max_distance: int = 128,
        bidirectional: bool = True, alibi_slopes: Tensor | None = None, softcap: float | None = None,
        sinks: Tensor | None = None, cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
        max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
    ) -> Job | None:  # fmt: skip
        """None where there is nothing to do. The arguments are those of `attention_forward` and its results."""
        packed = cu_seqlens_q is not None and cu_seqlens_k is not None
        seqlen_q = int(max_seqlen_q or 0) if packed else q.shape[1]
        seqlen_k = int(max_seqlen_k or 0) if packed else k.shape[1]
        batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
        if not q.numel() or not k.numel() or not batch or not seqlen_q:
            return None
        left, right = window
        if causal:
            right = 0 if right is None else min(right, 0)
        q, k, v = addressable(q), addressable(k), addressable(v)
        shifts = query_offset if isinstance(query_offset, Tensor) else None
        own_shift = isinstance(query_offset, int)
        values = buckets = None
        if relative_table is not None:
            buckets = buckets_by_distance(q.device, relative_table.shape[0], max_distance, bidirectional)
            values = (relative_table.detach().float()[buckets].T * LOG2E).contiguous()  # (nheads, 2 * span + 1)
        slopes = None if alibi_slopes is None else alibi_slopes.float() * LOG2E
        sinks = None if sinks is None else sinks.detach().float().contiguous()
        counter = q.new_empty(1, dtype=torch.int32)
        call = _C.CudaAttention(
            *rows(q), *rows(k), *rows(v), *rows(out), lse.data_ptr(), 0 if packed else lse.stride(0), lse.stride(-2),
            DTYPES[q.dtype], batch, q.shape[-2], k.shape[-2], q.shape[-1], seqlen_q, seqlen_k, q.shape[-3],
            k.shape[-3], address(key_lengths), address(query_lengths), address(cu_seqlens_q), address(cu_seqlens_k),
            address(shifts), own_shift, query_offset if own_shift else seqlen_k - seqlen_q,
            -1 if left is None else left, -1 if right is None else right, address(values),
            0 if values is None else values.shape[1] // 2, address(slopes),
            0 if slopes is None or slopes.dim() == 1 else slopes.stride(0), 0 if slopes is None else slopes.stride(-1),
            address(sinks), float(scale), float(softcap or 0.0), address(counter), q.device.index or 0,
            stream_of(q.device),
        )  # fmt: skip
        return Job(call, batch, seqlen_q, seqlen_k, q.shape[-3], buckets, (q, k, v, values, slopes, sinks, counter))


def padded(rows: int) -> int:
    return -(-rows // PADDING) * PADDING


def rows(x: Tensor) -> tuple[int, int, int, int]:
    """Address and strides (batch, sequence, head); 0 for a dimension along which all is the same."""
    size, stride = (1, *x.shape) if x.dim() == 3 else x.shape, (0, *x.stride()) if x.dim() == 3 else x.stride()
    b, s, h = (0 if size[dim] == 1 else stride[dim] for dim in (0, 1, 2))
    return x.data_ptr(), b, s, h


def addressable(x: Tensor) -> Tensor:
    """`x`, or a contiguous copy where the copy engine cannot address it: positions on top of one another, or starts
    that are no multiples of 16 bytes."""
    _, *strides = rows(x)
    seqlen = x.shape[-3]
    ok = x.data_ptr() % ALIGNMENT == 0 and (strides[1] != 0 or seqlen == 1)
    steps = [stride * x.element_size() for stride in strides]
    ok = ok and all(0 <= step < FARTHEST and step % ALIGNMENT == 0 for step in steps)
    return x if ok else x.clone(memory_format=torch.contiguous_format)


@lru_cache(maxsize=64)
def buckets_by_distance(device: torch.device, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The table's row, int64 (2 * span + 1,), for the distances from -span to span; beyond it each side has one bucket.

    Only the first call copies to the GPU: a CUDA graph that has a relative bias must be captured after a call outside.
    """
    most = max(max_distance, num_buckets)
    buckets = relative_buckets(torch.arange(-most, most + 1, device="cpu"), num_buckets, max_distance, bidirectional)
    steps = (buckets[1:] != buckets[:-1]).nonzero()  # T5's last is at 91 of its max_distance of 128
    span = max(most - int(steps[0]), int(steps[-1]) + 1 - most) if len(steps) else 1
    return buckets[most - span : most + span + 1].to(device)


@lru_cache(maxsize=64)
def members(device: torch.device, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """bool (num_buckets, 1, distances): which distances of `buckets_by_distance` are in each bucket."""
    buckets = buckets_by_distance(device, num_buckets, max_distance, bidirectional)
    return (buckets == torch.arange(num_buckets, device=device)[:, None])[:, None]
