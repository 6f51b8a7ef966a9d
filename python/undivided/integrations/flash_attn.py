"""flash_attn_func, flash_attn_varlen_func and flash_attn_with_kvcache, with the signatures of flash-attention 2.

For code that was written against that package (Dao 2023): the names, the order and the defaults of the arguments are
its own, the kernels this package's, on every device and dtype that they run on. What differs:

- results are deterministic whatever `deterministic` says;
- a row that sees no key has lse -inf, there it is +inf;
- `return_attn_probs` gives the lse; its third result, dropout's pattern for tests, is empty, so it is refused with
  dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import attention, attention_decode, attention_packed, rotary
from ..ops.attention_checks import within
from ..ops.checks import has_shape, is_flag, is_integer, is_tensor, is_whole
from ..reference import ALiBi

Result = Tensor | tuple[Tensor, Tensor, Tensor]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention over a batch of equally long sequences; differentiable.

    Args:
        q: (batch, seqlen_q, nheads, head_dim); k, v: (batch, seqlen_k, nheads_kv, head_dim), nheads a multiple of
            nheads_kv.
        dropout_p: dropout on the probabilities, seeded from torch's default generator.
        softmax_scale: None is 1 / sqrt(head_dim).
        causal: aligned bottom-right.
        window_size: (left, right), inclusive, around the same diagonal; a negative number is no bound.
        softcap: 0 is off.
        alibi_slopes: float32 (nheads,) or (batch, nheads): -slope * |i + seqlen_k - seqlen_q - j| is added.
        deterministic: always so.
        return_attn_probs: also return the lse.

    Returns:
        out (batch, seqlen_q, nheads, head_dim); with return_attn_probs (out, lse, an empty tensor), lse float32
        (batch, nheads, seqlen_q).

    Raises:
        ValueError, TypeError: as `undivided.attention`.
        NotImplementedError: return_attn_probs with dropout.
    """
    _check_flags(deterministic, return_attn_probs, dropout_p)
    found = attention(
        q,
        k,
        v,
        causal=causal,
        window=_window(window_size),
        bias=_alibi(alibi_slopes),
        scale=softmax_scale,
        softcap=_softcap(softcap),
        dropout_p=dropout_p,
        return_lse=return_attn_probs,
    )
    return found if isinstance(found, Tensor) else (*found, q.new_empty(0))


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """Attention over sequences of different lengths laid end to end; differentiable.

    Args:
        q: (total_q, nheads, head_dim); k, v: (total_k, nheads_kv, head_dim).
        cu_seqlens_q, cu_seqlens_k: int32 (batch + 1,): sequence b owns rows cu_seqlens[b] to cu_seqlens[b + 1].
        max_seqlen_q, max_seqlen_k: the longest lengths.
        block_table: refused; `flash_attn_with_kvcache` reads paged caches.
        The rest as in `flash_attn_func`.

    Returns:
        out (total_q, nheads, head_dim); with return_attn_probs (out, lse, an empty tensor), lse float32
        (nheads, total_q).

    Raises:
        ValueError, TypeError: as `undivided.attention_packed`.
        NotImplementedError: block_table, or return_attn_probs with dropout.
    """
    _check_flags(deterministic, return_attn_probs, dropout_p)
    if block_table is not None:
        raise NotImplementedError("block_table: packed queries read no paged cache; flash_attn_with_kvcache does")
    found = attention_packed(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        causal=causal,
        window=_window(window_size),
        bias=_alibi(alibi_slopes),
        scale=softmax_scale,
        softcap=_softcap(softcap),
        dropout_p=dropout_p,
        return_lse=return_attn_probs,
    )
    return found if isinstance(found, Tensor) else (*found, q.new_empty(0))


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """A step of decoding: new keys and values join the caches in place, then the queries attend to all of them.

    Args:
        q: (batch, seqlen_q, nheads, head_dim).
        k_cache, v_cache: (batch_cache, longest, nheads_kv, head_dim); with block_table
            (num_blocks, block_size, nheads_kv, head_dim).
        k, v: (batch, seqlen_new, nheads_kv, head_dim), written behind the tokens that are there; None for none.
        rotary_cos, rotary_sin: (seqlen_ro, rotary_dim / 2): k turns by its positions before it is written; q by its
            own when causal or with a window, otherwise all of it by the position behind the cache. The elements of a
            head from rotary_dim on stay. Needs k.
        cache_seqlens: int, or int32 (batch,): the tokens in the cache before this call; None, without k, for all.
        cache_batch_idx: int32 (batch,): which row of the caches each row of the batch has; None for 0, 1, 2, ...
        cache_leftpad: refused.
        block_table: int32 (batch, most_blocks): the blocks of each row.
        rotary_interleaved: True turns the pairs (x[2 i], x[2 i + 1]), False (x[i], x[i + rotary_dim / 2]).
        num_splits: how a GPU shares the work; the result does not depend on it, and it is chosen here.
        return_softmax_lse: also return the lse.
        The rest as in `flash_attn_func`.

    Returns:
        out (batch, seqlen_q, nheads, head_dim); with return_softmax_lse also lse, float32 (batch, nheads, seqlen_q).
        No gradient.

    Raises:
        ValueError, TypeError: as `undivided.attention_decode`; words that need one another or exclude one another.
        NotImplementedError: cache_leftpad.
    """
    is_whole("num_splits", num_splits)
    is_flag("causal", causal)
    is_flag("rotary_interleaved", rotary_interleaved)
    if cache_leftpad is not None:
        raise NotImplementedError("cache_leftpad: caches start at position 0; shift the rows instead")
    if k is not None and cache_seqlens is None:
        raise ValueError("cache_seqlens must be given with k and v: it says where they are written")
    if cache_batch_idx is not None:
        if block_table is not None:
            raise ValueError("cache_batch_idx and block_table exclude one another: a block table names rows already")
        block_table = _rows_as_blocks(cache_batch_idx, q, k_cache)
    lengths = _lengths(cache_seqlens, q, k_cache, block_table)
    window = _window(window_size)
    tables = None
    if rotary_cos is not None or rotary_sin is not None:
        if rotary_cos is None or rotary_sin is None or k is None:
            raise ValueError("rotary_cos, rotary_sin and k must be given together")
        moving = causal or window != (None, None)
        if _turns_on_the_way(q, k, rotary_cos, moving, rotary_interleaved):
            tables = rotary_cos, rotary_sin
        else:
            q = _turn(q, rotary_cos, rotary_sin, lengths, moving, rotary_interleaved)
            k = _turn(k, rotary_cos, rotary_sin, lengths, True, rotary_interleaved)
    return attention_decode(
        q,
        k_cache,
        v_cache,
        lengths,
        k=k,
        v=v,
        block_table=block_table,
        causal=causal,
        window=window,
        bias=_alibi(alibi_slopes),
        scale=softmax_scale,
        softcap=_softcap(softcap),
        rotary=tables,
        return_lse=return_softmax_lse,
    )


