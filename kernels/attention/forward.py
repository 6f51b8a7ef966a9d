"""Attention forward: one program per block of queries, a running softmax over the key blocks it sees.

FlashAttention (Dao et al. 2022) with the loop order of its second version (Dao 2023, section 3.1). Where the blocks of
queries are few, several programs share the keys of each.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.dropout import kept
from ..common.host import capability, on_its_device, widened
from ..rotary.load import load_turned
from .blocks import key_range, place, sequence, shift_of
from .launch import launch_of
from .plan import make_plan
from .relative import add_relative, near_range
from .schedule import longest_first
from .softmax import finish, step, weigh
from .split import combine, per_multiprocessor, share, splits_of
from .tile import load_rows, scores, store_rows, visible

FLOATS = ["scale", "softcap", "state", "threshold", "keep_scale"]


@triton.jit(do_not_specialize=FLOATS)
def forward_kernel(
    q, k, v,  # (batch, seqlen, nheads, head_dim) by strides
    sinks,  # (nheads,)
    out, lse,  # like q, head_dim_v; float32 (batch, nheads, seqlen_q); when SPLIT float32, one of each a part
    out_part, out_b, out_s, out_h, lse_part, lse_b, lse_h,
    order,  # int32 (batch * blocks,) when ORDERED
    q_b, q_s, q_h, k_b, k_s, k_h, v_b, v_s, v_h,  # strides, in elements
    bias, bias_b, bias_h, bias_m, bias_n,  # (batch, nheads, seqlen_q, seqlen_k) by strides
    mask, mask_b, mask_h, mask_m, mask_n,  # the same, bytes
    values, span,  # (nheads, 2 * span + 1): relative bias by distance, times log2(e)
    slopes, slopes_b, slopes_h,  # (batch, nheads) by strides
    cos, sin, places,  # float32 (places, head_dim / 2), contiguous: q and k turn by their positions
    shifts, shift, key_lengths, query_lengths, cu_q, cu_k,  # (batch,), a number, (batch,) twice, (batch + 1,) twice
    seqlen_q, seqlen_k, nheads, group, left, right, scale, softcap, state, threshold, keep_scale,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PACKED: tl.constexpr, HAS_SHIFTS: tl.constexpr, OWN_SHIFT: tl.constexpr,
    HAS_KEY_LENGTHS: tl.constexpr, HAS_QUERY_LENGTHS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RELATIVE: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    HAS_SINKS: tl.constexpr, HAS_ROTARY: tl.constexpr, ORDERED: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    m, b, h = place(order, seqlen_q, nheads, BLOCK_M, ORDERED, HAS_RIGHT)
    first_q, lenq = sequence(cu_q, query_lengths, seqlen_q, b, PACKED, HAS_QUERY_LENGTHS)
    first_k, lenk = sequence(cu_k, key_lengths, seqlen_k, b, PACKED, HAS_KEY_LENGTHS)
    rows = lenq if PACKED else seqlen_q
    at = shift_of(shifts, shift, lenq, lenk, b, PACKED, HAS_SHIFTS, OWN_SHIFT)
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    q += b64 * q_b + h64 * q_h
    k += b64 * k_b + h64 // group * k_h
    v += b64 * v_b + h64 // group * v_h
    bias += b64 * bias_b + h64 * bias_h
    mask += b64 * mask_b + h64 * mask_h
    values += h64 * (2 * span + 1)
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(slopes + b64 * slopes_b + h64 * slopes_h)

    i = m + tl.arange(0, BLOCK_M)
    if HAS_ROTARY:
        query = load_turned(
            q, (first_q + i.to(tl.int64)) * q_s, i + at, i < lenq, cos, sin, places, HEAD_DIM, BLOCK_D
        )  # fmt: skip
    else:
        query = load_rows(q, first_q, i, lenq, q_s, HEAD_DIM, BLOCK_D, True)  # [M, D]
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    low, full_low, full_high, high = key_range(
        m, m + BLOCK_M - 1, at, lenk, left, right, BLOCK_N, HAS_LEFT, HAS_RIGHT
    )  # fmt: skip
    if m >= lenq:
        high, full_high, full_low = low, low, low
    if SPLIT:
        own, own_end = share(low, high, tl.program_id(1), tl.num_programs(1), BLOCK_N)
    near_low, near_high, before, after = full_low, full_high, 0.0, 0.0
    if HAS_RELATIVE:
        near_low, near_high = near_range(m + at, BLOCK_M, span, full_low, full_high, BLOCK_N)
        before, after = tl.load(values), tl.load(values + 2 * span)
        if HAS_RIGHT:  # a bound beyond the span is rare: no stretch of its own
            near_high = full_high
    stretches = (low, full_low, near_low, near_high, full_high, high)
    for part in tl.static_range(5):
        # Some stretches are always empty: the first without a left bound, far ones without what is far.
        if (HAS_LEFT or part != 0) and (HAS_RELATIVE or part % 2 == 0) and not (HAS_RIGHT and part == 3):
            begin, end = stretches[part], stretches[part + 1]
            if SPLIT:
                begin, end = tl.maximum(begin, own), tl.minimum(end, own_end)
            for n in range(begin, end, BLOCK_N):
                masked: tl.constexpr = part % 4 == 0  # the first and the last
                far: tl.constexpr = part % 2 == 1
                j = n + tl.arange(0, BLOCK_N)
                if HAS_ROTARY:
                    key = load_turned(
                        k, (first_k + j.to(tl.int64)) * k_s, j, j < lenk, cos, sin, places, HEAD_DIM, BLOCK_D
                    )  # fmt: skip
                else:
                    key = load_rows(k, first_k, j, lenk, k_s, HEAD_DIM, BLOCK_D, masked)  # [N, D]
                s, _ = scores(
                    query, key, i, j, at, lenq, lenk, scale, softcap, bias, bias_m, bias_n, slope,
                    HAS_SOFTCAP, HAS_BIAS, HAS_ALIBI, PRECISION,
                )  # fmt: skip
                if HAS_RELATIVE:
                    s = add_relative(s, values, before if part == 1 else after, i, j, at, span, far)
                seen = s == s
                if masked or HAS_MASK:
                    seen = visible(
                        i, j, at, lenq, lenk, left, right, mask, mask_m, mask_n, HAS_LEFT, HAS_RIGHT, HAS_MASK
                    )  # fmt: skip
                    s = tl.where(seen, s, float("-inf"))
                p, shrink, top, total = step(s, top, total)
                if HAS_DROPOUT:
                    p = tl.where(kept(state, threshold, b * nheads + h, i, j), p * keep_scale, 0.0)
                value = load_rows(v, first_k, j, lenk, v_s, HEAD_DIM_V, BLOCK_DV, masked)  # [N, DV]
                # Without a bound or a mask all rows see all keys that were loaded.
                hides: tl.constexpr = HAS_MASK or (masked and (HAS_LEFT or HAS_RIGHT))
                acc = weigh(p, value, seen, acc * shrink[:, None], hides, PRECISION)

    sink = 0.0
    if HAS_SINKS:
        sink = tl.load(sinks + h).to(tl.float32)
    acc, natural = finish(acc, top, total, i >= lenq, sink, HAS_SINKS)
    if SPLIT:
        out += tl.program_id(1).to(tl.int64) * out_part
        lse += tl.program_id(1).to(tl.int64) * lse_part
    store_rows(out + b64 * out_b + h64 * out_h, first_q, i, rows, out_s, acc, HEAD_DIM_V, BLOCK_DV)
    tl.store(lse + b64 * lse_b + h64 * lse_h + first_q + i, natural, mask=i < rows)


@on_its_device
def attention_forward(q: Tensor, k: Tensor, v: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    """(out, lse): `undivided.attention` on plain tensors.

    Args:
        q, k, v: (batch, seqlen, nheads, head_dim), or (total, nheads, head_dim) with cu_seqlens; last stride 1.
        words: scale, causal, window, query_offset, key_lengths, query_lengths, mask and bias expanded to 4
            dimensions, relative_table, max_distance, bidirectional, alibi_slopes, softcap, sinks, dropout_p, seed,
            cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k; cos and sin (places, head_dim / 2), by which q and
            k turn as they are loaded.

    Returns:
        out: like q with head_dim_v, contiguous. lse: float32 (batch, nheads, seqlen_q), packed (nheads, total).
    """
    dtype = q.dtype
    q, k, v, words["bias"] = widened(q, k, v, words.get("bias"))  # type: ignore[assignment]
    cos, sin = (
        None if table is None else table.float().contiguous()
        for table in (words.pop("cos", None), words.pop("sin", None))
    )
    plan, sinks = make_plan(q, k, v, **words), words.get("sinks")
    out = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    shape = (plan.nheads, q.shape[0]) if q.dim() == 3 else (plan.batch, plan.nheads, q.shape[1])
    lse = torch.full(shape, float("-inf"), dtype=torch.float32, device=q.device)
    turns = cos is not None
    width = max(q.shape[-1], v.shape[-1])
    constants = dict(plan.arguments, HAS_ROTARY=turns)
    row = launch_of("forward", constants, width, q.dtype, capability(q.device))
    programs = triton.cdiv(plan.longest_q, row.BLOCK_M) * plan.batch * plan.nheads
    if not programs or not out.numel():
        return out.to(dtype), lse
    per_sm = per_multiprocessor(row, width, q.dtype)
    splits = splits_of(programs, plan.reach(row.BLOCK_M), per_sm, q.device)
    to, to_lse = out, lse
    if splits > 1:
        to = q.new_empty((splits, *out.shape), dtype=torch.float32)
        to_lse = lse.expand(splits, *shape).contiguous()
    order = longest_first(plan, row.BLOCK_M, programs, q.device)
    forward_kernel[(programs, splits)](
        q, k, v, q if sinks is None else sinks, to, to_lse,
        out.numel(), 0 if q.dim() == 3 else out.stride(0), out.stride(-3), out.stride(-2),
        lse.numel(), 0 if q.dim() == 3 else lse.stride(0), lse.stride(-2), q if order is None else order,
        **plan.arguments, cos=q if cos is None else cos, sin=q if sin is None else sin,
        places=0 if cos is None else cos.shape[0], HAS_ROTARY=turns, HAS_SINKS=sinks is not None and splits == 1,
        ORDERED=order is not None, SPLIT=splits > 1,
        BLOCK_M=row.BLOCK_M, BLOCK_N=row.BLOCK_N, num_warps=row.num_warps, num_stages=row.num_stages,
    )  # fmt: skip
    if splits > 1:
        combine(to, to_lse, sinks, out, lse)
    return out.to(dtype), lse
