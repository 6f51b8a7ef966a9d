"""Attention on a CPU: launchers over `undivided._C`. What both directions share is in `attention_call.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C
from ..invariance import invariant
from . import CPU, READS_TENSORS, address
from .attention_call import buckets_by_distance, describe, plane, rows, unexpanded

# What `attention_direct` of the extension takes.
FEW_WORDS = {"scale", "window", "query_offset", "key_lengths", "relative_table", "max_distance", "bidirectional"}
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
    *batch, seqlen_q, nheads, _ = q.shape
    out = torch.empty(*batch, seqlen_q, nheads, v.shape[-1], dtype=q.dtype, device=CPU)
    lse = torch.empty(*batch, nheads, seqlen_q, dtype=torch.float32, device=CPU)
    if READS_TENSORS and words.keys() <= FEW_WORDS and not invariant() and _few_words(q, k, v, out, lse, **words):
        return out, lse
    call = describe(q, k, v, **words)
    if call.packed_rows is not None:  # rows that belong to no sequence
        out[call.packed_rows :] = 0
        lse[:, call.packed_rows :] = -torch.inf
    _C.attention_forward(
        **call.words,
        out=rows(out),
        lse=address(lse),
        lse_b=nheads * seqlen_q if batch else 0,
        lse_h=seqlen_q,
        in_tiles=invariant(),
    )
    return out, lse


def _few_words(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    window: Any = None,
    query_offset: int | Tensor | None = None,
    key_lengths: Tensor | None = None,
    relative_table: Tensor | None = None,
    max_distance: int = 128,
    bidirectional: bool = True,
) -> bool:
    """Whether the call is one that the extension reads by itself, in a fifth of the time; then it has been done."""
    table = buckets = None
    if relative_table is not None:
        span = max(max_distance, relative_table.shape[0])
        buckets = buckets_by_distance(span, relative_table.shape[0], max_distance, bidirectional)
        table = relative_table.detach().float()
    options = key_lengths, query_offset, None, table, buckets, False, window, scale, None
    return _C.attention_direct(q, k, v, *options, out, lse, torch.get_num_threads()) is not None


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
    dq, dk, dv = (make(t.shape, dtype=t.dtype, device=CPU) for t in (q, k, v))
    bias = unexpanded(words["bias"]) if need_bias and words.get("bias") is not None else None
    buffers = Buffers(call.words, lse, bias)
    if need_table and call.buckets is not None:
        buffers.add_table(words["relative_table"], call.buckets)
    if need_sinks and words.get("sinks") is not None:
        buffers.add_sinks()
    _C.attention_backward(
        **call.words,
        **buffers.words,
        out=rows(out),
        dout=rows(dout),
        dq=rows(dq),
        dk=rows(dk),
        dv=rows(dv),
        lse=address(lse),
        dlse=address(dlse),
        lse_b=0 if q.dim() == 3 else lse.stride(0),
        lse_h=lse.stride(-2),
        lse_size=lse.numel(),
    )
    dbias = buffers.bias_gradient(bias)
    dtable, dsinks = (
        None if name not in buffers.tensors else buffers.tensors[name].to(words[of].dtype)
        for name, of in (("dtable", "relative_table"), ("dsinks", "sinks"))
    )
    return dq, dk, dv, dbias, dtable, dsinks


def backward_directly(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    options: tuple[Any, ...],
    lengths: tuple[int, int],
    need_table: bool,
) -> Gradients | None:
    """What `attention_backward` gives; None where it must go the long way. options and lengths: those of
    `direct.attention`. The gradient of the table is float32."""
    key_lengths, _, packed, table, buckets, *_ = options
    batch = q.shape[0] if packed is None else packed[0].shape[0] - 1
    sizes = dict(batch=batch, nheads=q.shape[-2], nheads_kv=k.shape[-2], head_dim=q.shape[-1])
    buffers = Buffers(sizes | dict(seqlen_q=lengths[0], seqlen_k=lengths[1]), lse, None)
    if need_table and table is not None and buckets is not None:
        buffers.add_table(table, buckets)
    own = buffers.tensors
    # Rows in the padding are nobody's, as may be those of a packed batch.
    make = torch.empty_like if key_lengths is None and packed is None else torch.zeros_like
    dq, dk, dv = (make(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    ran = _C.attention_backward_direct(
        dout, q, k, v, out, lse, *options, dq, dk, dv, own["lse2"], own["delta"], own.get("dq_parts"),
        own.get("dtable"), own.get("distance_sums"), buffers.chunks, torch.get_num_threads(),
    )  # fmt: skip
    return (dq, dk, dv, None, own.get("dtable"), None) if ran else None


class Buffers:
    """What the backward of one call works in and sums up in, float32; `words` are the extension's names for it."""

    def __init__(self, sizes: dict[str, Any], lse: Tensor, bias: Tensor | None) -> None:
        """bias: the dense bias whose gradient is needed, with size 1 where it is shared, or None."""
        self.batch, self.nheads, nheads_kv = sizes["batch"], sizes["nheads"], sizes["nheads_kv"]
        sum_batch = bias is not None and bias.shape[0] == 1
        sum_heads = bias is not None and bias.shape[1] == 1
        tasks = max((1 if sum_batch else self.batch) * (1 if sum_heads else nheads_kv), 1)
        self.chunks = min(-(-TASKS // tasks), MOST_CHUNKS, max(sizes["seqlen_k"] // LEAST_KEYS, 1))
        self.words: dict[str, Any] = dict(chunks=self.chunks)
        self.tensors: dict[str, Tensor] = {}
        row = -(-sizes["head_dim"] // 16) * 16  # kGradientAlign in csrc/cpu/attention.h
        if self.chunks > 1 or self.nheads // nheads_kv * sizes["seqlen_q"] * row * 4 > SCRATCH:
            self.add("dq_parts", torch.empty((self.chunks, *lse.shape, row), dtype=torch.float32, device=CPU))
        self.add("lse2", torch.empty(lse.shape, dtype=torch.float32, device=CPU))
        self.add("delta", torch.empty(lse.shape, dtype=torch.float32, device=CPU))
        if bias is not None:
            sum_keys = bias.shape[3] == 1
            dbias = torch.zeros((self.chunks if sum_keys else 1, *bias.shape), dtype=torch.float32, device=CPU)
            self.tensors["dbias"] = dbias
            self.words.update(dbias=plane(dbias[0]), sum_batch=sum_batch, sum_heads=sum_heads)
            self.words["dbias_chunk"] = dbias.stride(0) if sum_keys else 0

    def add(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor
        self.words[name] = tensor.data_ptr()

    def add_table(self, table: Tensor, buckets: Tensor) -> None:
        self.add("dtable", torch.zeros(table.shape, dtype=torch.float32, device=CPU))
        shape = (self.chunks, self.batch, self.nheads, buckets.shape[0])
        self.add("distance_sums", torch.zeros(shape, dtype=torch.float32, device=CPU))

    def add_sinks(self) -> None:
        self.add("dsinks", torch.empty(self.nheads, dtype=torch.float32, device=CPU))
        self.add("sink_sums", torch.empty((self.batch, self.nheads), dtype=torch.float32, device=CPU))

    def bias_gradient(self, bias: Tensor | None) -> Tensor | None:
        """The gradient of `bias`, from the parts of the chunks in order."""
        if bias is None:
            return None
        total = self.tensors["dbias"][0]
        for part in self.tensors["dbias"][1:]:
            total += part
        return total.to(bias.dtype)