def _check_flags(deterministic: bool, return_attn_probs: bool, dropout_p: float) -> None:
    is_flag("deterministic", deterministic)
    is_flag("return_attn_probs", return_attn_probs)
    if return_attn_probs and dropout_p:
        raise NotImplementedError(
            f"return_attn_probs with dropout_p = {dropout_p}: dropout's pattern is not stored; "
            "leave one of the two out, or take the lse from undivided.attention(..., return_lse=True)"
        )


def _window(window_size: tuple[int, int]) -> tuple[int | None, int | None]:
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size = {window_size!r} must be (left, right), each an int; -1 is no bound")
    for side, value in zip(("left", "right"), window_size, strict=True):
        is_whole(f"window_size {side}", value, "an int; -1 is no bound")
    left, right = (None if value < 0 else value for value in window_size)
    return left, right


def _softcap(softcap: float) -> float | None:
    return None if isinstance(softcap, (int, float)) and softcap == 0 else softcap


def _alibi(slopes: Tensor | None) -> ALiBi | None:
    if slopes is None:
        return None
    is_tensor("alibi_slopes", slopes)
    return ALiBi(slopes)


def _rows_as_blocks(cache_batch_idx: Tensor, q: Tensor, k_cache: Tensor) -> Tensor:
    """A cache that is read by rows is a paged one whose blocks hold a whole row."""
    is_integer("cache_batch_idx", cache_batch_idx)
    has_shape("cache_batch_idx", cache_batch_idx, (q.shape[0],), "(batch,)")
    within("cache_batch_idx", cache_batch_idx, 0, k_cache.shape[0] - 1)
    return cache_batch_idx[:, None].to(torch.int32)


def _lengths(cache_seqlens: int | Tensor | None, q: Tensor, k_cache: Tensor, block_table: Tensor | None) -> Tensor:
    if isinstance(cache_seqlens, Tensor):
        is_integer("cache_seqlens", cache_seqlens)
        has_shape("cache_seqlens", cache_seqlens, (q.shape[0],), "(batch,)")
        return cache_seqlens
    if cache_seqlens is None:
        cache_seqlens = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    is_whole("cache_seqlens", cache_seqlens, "an int, an int32 tensor (batch,) or None")
    return torch.full((q.shape[0],), cache_seqlens, dtype=torch.int32, device=q.device)


def _turns_on_the_way(q: Tensor, k: Tensor, cos: Tensor, moving: bool, interleaved: bool) -> bool:
    """Whether this is what attention_decode turns itself: whole heads by halves, each query at its token's place."""
    whole = isinstance(cos, Tensor) and cos.dim() == 2 and 2 * cos.shape[1] == q.shape[-1]
    return whole and not interleaved and q.shape[1] == k.shape[1] and (moving or q.shape[1] == 1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, lengths: Tensor, moving: bool, interleaved: bool) -> Tensor:
    """Turns the first rotary_dim elements of x (batch, seqlen, nheads, head_dim), which starts behind the cache."""
    is_tensor("rotary_cos", cos)
    if cos.dim() != 2 or 2 * cos.shape[1] > x.shape[-1]:
        raise ValueError(
            f"rotary_cos has shape {tuple(cos.shape)}, expected (seqlen_ro, rotary_dim / 2) with rotary_dim at most "
            f"head_dim {x.shape[-1]}"
        )
    positions = lengths[:, None] + (torch.arange(x.shape[1], device=x.device) if moving else 0)
    positions = positions.expand(x.shape[:2])
    part, rest = x.split([2 * cos.shape[1], x.shape[-1] - 2 * cos.shape[1]], dim=-1)
    if interleaved:  # pairs side by side become halves, and back
        part = part.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    part = rotary(part, cos, sin, positions)
    if interleaved:
        part = part.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return torch.cat([part, rest], dim=-1)
