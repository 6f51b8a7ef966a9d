"""Attention over caches on a CPU: the launcher over `undivided._C`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C
from ..invariance import invariant
from ..reference.attention_decode import append, gathered
from . import CPU, DTYPES, address
from .attention import attention_forward
from .attention_call import buckets_by_distance
from .rotary import turn_behind

ABSENT = (0, 0, 0, 0, 0)
NO_BIAS: tuple[tuple[int, ...], tuple[Tensor, ...]] = ((0,) * 8, ())


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    *,
    k: Tensor | None = None,
    v: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float,
    window: tuple[int | None, int | None] = (None, None),
    softcap: float | None = None,
    sinks: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    **bias: Any,
) -> tuple[Tensor, Tensor]:
    """(out, lse): `undivided.attention_decode` on plain tensors, whose values are checked.

    Args:
        q, k_cache, v_cache, cache_lengths, k, v, block_table: those of the op; last stride 1; float32, bfloat16 or
            float16; int32.
        cos, sin: the tables of rotary, or None.
        bias: relative_table, max_distance, bidirectional, alibi_slopes.

    Returns:
        out (batch, seqlen_q, nheads, head_dim_v), lse float32 (batch, nheads, seqlen_q), contiguous.
    """
    seqlen_new = 0 if k is None else k.shape[1]
    if cos is not None and sin is not None:
        q = turn_behind(q, cos, sin, cache_lengths, seqlen_new - q.shape[1])
        k = None if k is None else turn_behind(k, cos, sin, cache_lengths, 0)
    if invariant():
        words = dict(scale=scale, window=window, softcap=softcap, sinks=sinks, **bias)
        return _in_tiles(q, (k_cache, v_cache), (k, v), cache_lengths, block_table, **words)
    batch, seqlen_q, nheads, head_dim = q.shape
    _, size, nheads_kv, head_dim_v = v_cache.shape
    dtype = q.dtype
    out = torch.empty(batch, seqlen_q, nheads, head_dim_v, dtype=dtype, device=CPU)
    lse = torch.empty(batch, nheads, seqlen_q, dtype=torch.float32, device=CPU)
    blocks, longest = (0, 0), size
    if block_table is not None:
        blocks, longest = (address(block_table), block_table.stride(0)), size * block_table.shape[1]
    sinks = None if sinks is None else sinks.float()  # a name for the copy: the kernel has its address only
    left, right = window
    distance, _keep = _by_distance(**bias) if bias else NO_BIAS
    _C.attention_decode(
        address(q),
        *q.stride(),
        address(k_cache),
        *k_cache.stride(),
        address(v_cache),
        *v_cache.stride(),
        *(ABSENT if k is None else (address(k), *k.stride())),
        *(ABSENT if v is None else (address(v), *v.stride())),
        out.data_ptr(),
        lse.data_ptr(),
        address(cache_lengths),
        DTYPES[dtype],
        batch,
        seqlen_q,
        seqlen_new,
        longest,
        nheads,
        nheads_kv,
        head_dim,
        head_dim_v,
        *blocks,
        size,
        scale,
        -1 if left is None else left,
        -1 if right is None else right,
        0.0 if softcap is None else softcap,
        address(sinks),
        *distance,
        torch.get_num_threads(),
    )
    return out, lse


def _in_tiles(
    q: Tensor,
    caches: tuple[Tensor, Tensor],
    new: tuple[Tensor | None, Tensor | None],
    lengths: Tensor,
    block_table: Tensor | None,
    **words: Any,
) -> tuple[Tensor, Tensor]:
    """The same by the kernel of a full pass, with its bits."""
    total = lengths
    for cache, tokens in zip(caches, new, strict=True):
        if tokens is not None:
            append(cache, tokens, lengths, block_table)
            total = lengths + tokens.shape[1]
    keys, values = (gathered(cache, block_table) for cache in caches)
    place = total - q.shape[1]
    return attention_forward(q, keys, values, key_lengths=total, query_offset=place, **words)


def _by_distance(
    relative_table: Tensor | None = None,
    max_distance: int = 128,
    bidirectional: bool = True,
    alibi_slopes: Tensor | None = None,
) -> tuple[tuple[int, ...], tuple[Tensor, ...]]:
    """What the extension takes for the two biases (table and its strides, buckets, span; slopes and their strides), and
    the tensors whose addresses are among it."""
    if relative_table is not None:
        span = max(max_distance, relative_table.shape[0])
        buckets = buckets_by_distance(span, relative_table.shape[0], max_distance, bidirectional)
        table = relative_table.float()
        return (address(table), *table.stride(), buckets.data_ptr(), span, 0, 0, 0), (table, buckets)
    if alibi_slopes is not None:
        of_batch = alibi_slopes.stride(0) if alibi_slopes.dim() == 2 else 0
        return (0, 0, 0, 0, 0, address(alibi_slopes), of_batch, alibi_slopes.stride(-1)), ()
    return NO_BIAS
