"""A call of attention_decode in plain form: what the registered ops and every backend's launcher take."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Tensors(NamedTuple):
    q: Tensor  # (batch, seqlen_q, nheads, head_dim)
    k_cache: Tensor  # (batch, longest, nheads_kv, head_dim), or with block_table (num_blocks, block_size, ...)
    v_cache: Tensor
    cache_lengths: Tensor  # int32 (batch,)
    k: Tensor | None  # (batch, seqlen_new, nheads_kv, head_dim)
    v: Tensor | None
    block_table: Tensor | None  # int32 (batch, most_blocks)
    relative_table: Tensor | None  # (num_buckets, nheads)
    alibi_slopes: Tensor | None  # (nheads,) or (batch, nheads), float32
    sinks: Tensor | None  # (nheads,)
    cos: Tensor | None  # (places, head_dim / 2): q and k turn by their positions
    sin: Tensor | None


class Numbers(NamedTuple):
    scale: float
    left: int | None
    right: int | None
    max_distance: int
    bidirectional: bool
    softcap: float | None
