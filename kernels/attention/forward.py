"""Attention forward: one program per block of queries, a running softmax over the key blocks it sees.

FlashAttention (Dao et al. 2022) with the loop order of its second version (Dao 2023, section 3.1).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.dropout import kept
from ..common.host import on_its_device, widened
from .blocks import key_range, sequence, shift_of
from .plan import FORWARD, launch_of, make_plan
from .tile import LOG2E, finite, load_rows, scores, store_rows, visible

FLOATS = ["scale", "softcap", "state", "threshold", "keep_scale"]


@triton.jit
def weigh(p, v, seen, acc, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """acc + p v [M, DV]; a NaN or infinity in v reaches only the rows that see it."""
    if MASKED:
        clean = finite(v)
        acc = tl.dot(p.to(v.dtype), clean, acc, input_precision=PRECISION)
        bad = (tl.abs(v.to(tl.float32)) < float("inf")) == 0
        if tl.max(tl.max(bad.to(tl.int32), 1), 0) > 0:
            touched = tl.dot(seen.to(tl.float16), bad.to(tl.float16))
            acc = tl.where(touched > 0, float("nan"), acc)
        return acc
    else:
        return tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=FLOATS)
def forward_kernel(
    q, k, v,  # (batch, seqlen, nheads, head_dim) by strides
    sinks,  # (nheads,)
    out, lse,  # like q, head_dim_v; float32 (batch, nheads, seqlen_q)
    out_b, out_s, out_h, lse_b, lse_h,
    q_b, q_s, q_h, k_b, k_s, k_h, v_b, v_s, v_h,  # strides, in elements
    bias, bias_b, bias_h, bias_m, bias_n,  # (batch, nheads, seqlen_q, seqlen_k) by strides
    mask, mask_b, mask_h, mask_m, mask_n,  # the same, bytes
    values, span,  # (nheads, 2 * span + 1): relative bias by distance
    slopes, slopes_b, slopes_h,  # (batch, nheads) by strides
    shifts, shift, key_lengths, query_lengths, cu_q, cu_k,  # (batch,), a number, (batch,) twice, (batch + 1,) twice
    seqlen_q, seqlen_k, nheads, group, left, right, scale, softcap, state, threshold, keep_scale,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PACKED: tl.constexpr, HAS_SHIFTS: tl.constexpr, OWN_SHIFT: tl.constexpr,
    HAS_KEY_LENGTHS: tl.constexpr, HAS_QUERY_LENGTHS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RELATIVE: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    HAS_SINKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1)
    b, h = head // nheads, head % nheads
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
    query = load_rows(q, first_q, i, lenq, q_s, HEAD_DIM, BLOCK_D, True)  # [M, D]
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    low, full_low, full_high, high = key_range(m, at, lenk, left, right, BLOCK_M, BLOCK_N, HAS_LEFT, HAS_RIGHT)
    if m >= lenq:
        high, full_high, full_low = low, low, low
    for part in tl.static_range(3):
        begin = low if part == 0 else (full_low if part == 1 else full_high)
        end = full_low if part == 0 else (full_high if part == 1 else high)
        for n in range(begin, end, BLOCK_N):
            j = n + tl.arange(0, BLOCK_N)
            key = load_rows(k, first_k, j, lenk, k_s, HEAD_DIM, BLOCK_D, part != 1)  # [N, D]
            s, _ = scores(
                query, key, i, j, at, lenq, lenk, scale, softcap, bias, bias_m, bias_n, values, span, slope,
                HAS_SOFTCAP, HAS_BIAS, HAS_RELATIVE, HAS_ALIBI, PRECISION,
            )  # fmt: skip
            seen = s == s
            if (part != 1) or HAS_MASK:
                seen = visible(
                    i, j, at, lenq, lenk, left, right, mask, mask_m, mask_n, HAS_LEFT, HAS_RIGHT, HAS_MASK
                )  # fmt: skip
                s = tl.where(seen, s, float("-inf"))
            new = tl.maximum(top, tl.max(s, 1))
            base = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
            p = tl.exp2(s - base[:, None])
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(p, 1)
            if HAS_DROPOUT:
                p = tl.where(kept(state, threshold, head, i, j), p * keep_scale, 0.0)
            value = load_rows(v, first_k, j, lenk, v_s, HEAD_DIM_V, BLOCK_DV, part != 1)  # [N, DV]
            acc = weigh(p, value, seen, acc * shrink[:, None], (part != 1) or HAS_MASK, PRECISION)
            top = new

    empty = (total == 0.0) | (i >= lenq)
    if HAS_SINKS:
        sink = tl.load(sinks + h).to(tl.float32) * LOG2E
        new = tl.maximum(top, sink)
        shrink = tl.exp2(top - new)
        total = total * shrink + tl.exp2(sink - new)
        acc = acc * shrink[:, None]
        top = new
    safe = tl.where(empty, 1.0, total)
    acc = tl.where(empty[:, None], 0.0, acc / safe[:, None])
    store_rows(out + b64 * out_b + h64 * out_h, first_q, i, rows, out_s, acc, HEAD_DIM_V, BLOCK_DV)
    natural = tl.where(empty, float("-inf"), (top + tl.log2(safe)) / LOG2E)
    tl.store(lse + b64 * lse_b + h64 * lse_h + first_q + i, natural, mask=i < rows)


@on_its_device
def attention_forward(q: Tensor, k: Tensor, v: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    """(out, lse): `undivided.attention` on plain tensors.

    Args:
        q, k, v: (batch, seqlen, nheads, head_dim), or (total, nheads, head_dim) with cu_seqlens; last stride 1.
        words: scale, causal, window, query_offset, key_lengths, query_lengths, mask and bias expanded to 4
            dimensions, relative_table, max_distance, bidirectional, alibi_slopes, softcap, sinks, dropout_p, seed,
            cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k.

    Returns:
        out: like q with head_dim_v, contiguous. lse: float32 (batch, nheads, seqlen_q), packed (nheads, total).
    """
    dtype = q.dtype
    q, k, v, words["bias"] = widened(q, k, v, words.get("bias"))  # type: ignore[assignment]
    plan, sinks = make_plan(q, k, v, **words), words.get("sinks")
    out = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    shape = (plan.nheads, q.shape[0]) if q.dim() == 3 else (plan.batch, plan.nheads, q.shape[1])
    lse = torch.full(shape, float("-inf"), dtype=torch.float32, device=q.device)
    row = launch_of(FORWARD, max(q.shape[-1], v.shape[-1]), q.dtype)
    grid = (triton.cdiv(plan.longest_q, row.BLOCK_M), plan.batch * plan.nheads)
    if min(grid) and out.numel():
        forward_kernel[grid](
            q, k, v, q if sinks is None else sinks, out, lse,
            0 if q.dim() == 3 else out.stride(0), out.stride(-3), out.stride(-2),
            0 if q.dim() == 3 else lse.stride(0), lse.stride(-2),
            **plan.arguments, HAS_SINKS=sinks is not None, BLOCK_M=row.BLOCK_M, BLOCK_N=row.BLOCK_N,
            num_warps=row.num_warps, num_stages=row.num_stages,
        )  # fmt: skip
    return out.to(dtype), lse
