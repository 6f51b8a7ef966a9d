"""A call in the form that the kernels take: strides, flags and numbers that forward and backward share."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.dropout import seed_state
from ..common.host import power_of_two, signed
from .launch import rows_of_turned as rows_of_turned


@dataclass(frozen=True)
class Plan:
    """`arguments` go to every kernel by name; the sizes are the grid's."""

    batch: int
    nheads: int
    nheads_kv: int
    longest_q: int
    longest_k: int
    window: tuple[int | None, int | None]  # causal is a right bound of 0
    cu_seqlens: tuple[Tensor, Tensor] | None  # of queries and keys
    buckets: Tensor | None
    arguments: dict[str, Any]

    def reach(self, rows: int) -> int:
        """The most keys that `rows` queries in a row can see."""
        left, right = self.window
        return self.longest_k if left is None or right is None else min(self.longest_k, left + right + rows)


def relative_buckets(span: int, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """T5's bucket, int64 (2 * span + 1,), of each distance from -span to span (Raffel et al. 2020, section 2.1)."""
    distance = torch.arange(-span, span + 1, device="cpu")
    per_side = num_buckets // 2 if bidirectional else num_buckets
    n = distance.abs() if bidirectional else (-distance).clamp_min(0)
    exact = per_side // 2
    growth = torch.log(n.clamp_min(1).double() / exact) / math.log(max_distance / exact)
    bucket = torch.where(n < exact, n, (exact + (growth * (per_side - exact)).long()).clamp_max(per_side - 1))
    return bucket + torch.where(distance > 0, per_side, 0) if bidirectional else bucket


@functools.cache  # for good: a CUDA graph may read them at any time
def buckets_on(device: torch.device, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """`relative_buckets` as int32 on the device, up to the span from which on each side is one bucket.

    They are copied there by the first call alone, which a GPU waits for: a CUDA graph that has them must be captured
    after a call outside of it.
    """
    most = max(max_distance, num_buckets)
    buckets = relative_buckets(most, num_buckets, max_distance, bidirectional)
    steps = (buckets[1:] != buckets[:-1]).nonzero()  # T5's last is at 91 of its max_distance of 128
    span = max(most - int(steps[0]), int(steps[-1]) + 1 - most)
    return buckets[most - span : most + span + 1].to(device, torch.int32)


def make_plan(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False, window: Any = (None, None),
    query_offset: Any = None, key_lengths: Tensor | None = None, query_lengths: Tensor | None = None,
    mask: Tensor | None = None, bias: Tensor | None = None, relative_table: Tensor | None = None,
    max_distance: int = 128, bidirectional: bool = True, alibi_slopes: Tensor | None = None,
    softcap: float | None = None, sinks: Tensor | None = None, dropout_p: float = 0.0, seed: int = 0,
    cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Tensor | None = None, max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
) -> Plan:  # fmt: skip
    """The keywords are those of `attention_forward`."""
    packed = cu_seqlens_q is not None
    batch = cu_seqlens_q.shape[0] - 1 if cu_seqlens_q is not None else q.shape[0]
    longest_q = int(max_seqlen_q or 0) if packed else q.shape[1]
    longest_k = int(max_seqlen_k or 0) if packed else k.shape[1]
    left, right = window
    if causal:
        right = 0 if right is None else min(right, 0)
    shifts = query_offset if isinstance(query_offset, Tensor) else None
    own = isinstance(query_offset, int)
    buckets = values = slopes = None
    span = 0
    if relative_table is not None:
        buckets = buckets_on(q.device, relative_table.shape[0], max_distance, bidirectional)
        span = buckets.shape[0] // 2
        values = (relative_table.float() * math.log2(math.e))[buckets].T.contiguous()  # (nheads, 2 * span + 1)
    if alibi_slopes is not None:
        slopes = alibi_slopes.float().expand(batch, q.shape[-2])
    nothing = q
    strides = {f"{n}_{d}": 0 if packed and d == "b" else t.stride({"b": 0, "s": -3, "h": -2}[d])
               for n, t in (("q", q), ("k", k), ("v", v)) for d in "bsh"}  # fmt: skip
    for name, tensor in (("bias", bias), ("mask", mask)):
        strides |= {f"{name}_{d}": 0 if tensor is None else tensor.stride(n) for n, d in enumerate("bhmn")}
    threshold = min(round(dropout_p * 2**32), 2**32 - 1)
    arguments = dict(
        strides,
        bias=nothing if bias is None else bias,
        mask=nothing if mask is None else mask.view(torch.uint8),
        values=nothing if values is None else values,
        slopes=nothing if slopes is None else slopes,
        slopes_b=0 if slopes is None else slopes.stride(0),
        slopes_h=0 if slopes is None else slopes.stride(1),
        shifts=nothing if shifts is None else shifts,
        key_lengths=nothing if key_lengths is None else key_lengths,
        query_lengths=nothing if query_lengths is None else query_lengths,
        cu_q=nothing if cu_seqlens_q is None else cu_seqlens_q,
        cu_k=nothing if cu_seqlens_k is None else cu_seqlens_k,
        seqlen_q=longest_q,
        seqlen_k=longest_k,
        nheads=q.shape[-2],
        group=q.shape[-2] // max(k.shape[-2], 1),
        shift=query_offset if own else longest_k - longest_q,
        left=left or 0,
        right=right or 0,
        span=span,
        scale=float(scale),
        softcap=float(softcap or 1.0),
        state=signed(seed_state(seed)),
        threshold=signed(threshold),
        keep_scale=1.0 / (1.0 - dropout_p),
        HEAD_DIM=q.shape[-1],
        HEAD_DIM_V=v.shape[-1],
        BLOCK_D=power_of_two(q.shape[-1]),
        BLOCK_DV=power_of_two(v.shape[-1]),
        PACKED=packed,
        HAS_SHIFTS=shifts is not None,
        OWN_SHIFT=own,
        HAS_KEY_LENGTHS=key_lengths is not None,
        HAS_QUERY_LENGTHS=query_lengths is not None,
        HAS_LEFT=left is not None,
        HAS_RIGHT=right is not None,
        HAS_MASK=mask is not None,
        HAS_BIAS=bias is not None,
        HAS_RELATIVE=relative_table is not None,
        HAS_ALIBI=alibi_slopes is not None,
        HAS_SOFTCAP=softcap is not None,
        HAS_DROPOUT=dropout_p > 0,
        PRECISION="tf32" if q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee",
    )
    cu_seqlens = None if cu_seqlens_q is None or cu_seqlens_k is None else (cu_seqlens_q, cu_seqlens_k)
    return Plan(
        batch, q.shape[-2], k.shape[-2], longest_q, longest_k, (left, right), cu_seqlens, buckets, arguments
    )  # fmt: skip
