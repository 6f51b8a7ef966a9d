"""Attention over caches as it is defined: new tokens are written, the caches gathered, then plain attention."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import attention
from .bias import ALiBi, RelativeBias
from .rotary import rotary as turn


def append(cache: Tensor, new: Tensor, lengths: Tensor, block_table: Tensor | None) -> None:
    """Writes new (batch, n, nheads_kv, head_dim) into the cache behind the first `lengths` tokens of each row.

    Tokens that do not fit are dropped, without a look at the values: on a GPU nobody waits.
    """
    size = cache.shape[1]
    if block_table is None:  # one block a row
        block_table = torch.arange(cache.shape[0], device=cache.device)[:, None]
    positions = lengths[:, None].long() + torch.arange(new.shape[1], device=cache.device)
    blocks, slots = positions // max(size, 1), positions % max(size, 1)
    fits = (blocks >= 0) & (blocks < block_table.shape[1])
    numbers = block_table.long().gather(1, blocks.clamp(0, block_table.shape[1] - 1))
    # What does not fit goes to a row behind the last one, which is then left behind.
    rows = torch.cat([cache.flatten(0, 1), cache.new_zeros((1, *cache.shape[2:]))])
    rows[torch.where(fits, numbers * size + slots, rows.shape[0] - 1)] = new
    cache.copy_(rows[:-1].view(cache.shape))


def gathered(cache: Tensor, block_table: Tensor | None) -> Tensor:
    """(batch, longest, nheads_kv, head_dim): the cache, or the blocks of each row one after the other."""
    if block_table is None:
        return cache
    return cache[block_table.long().clamp(0, cache.shape[0] - 1)].flatten(1, 2)


def places(x: Tensor, total: Tensor) -> Tensor:
    """int64 (batch, n): the positions of x (batch, n, ...), the last tokens of rows of `total`.

    A query before the first token has position 0: it sees no key, whatever it is.
    """
    n = x.shape[1]
    return (total.long()[:, None] - n + torch.arange(n, device=x.device)).clamp(min=0)


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    *,
    k: Tensor | None = None,
    v: Tensor | None = None,
    block_table: Tensor | None = None,
    causal: bool = True,
    window: tuple[int | None, int | None] | None = None,
    bias: RelativeBias | ALiBi | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `undivided.attention_decode`: same words, any float dtype, any device."""
    total = cache_lengths if k is None else cache_lengths + k.shape[1]
    if rotary is not None:
        q = turn(q, *rotary, places(q, total))
        k = None if k is None else turn(k, *rotary, places(k, total))
    if k is not None and v is not None:
        append(k_cache, k, cache_lengths, block_table)
        append(v_cache, v, cache_lengths, block_table)
    return attention(
        q,
        gathered(k_cache, block_table),
        gathered(v_cache, block_table),
        causal=causal,
        window=window,
        key_lengths=total,
        query_offset=total - q.shape[1],
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        return_lse=return_lse,
    )
