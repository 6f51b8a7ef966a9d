"""Attention of a few queries over a cache: one program per key head, block of rows and part of the cache.

A row is one query of one query head; all rows that share a key head share each read of its keys and values (Shazeer
2019). The parts are split and merged as in `../attention/split.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.blocks import key_range
from ..attention.softmax import finish, step, weigh
from ..attention.split import combine, share
from ..attention.tile import LOG2E, load_at, scores, store_at, visible
from ..common.host import on_its_device, widened
from ..rotary.load import load_turned
from .cache import NEW, append, locate
from .plan import make_plan


@triton.jit
def attend(
    query, key, value,  # [M, D], [N, D], [N, DV]
    i, j, at, lenq, lenk, left, right, scale, softcap,
    relative, relative_n, buckets, span,  # [M, 1] pointers to each head's first bucket, and what lies between two
    slope,  # [M, 1]
    top, total, acc,  # the running softmax
    nothing,  # a pointer to what is never read
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_RELATIVE: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """(top, total, acc) with one tile of keys more."""
    s, _ = scores(
        query, key, i, j, at, lenq, lenk, scale, softcap, nothing, 0, 0, slope,
        HAS_SOFTCAP, False, HAS_ALIBI, PRECISION,
    )  # fmt: skip
    if HAS_RELATIVE:
        distance = j[None, :] - i[:, None] - at
        bucket = tl.load(buckets + tl.minimum(tl.maximum(distance, -span), span) + span)
        s += tl.load(relative + bucket * relative_n).to(tl.float32) * LOG2E
    seen = s == s
    if MASKED:
        seen = visible(i, j, at, lenq, lenk, left, right, nothing, 0, 0, HAS_LEFT, HAS_RIGHT, False)
        s = tl.where(seen, s, float("-inf"))
    p, shrink, top, total = step(s, top, total)
    # Without a bound all rows see all keys that were loaded: nothing is to be kept from any of them.
    hides: tl.constexpr = MASKED and (HAS_LEFT or HAS_RIGHT)
    return top, total, weigh(p, value, seen, acc * shrink[:, None], hides, PRECISION)


@triton.jit(do_not_specialize=["scale", "softcap"])
def decode_kernel(
    q,  # (batch, seqlen_q, nheads, head_dim) by strides
    k_cache, v_cache,  # (batch, longest, nheads_kv, head_dim) by strides, or (num_blocks, PAGE, nheads_kv, head_dim)
    k, v,  # (batch, seqlen_new, nheads_kv, head_dim) by strides, when APPENDS
    cache_lengths, block_table,  # int32 (batch,); int32 (batch, blocks of a row) by its stride, when paged
    relative, buckets,  # (num_buckets, nheads) by strides; int32 (2 * span + 1,)
    slopes, sinks,  # (batch, nheads) by strides; (nheads,)
    cos, sin,  # float32 (places, head_dim / 2), contiguous: q and k turn by their positions
    out, lse,  # contiguous (splits, batch, seqlen_q, nheads, head_dim_v); float32 (splits, batch, nheads, seqlen_q)
    q_b, q_s, q_h, k_cache_b, k_cache_s, k_cache_h, v_cache_b, v_cache_s, v_cache_h,  # strides, in elements
    k_b, k_s, k_h, v_b, v_s, v_h, relative_n, relative_h, slopes_b, slopes_h, block_table_b,
    batch, seqlen_q, seqlen_new, longest, num_blocks, nheads, group, left, right, span, places, scale,
    softcap,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PAGE: tl.constexpr, APPENDS: tl.constexpr, SPLIT: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_RELATIVE: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_ROTARY: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    blocks = tl.maximum(tl.cdiv(seqlen_q * group, BLOCK_M), 1)
    block, head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    nheads_kv = nheads // group
    b, kv = head // nheads_kv, head % nheads_kv
    part, parts = 0, 1
    if SPLIT:
        part, parts = tl.program_id(1), tl.num_programs(1)
    b64, kv64 = b.to(tl.int64), kv.to(tl.int64)
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    i, h = row // group, (kv * group + row % group).to(tl.int64)
    first = block * BLOCK_M // group
    last = tl.minimum((block * BLOCK_M + BLOCK_M - 1) // group, seqlen_q - 1)
    # A length that the cache cannot have would be read beyond it.
    cached = tl.minimum(tl.maximum(tl.load(cache_lengths + b), 0), longest)
    lenk = cached + seqlen_new
    at = lenk - seqlen_q  # where query 0 stands on the key axis

    k_cache += kv64 * k_cache_h
    v_cache += kv64 * v_cache_h
    table = block_table + b64 * block_table_b
    bias = relative + (h * relative_h)[:, None]
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(slopes + b64 * slopes_b + h * slopes_h)[:, None]
    rows = i.to(tl.int64) * q_s + h * q_h
    if HAS_ROTARY:
        place = tl.maximum(at + i, 0)  # a cache may hold fewer tokens than there are queries
        query = load_turned(q + b64 * q_b, rows, place, i < seqlen_q, cos, sin, places, HEAD_DIM, BLOCK_D)
    else:
        query = load_at(q + b64 * q_b, rows, i < seqlen_q, HEAD_DIM, BLOCK_D, True)  # [M, D]
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    low, full_low, full_high, high = key_range(first, last, at, cached, left, right, BLOCK_N, HAS_LEFT, HAS_RIGHT)
    own, own_end = share(low, high, part, parts, BLOCK_N)
    for stretch in tl.static_range(3):
        if (stretch != 0) or HAS_LEFT:  # without a left bound the first stretch is empty
            begin = low if stretch == 0 else (full_low if stretch == 1 else full_high)
            end = full_low if stretch == 0 else (full_high if stretch == 1 else high)
            for n in range(tl.maximum(begin, own), tl.minimum(end, own_end), BLOCK_N):
                j = n + tl.arange(0, BLOCK_N)
                page, slot = locate(table, b64, n, j, j < cached, PAGE, BLOCK_N, stretch != 1)
                key = load_at(
                    k_cache, page * k_cache_b + slot * k_cache_s, j < cached, HEAD_DIM, BLOCK_D, stretch != 1
                )  # fmt: skip
                value = load_at(
                    v_cache, page * v_cache_b + slot * v_cache_s, j < cached, HEAD_DIM_V, BLOCK_DV, stretch != 1
                )  # fmt: skip
                top, total, acc = attend(
                    query, key, value, i, j, at, seqlen_q, cached, left, right, scale, softcap, bias, relative_n,
                    buckets, span, slope, top, total, acc, q,
                    HAS_LEFT, HAS_RIGHT, HAS_RELATIVE, HAS_ALIBI, HAS_SOFTCAP, PRECISION, stretch != 1,
                )  # fmt: skip
    if APPENDS:
        k += b64 * k_b + kv64 * k_h
        v += b64 * v_b + kv64 * v_h
        begin, end = cached, lenk
        if HAS_LEFT:
            begin = tl.maximum(begin, first + at - left)
        if HAS_RIGHT:
            end = tl.minimum(end, last + 1 + at + right)
        if part != parts - 1:  # the last part has the fewest cached keys
            end = begin
        # Mostly one turn: stages would take shared memory from the loop above.
        for n in tl.range(begin, end, NEW, num_stages=1):
            j = n + tl.arange(0, NEW)
            token = (j - cached).to(tl.int64)
            if HAS_ROTARY:
                key = load_turned(k, token * k_s, j, j < lenk, cos, sin, places, HEAD_DIM, BLOCK_D)
            else:
                key = load_at(k, token * k_s, j < lenk, HEAD_DIM, BLOCK_D, True)
            value = load_at(v, token * v_s, j < lenk, HEAD_DIM_V, BLOCK_DV, True)
            top, total, acc = attend(
                query, key, value, i, j, at, seqlen_q, lenk, left, right, scale, softcap, bias, relative_n,
                buckets, span, slope, top, total, acc, q,
                HAS_LEFT, HAS_RIGHT, HAS_RELATIVE, HAS_ALIBI, HAS_SOFTCAP, PRECISION, True,
            )  # fmt: skip
        append(
            k_cache, v_cache, k, v, table, b64, cached, part * blocks + block, parts * blocks, k_cache_b, k_cache_s,
            v_cache_b, v_cache_s, k_s, v_s, seqlen_new, longest, num_blocks, cos, sin, places, PAGE, HEAD_DIM,
            HEAD_DIM_V, BLOCK_D, BLOCK_DV, HAS_ROTARY,
        )  # fmt: skip

    sink = 0.0
    if HAS_SINKS:
        sink = tl.load(sinks + h).to(tl.float32)
    acc, natural = finish(acc, top, total, i >= seqlen_q, sink, HAS_SINKS)
    to = part.to(tl.int64) * batch + b64 if SPLIT else b64
    place = ((to * seqlen_q + i) * nheads + h) * HEAD_DIM_V
    store_at(out, place, i < seqlen_q, acc, HEAD_DIM_V, BLOCK_DV)
    tl.store(lse + (to * nheads + h) * seqlen_q + i, natural, mask=i < seqlen_q)


@on_its_device
def attention_decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_lengths: Tensor, *, k: Tensor | None = None,
    v: Tensor | None = None, block_table: Tensor | None = None, scale: float,
    window: tuple[int | None, int | None] = (None, None), relative_table: Tensor | None = None,
    max_distance: int = 128, bidirectional: bool = True, alibi_slopes: Tensor | None = None,
    softcap: float | None = None, sinks: Tensor | None = None, cos: Tensor | None = None, sin: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, lse): `undivided.attention_decode` on plain tensors, causal folded into the window.

    Nothing waits for the device, so a CUDA graph can hold the call (with a relative table: after one call outside).

    Args:
        q: (batch, seqlen_q, nheads, head_dim), last stride 1.
        k_cache, v_cache: (batch, longest, nheads_kv, head_dim or head_dim_v), last stride 1; with `block_table`
            (num_blocks, block_size, nheads_kv, head_dim or head_dim_v).
        cache_lengths: int32 (batch,), the tokens in the cache before the call.
        k, v: (batch, seqlen_new, nheads_kv, head_dim or head_dim_v), last stride 1, written into the caches and
            attended to; or None. Tokens that the cache has no place for are not written.
        block_table: int32 (batch, most_blocks): position p is block block_table[b, p // block_size], slot
            p % block_size; or None.
        scale, window, relative_table, max_distance, bidirectional, alibi_slopes, softcap, sinks: as in
            `attention_forward`; query i stands at cache_lengths[b] + seqlen_new - seqlen_q + i.
        cos, sin: (places, head_dim / 2), any float dtype, or None: q and k turn by their positions as they are loaded.

    Returns:
        out: (batch, seqlen_q, nheads, head_dim_v), q's dtype, contiguous. lse: float32 (batch, nheads, seqlen_q).
    """
    caches = (k_cache, v_cache)
    dtype = q.dtype
    q, k_cache, v_cache, k, v = widened(q, k_cache, v_cache, k, v)  # type: ignore[assignment]
    plan = make_plan(
        q, k_cache, v_cache, cache_lengths, k=k, v=v, block_table=block_table, scale=scale, window=window,
        relative_table=relative_table, max_distance=max_distance, bidirectional=bidirectional,
        alibi_slopes=alibi_slopes, softcap=softcap, sinks=sinks, cos=cos, sin=sin,
    )  # fmt: skip
    batch, seqlen_q, nheads, _ = q.shape
    out = q.new_empty((batch, seqlen_q, nheads, v_cache.shape[-1]))
    lse = q.new_empty((batch, nheads, seqlen_q), dtype=torch.float32)
    to, to_lse = out, lse
    if plan.splits > 1:
        to, to_lse = (q.new_empty((plan.splits, *t.shape), dtype=torch.float32) for t in (out, lse))
    if plan.programs:
        decode_kernel[(plan.programs, plan.splits)](
            **plan.arguments, out=to, lse=to_lse, num_warps=plan.row.num_warps, num_stages=plan.row.num_stages
        )
    if plan.splits > 1:
        combine(to, to_lse, sinks, out, lse)
    if k is not None and q.dtype != dtype:  # the kernel appended to widened copies
        for cache, wide in zip(caches, (k_cache, v_cache), strict=True):
            cache.copy_(wide)
    return out.to(dtype), lse
