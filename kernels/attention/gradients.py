"""Attention backward, deterministic and without atomics: a program owns what it writes and sums in a fixed order.

dq: one program per block of queries. dk, dv: one per block of keys, over all query heads that share them. A dense
bias: one per tile of the bias as the caller gave it, over what it was broadcast to. The probabilities are made again
from the scores and the lse (Dao et al. 2022, section 3.1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.dropout import kept
from .blocks import key_range, place, query_range, sequence, shift_of
from .forward import FLOATS
from .relative import add_bucket, add_near, add_relative, near_range
from .tile import LOG2E, finite, load_rows, scores, store_rows, visible


@triton.jit
def load_statistics(lse, delta, i, lenq):
    """(lse times log2(e), delta), each [M]. A row that saw nothing gets lse +inf: its probabilities come out 0."""
    natural = tl.load(lse + i, mask=i < lenq, other=float("-inf"))
    natural = tl.where(natural == float("-inf"), float("inf"), natural)
    return natural * LOG2E, tl.load(delta + i, mask=i < lenq, other=0.0)


@triton.jit
def gradients(
    query, key, value, dout, i, j, lse2, delta, head, at, lenq, lenk, left, right, scale, softcap,
    bias, bias_m, bias_n, mask, mask_m, mask_n, values, span, far, slope, state, threshold, keep_scale,
    HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RELATIVE: tl.constexpr, HAS_ALIBI: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """(probabilities after dropout, gradient of the biased score, gradient of the score), each [M, N]."""
    s, factor = scores(
        query, key, i, j, at, lenq, lenk, scale, softcap, bias, bias_m, bias_n, slope,
        HAS_SOFTCAP, HAS_BIAS, HAS_ALIBI, PRECISION,
    )  # fmt: skip
    if HAS_RELATIVE:
        s = add_relative(s, values, far, i, j, at, span, FAR)
    p = tl.exp2(s - lse2[:, None])
    dp = tl.dot(dout, tl.trans(value), input_precision=PRECISION)
    dropped = p
    if HAS_DROPOUT:
        keep = kept(state, threshold, head, i, j)
        dropped = tl.where(keep, p * keep_scale, 0.0)
        dp = tl.where(keep, dp * keep_scale, 0.0)
    biased = p * (dp - delta[:, None])
    if MASKED or HAS_MASK:
        seen = visible(i, j, at, lenq, lenk, left, right, mask, mask_m, mask_n, HAS_LEFT, HAS_RIGHT, HAS_MASK)
        dropped = tl.where(seen, dropped, 0.0)
        biased = tl.where(seen, biased, 0.0)
    plain = biased
    if HAS_SOFTCAP:
        plain = tl.where(biased == 0.0, 0.0, biased * factor)
    return dropped, biased, plain


@triton.jit(do_not_specialize=FLOATS)
def dq_kernel(
    q, k, v, dout,  # (batch, seqlen, nheads, head_dim) by strides
    lse, delta,  # float32 (batch, nheads, seqlen_q)
    dq,  # as q
    buckets, dtable,  # (2 * span + 1,); float32 (batch * nheads, blocks of queries, BLOCK_B)
    order,  # int32 (batch * blocks,) when ORDERED
    dout_b, dout_s, dout_h, dq_b, dq_s, dq_h, lse_b, lse_h,
    q_b, q_s, q_h, k_b, k_s, k_h, v_b, v_s, v_h,  # strides, in elements
    bias, bias_b, bias_h, bias_m, bias_n,  # (batch, nheads, seqlen_q, seqlen_k) by strides
    mask, mask_b, mask_h, mask_m, mask_n,  # the same, bytes
    values, span,  # (nheads, 2 * span + 1): relative bias by distance, times log2(e)
    slopes, slopes_b, slopes_h,  # (batch, nheads) by strides
    shifts, shift, key_lengths, query_lengths, cu_q, cu_k,  # (batch,), a number, (batch,) twice, (batch + 1,) twice
    seqlen_q, seqlen_k, nheads, group, left, right, scale, softcap, state, threshold, keep_scale,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PACKED: tl.constexpr, HAS_SHIFTS: tl.constexpr, OWN_SHIFT: tl.constexpr,
    HAS_KEY_LENGTHS: tl.constexpr, HAS_QUERY_LENGTHS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RELATIVE: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    NEEDS_TABLE: tl.constexpr, ORDERED: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    m, b, h = place(order, seqlen_q, nheads, BLOCK_M, ORDERED, HAS_RIGHT)
    head = b * nheads + h
    first_q, lenq = sequence(cu_q, query_lengths, seqlen_q, b, PACKED, HAS_QUERY_LENGTHS)
    first_k, lenk = sequence(cu_k, key_lengths, seqlen_k, b, PACKED, HAS_KEY_LENGTHS)
    rows = lenq if PACKED else seqlen_q
    at = shift_of(shifts, shift, lenq, lenk, b, PACKED, HAS_SHIFTS, OWN_SHIFT)
    b64, h64 = b.to(tl.int64), h.to(tl.int64)
    k += b64 * k_b + h64 // group * k_h
    v += b64 * v_b + h64 // group * v_h
    bias += b64 * bias_b + h64 * bias_h
    mask += b64 * mask_b + h64 * mask_h
    values += h64 * (2 * span + 1)
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(slopes + b64 * slopes_b + h64 * slopes_h)
    i = m + tl.arange(0, BLOCK_M)
    query = load_rows(q + b64 * q_b + h64 * q_h, first_q, i, lenq, q_s, HEAD_DIM, BLOCK_D, True)
    grad = load_rows(dout + b64 * dout_b + h64 * dout_h, first_q, i, lenq, dout_s, HEAD_DIM_V, BLOCK_DV, True)
    row = b64 * lse_b + h64 * lse_h + first_q
    lse2, delt = load_statistics(lse + row, delta + row, i, lenq)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    table = tl.zeros((BLOCK_B,), tl.float32)
    low, full_low, full_high, high = key_range(
        m, m + BLOCK_M - 1, at, lenk, left, right, BLOCK_N, HAS_LEFT, HAS_RIGHT
    )  # fmt: skip
    if m >= lenq:
        high, full_high, full_low = low, low, low
    near_low, near_high, before, after, first_bucket, last_bucket = full_low, full_high, 0.0, 0.0, 0, 0
    if HAS_RELATIVE:
        near_low, near_high = near_range(m + at, BLOCK_M, span, full_low, full_high, BLOCK_N)
        before, after = tl.load(values), tl.load(values + 2 * span)
        first_bucket, last_bucket = tl.load(buckets), tl.load(buckets + 2 * span)
        if HAS_RIGHT:  # as in the forward
            near_high = full_high
    stretches = (low, full_low, near_low, near_high, full_high, high)
    for part in tl.static_range(5):
        if (HAS_LEFT or part != 0) and (HAS_RELATIVE or part % 2 == 0) and not (HAS_RIGHT and part == 3):
            of_far = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)  # all of one bucket: summed when all are there
            for n in range(stretches[part], stretches[part + 1], BLOCK_N):
                masked: tl.constexpr = part % 4 == 0  # the first and the last
                far: tl.constexpr = part % 2 == 1
                j = n + tl.arange(0, BLOCK_N)
                key = load_rows(k, first_k, j, lenk, k_s, HEAD_DIM, BLOCK_D, masked)
                value = load_rows(v, first_k, j, lenk, v_s, HEAD_DIM_V, BLOCK_DV, masked)
                _, biased, plain = gradients(
                    query, key, value, grad, i, j, lse2, delt, head, at, lenq, lenk, left, right, scale, softcap,
                    bias, bias_m, bias_n, mask, mask_m, mask_n, values, span, before if part == 1 else after, slope,
                    state, threshold, keep_scale, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_BIAS, HAS_RELATIVE, HAS_ALIBI,
                    HAS_SOFTCAP, HAS_DROPOUT, PRECISION, masked, far,
                )  # fmt: skip
                if NEEDS_TABLE:
                    if far:
                        of_far += biased
                    else:
                        table = add_near(table, biased, buckets, m, n, at, span, BLOCK_M, BLOCK_N, BLOCK_B)
                if masked or HAS_MASK:
                    key = finite(key)  # a visible NaN is in the score's gradient already
                acc = tl.dot(plain.to(key.dtype), key, acc, input_precision=PRECISION)
            if NEEDS_TABLE and part % 2 == 1:
                table = add_bucket(table, of_far, first_bucket if part == 1 else last_bucket, BLOCK_B)
    store_rows(dq + b64 * dq_b + h64 * dq_h, first_q, i, rows, dq_s, acc * scale, HEAD_DIM, BLOCK_D)
    if NEEDS_TABLE:
        block = head.to(tl.int64) * tl.cdiv(seqlen_q, BLOCK_M) + m // BLOCK_M
        tl.store(dtable + block * BLOCK_B + tl.arange(0, BLOCK_B), table)


@triton.jit(do_not_specialize=FLOATS)
def dkdv_kernel(
    q, k, v, dout,  # (batch, seqlen, nheads, head_dim) by strides
    lse, delta,  # float32 (batch, nheads, seqlen_q)
    dk, dv,  # as k and v
    order,  # int32 (batch * blocks,) when ORDERED
    dout_b, dout_s, dout_h, dk_b, dk_s, dk_h, dv_b, dv_s, dv_h, lse_b, lse_h,
    q_b, q_s, q_h, k_b, k_s, k_h, v_b, v_s, v_h,  # strides, in elements
    bias, bias_b, bias_h, bias_m, bias_n,  # (batch, nheads, seqlen_q, seqlen_k) by strides
    mask, mask_b, mask_h, mask_m, mask_n,  # the same, bytes
    values, span,  # (nheads, 2 * span + 1): relative bias by distance, times log2(e)
    slopes, slopes_b, slopes_h,  # (batch, nheads) by strides
    shifts, shift, key_lengths, query_lengths, cu_q, cu_k,  # (batch,), a number, (batch,) twice, (batch + 1,) twice
    seqlen_q, seqlen_k, nheads, group, left, right, scale, softcap, state, threshold, keep_scale,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PACKED: tl.constexpr, HAS_SHIFTS: tl.constexpr, OWN_SHIFT: tl.constexpr,
    HAS_KEY_LENGTHS: tl.constexpr, HAS_QUERY_LENGTHS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RELATIVE: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    ORDERED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n, b, h_kv = place(order, seqlen_k, nheads // group, BLOCK_N, ORDERED, False)
    first_q, lenq = sequence(cu_q, query_lengths, seqlen_q, b, PACKED, HAS_QUERY_LENGTHS)
    first_k, lenk = sequence(cu_k, key_lengths, seqlen_k, b, PACKED, HAS_KEY_LENGTHS)
    rows = lenk if PACKED else seqlen_k
    at = shift_of(shifts, shift, lenq, lenk, b, PACKED, HAS_SHIFTS, OWN_SHIFT)
    b64, h64 = b.to(tl.int64), h_kv.to(tl.int64)
    j = n + tl.arange(0, BLOCK_N)
    key = load_rows(k + b64 * k_b + h64 * k_h, first_k, j, lenk, k_s, HEAD_DIM, BLOCK_D, True)
    value = load_rows(v + b64 * v_b + h64 * v_h, first_k, j, lenk, v_s, HEAD_DIM_V, BLOCK_DV, True)
    key_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    value_sum = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
    low, full_low, full_high, high = query_range(
        n, at, lenq, lenk, left, right, BLOCK_M, BLOCK_N, HAS_LEFT, HAS_RIGHT
    )  # fmt: skip
    near_low, near_high = full_low, full_high
    if HAS_RELATIVE:  # early queries are far before the keys, late ones far after them
        near_low, near_high = near_range(n - at, BLOCK_N, span, full_low, full_high, BLOCK_M)
        if HAS_RIGHT:
            near_low = full_low
    stretches = (low, full_low, near_low, near_high, full_high, high)
    for member in range(group):
        h = h_kv * group + member
        head, hq = b * nheads + h, h.to(tl.int64)
        row = b64 * lse_b + hq * lse_h + first_q
        slope = 0.0
        if HAS_ALIBI:
            slope = tl.load(slopes + b64 * slopes_b + hq * slopes_h)
        before, after = 0.0, 0.0
        if HAS_RELATIVE:
            before, after = tl.load(values + hq * (2 * span + 1)), tl.load(values + hq * (2 * span + 1) + 2 * span)
        for part in tl.static_range(5):
            if (HAS_RELATIVE or part % 2 == 0) and not (HAS_RIGHT and part == 1):
                for m in range(stretches[part], stretches[part + 1], BLOCK_M):
                    masked: tl.constexpr = part % 4 == 0  # the first and the last
                    far: tl.constexpr = part % 2 == 1
                    i = m + tl.arange(0, BLOCK_M)
                    query = load_rows(q + b64 * q_b + hq * q_h, first_q, i, lenq, q_s, HEAD_DIM, BLOCK_D, masked)
                    grad = load_rows(
                        dout + b64 * dout_b + hq * dout_h, first_q, i, lenq, dout_s, HEAD_DIM_V, BLOCK_DV, masked
                    )  # fmt: skip
                    lse2, delt = load_statistics(lse + row, delta + row, i, lenq)
                    p, _, plain = gradients(
                        query, key, value, grad, i, j, lse2, delt, head, at, lenq, lenk, left, right, scale, softcap,
                        bias + b64 * bias_b + hq * bias_h, bias_m, bias_n, mask + b64 * mask_b + hq * mask_h, mask_m,
                        mask_n, values + hq * (2 * span + 1), span, after if part == 1 else before, slope, state,
                        threshold, keep_scale, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_BIAS, HAS_RELATIVE, HAS_ALIBI,
                        HAS_SOFTCAP, HAS_DROPOUT, PRECISION, masked, far,
                    )  # fmt: skip
                    value_sum = tl.dot(tl.trans(p.to(grad.dtype)), grad, value_sum, input_precision=PRECISION)
                    key_sum = tl.dot(tl.trans(plain.to(query.dtype)), query, key_sum, input_precision=PRECISION)
    store_rows(dk + b64 * dk_b + h64 * dk_h, first_k, j, rows, dk_s, key_sum * scale, HEAD_DIM, BLOCK_D)
    store_rows(dv + b64 * dv_b + h64 * dv_h, first_k, j, rows, dv_s, value_sum, HEAD_DIM_V, BLOCK_DV)


@triton.jit(do_not_specialize=FLOATS)
def dbias_kernel(
    q, k, v, dout,  # (batch, seqlen, nheads, head_dim) by strides
    lse, delta,  # float32 (batch, nheads, seqlen_q)
    dbias,  # float32, contiguous (batch or 1, nheads or 1, seqlen_q or 1, seqlen_k or 1)
    batch, dout_b, dout_s, dout_h, lse_b, lse_h,
    q_b, q_s, q_h, k_b, k_s, k_h, v_b, v_s, v_h,  # strides, in elements
    bias, bias_b, bias_h, bias_m, bias_n,  # (batch, nheads, seqlen_q, seqlen_k) by strides
    mask, mask_b, mask_h, mask_m, mask_n,  # the same, bytes
    values, span,  # (nheads, 2 * span + 1): relative bias by distance, times log2(e)
    slopes, slopes_b, slopes_h,  # (batch, nheads) by strides
    shifts, shift, key_lengths, query_lengths, cu_q, cu_k,  # (batch,), a number, (batch,) twice, (batch + 1,) twice
    seqlen_q, seqlen_k, nheads, group, left, right, scale, softcap, state, threshold, keep_scale,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PACKED: tl.constexpr, HAS_SHIFTS: tl.constexpr, OWN_SHIFT: tl.constexpr,
    HAS_KEY_LENGTHS: tl.constexpr, HAS_QUERY_LENGTHS: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RELATIVE: tl.constexpr, HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    SUM_B: tl.constexpr, SUM_H: tl.constexpr, SUM_M: tl.constexpr, SUM_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows, columns = (1 if SUM_M else seqlen_q), (1 if SUM_N else seqlen_k)
    across, down = tl.cdiv(columns, BLOCK_N), tl.cdiv(rows, BLOCK_M)
    tile, matrix = tl.program_id(0) % (across * down), tl.program_id(0) // (across * down)
    own_m, own_n = tile // across * BLOCK_M, tile % across * BLOCK_N
    heads_kept = 1 if SUM_H else nheads
    kept_b, kept_h = matrix // heads_kept, matrix % heads_kept
    b_low, b_high = (0, batch) if SUM_B else (kept_b, kept_b + 1)
    h_low, h_high = (0, nheads) if SUM_H else (kept_h, kept_h + 1)
    m_low, m_high = (0, seqlen_q) if SUM_M else (own_m, own_m + 1)
    n_low, n_high = (0, seqlen_k) if SUM_N else (own_n, own_n + 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for b in range(b_low, b_high):
        start_q, lenq = sequence(cu_q, query_lengths, seqlen_q, b, PACKED, HAS_QUERY_LENGTHS)
        start_k, lenk = sequence(cu_k, key_lengths, seqlen_k, b, PACKED, HAS_KEY_LENGTHS)
        at = shift_of(shifts, shift, lenq, lenk, b, PACKED, HAS_SHIFTS, OWN_SHIFT)
        for h in range(h_low, h_high):
            b64, h64 = tl.cast(b, tl.int64), tl.cast(h, tl.int64)
            row = b64 * lse_b + h64 * lse_h
            for m in range(m_low, m_high, BLOCK_M):
                i = m + tl.arange(0, BLOCK_M)
                query = load_rows(q + b64 * q_b + h64 * q_h, 0, i, lenq, q_s, HEAD_DIM, BLOCK_D, True)
                grad = load_rows(dout + b64 * dout_b + h64 * dout_h, 0, i, lenq, dout_s, HEAD_DIM_V, BLOCK_DV, True)
                lse2, delt = load_statistics(lse + row, delta + row, i, lenq)
                for n in range(n_low, n_high, BLOCK_N):
                    j = n + tl.arange(0, BLOCK_N)
                    kv = h64 // group
                    key = load_rows(k + b64 * k_b + kv * k_h, 0, j, lenk, k_s, HEAD_DIM, BLOCK_D, True)
                    value = load_rows(v + b64 * v_b + kv * v_h, 0, j, lenk, v_s, HEAD_DIM_V, BLOCK_DV, True)
                    dropped, biased, plain = gradients(
                        query, key, value, grad, i, j, lse2, delt, b * nheads + h, at, lenq, lenk, left, right, scale,
                        softcap, bias + b64 * bias_b + h64 * bias_h, bias_m, bias_n,
                        mask + b64 * mask_b + h64 * mask_h, mask_m, mask_n, values, span, 0.0, 0.0, state, threshold,
                        keep_scale, HAS_LEFT, HAS_RIGHT, HAS_MASK, HAS_BIAS, HAS_RELATIVE, HAS_ALIBI, HAS_SOFTCAP,
                        HAS_DROPOUT, PRECISION, True, False,
                    )  # fmt: skip
                    acc += biased
    i = own_m + tl.arange(0, BLOCK_M)
    j = own_n + tl.arange(0, BLOCK_N)
    base = dbias + matrix.to(tl.int64) * rows * columns
    if SUM_M:
        acc = tl.broadcast_to(tl.sum(acc, 0)[None, :], (BLOCK_M, BLOCK_N))
    if SUM_N:
        acc = tl.broadcast_to(tl.sum(acc, 1)[:, None], (BLOCK_M, BLOCK_N))
    inside = (i[:, None] < rows) & (j[None, :] < columns)
    tl.store(base + i.to(tl.int64)[:, None] * columns + j[None, :], acc, mask=inside)
