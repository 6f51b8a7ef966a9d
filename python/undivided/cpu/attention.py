"""Attention on a CPU: launchers over `undivided._C`. What both directions share is in `attention_call.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C

from .attention_call import describe, plane, rows, unexpanded

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]

# The backward cuts the keys of a sequence into chunks until there are TASKS tasks, so that many threads find work
# where heads are few; every chunk has a dq of its own, in float32. The numbers depend on the shape alone: results
# must not depend on the number of threads.
TASKS = 32
MOST_CHUNKS = 16
LEAST_KEYS = 256
# The dq of one task that stays in a thread's scratch memory, in bytes.
SCRATCH = 8 << 20


def attention_forward(q: Tensor, k: Tensor, v: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    """(out, lse): `undivided.attention` on plain tensors.

    Args:
        q, k, v: (batch, seqlen, nheads, head_dim), or (total, nheads, head_dim) with cu_seqlens; last stride 1;
            float32, bfloat16 or float16.
        words: scale, causal, window, query_offset, key_lengths, query_lengths, mask and bias expanded to 4
            dimensions, relative_table, max_distance, bidirectional, alibi_slopes, softcap, sinks, dropout_p, seed,
            cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k.

    Returns:
        out: like q with head_dim_v, contiguous. lse: float32 (batch, nheads, seqlen_q), packed (nheads, total).
    """
    call = describe(q, k, v, **words)
    out = torch.empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    shape = (q.shape[1], q.shape[0]) if q.dim() == 3 else (q.shape[0], q.shape[2], q.shape[1])
    lse = torch.empty(shape, dtype=torch.float32)
    if call.packed_rows is not None:  # rows that belong to no sequence
        out[call.packed_rows :] = 0
        lse[:, call.packed_rows :] = -torch.inf
    _C.attention_forward(
        **call.words,
        out=rows(out),
        lse=lse.data_ptr(),
        lse_b=0 if q.dim() == 3 else lse.stride(0),
        lse_h=lse.stride(-2),
    )
    return out, lse


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
        Sums are made in float32 in an order that depends on the shapes alone.
    """
    call = describe(q, k, v, **words)
    dout = dout.to(q.dtype)
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    lse = lse.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    # Rows in the padding are nobody's; elsewhere every row is written.
    make = torch.empty if call.whole else torch.zeros
    dq, dk, dv = (make(t.shape, dtype=t.dtype) for t in (q, k, v))
    batch, nheads, nheads_kv = call.words["batch"], call.words["nheads"], call.words["nheads_kv"]
    bias = unexpanded(words["bias"]) if need_bias and words.get("bias") is not None else None
    sum_batch = bias is not None and bias.shape[0] == 1
    sum_heads = bias is not None and bias.shape[1] == 1
    tasks = max((1 if sum_batch else batch) * (1 if sum_heads else nheads_kv), 1)
    chunks = min(-(-TASKS // tasks), MOST_CHUNKS, max(call.words["seqlen_k"] // LEAST_KEYS, 1))
    extra: dict[str, Any] = {}
    keep: list[Tensor] = []

    def buffer(name: str, *shape: int, zero: bool = True) -> Tensor:
        tensor = (torch.zeros if zero else torch.empty)(shape, dtype=torch.float32)
        keep.append(tensor)
        extra[name] = tensor.data_ptr()
        return tensor

    row = -(-q.shape[-1] // 16) * 16
    if chunks > 1 or nheads // nheads_kv * call.words["seqlen_q"] * row * 4 > SCRATCH:
        buffer("dq_parts", chunks, *lse.shape, row, zero=False)
    buffer("lse2", *lse.shape, zero=False)
    buffer("delta", *lse.shape, zero=False)
    dbias = dtable = dsinks = None
    if bias is not None:
        sum_keys = bias.shape[3] == 1
        dbias = torch.zeros((chunks if sum_keys else 1, *bias.shape), dtype=torch.float32)
        extra.update(
            dbias=plane(dbias[0]),
            dbias_chunk=dbias.stride(0) if sum_keys else 0,
            sum_batch=sum_batch,
            sum_heads=sum_heads,
        )
    if need_table and call.buckets is not None:
        dtable = buffer("dtable", *words["relative_table"].shape)
        buffer("distance_sums", chunks, batch, nheads, call.buckets.shape[0])
        extra["buckets"] = call.buckets.data_ptr()
    if need_sinks and words.get("sinks") is not None:
        dsinks = buffer("dsinks", nheads)
        buffer("sink_sums", batch, nheads)
    _C.attention_backward(
        **call.words,
        **extra,
        out=rows(out),
        dout=rows(dout),
        dq=rows(dq),
        dk=rows(dk),
        dv=rows(dv),
        lse=lse.data_ptr(),
        dlse=0 if dlse is None else dlse.data_ptr(),
        lse_b=0 if q.dim() == 3 else lse.stride(0),
        lse_h=lse.stride(-2),
        lse_size=lse.numel(),
        chunks=chunks,
    )
    if bias is not None and dbias is not None:
        total = dbias[0]
        for part in dbias[1:]:
            total += part
        dbias = total.to(bias.dtype)
    if dtable is not None:
        dtable = dtable.to(words["relative_table"].dtype)
    if dsinks is not None:
        dsinks = dsinks.to(words["sinks"].dtype)
    return dq, dk, dv, dbias, dtable, dsinks


