"""Multi-head attention with its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..reference import attention_weights
from .cache import Cache
from .linear import Linear
from .packing import Packing, Start
from .positions import Positions

FEW = 8  # queries a row, up to which a cached call is a step of decoding; more are a prompt


class MultiHeadAttention(nn.Module):
    """Vaswani et al. 2017, section 3.2.2. Self-attention without `memory`, cross attention with it.

    `head_dim` is d_model / nheads where it is None, `scale` as in `undivided.attention`; `bias` is that of the four
    projections.

    Raises:
        ValueError: nheads or head_dim is below 1, d_model is not a multiple of nheads though it gives head_dim, or
            dropout is not from 0 to below 1.
    """

    def __init__(
        self,
        d_model: int,
        nheads: int,
        dropout: float = 0.0,
        *,
        head_dim: int | None = None,
        bias: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if nheads < 1 or (head_dim is None and d_model % nheads):
            raise ValueError(f"d_model={d_model} must be a multiple of nheads={nheads}, which must be at least 1")
        if head_dim is not None and head_dim < 1:
            raise ValueError(f"head_dim={head_dim} must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be at least 0 and below 1")
        self.nheads, self.head_dim, self.dropout, self.scale = nheads, head_dim or d_model // nheads, dropout, scale
        inner = nheads * self.head_dim
        self.q = Linear(d_model, inner, bias=bias)
        self.kv = Linear(d_model, 2 * inner, bias=bias)
        self.out = Linear(inner, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,  # (batch, seqlen_q, d_model)
        memory: Tensor | None = None,  # (batch, seqlen_k, d_model)
        *,
        positions: Positions,
        causal: bool = False,
        key_lengths: Tensor | Packing | None = None,
        start: Start = 0,
        cache: Cache | None = None,
    ) -> Tensor:
        """(batch, seqlen_q, d_model).

        `start` is the position of x's first token. With a cache x holds only the newest tokens: the keys of earlier
        ones, or of the whole memory, are in the cache and are not made again. Packed, x is (1, total, d_model), `start`
        its packing and `key_lengths` the memory's.
        """
        q = self._queries(x)
        bias = positions.bias() if memory is None else None
        dropout = self.dropout if self.training else 0.0
        words: dict[str, Any] = dict(causal=causal, bias=bias, scale=self.scale)
        few = q.shape[1] <= FEW and not dropout and not torch.is_grad_enabled()
        lengths: Any = key_lengths
        out: Any
        if cache is not None and few and memory is None and key_lengths is None:
            return self._output(self._step(q, x, positions, cache, words))
        if memory is None and cache is None and isinstance(start, int) and start == 0:
            turned = positions.tables(x.shape[1], x.device)
            out = ops.attention(q, *self._projected(x), key_lengths=lengths, dropout_p=dropout, rotary=turned, **words)
            return self._output(out)
        q = positions.turn(q, start)
        place = start if memory is None else 0
        if isinstance(start, Packing):
            keys = start if memory is None else packed_memory(key_lengths)
            k, v = self._keys_values(x, memory, positions, keys, None)
            out = attend_packed(q, k, v, start, keys, dropout_p=dropout, **words)
        elif cache is not None and few and memory is not None:
            k, v = self._keys_values(x, memory, positions, place, cache)
            lengths = cache.lengths if lengths is None else lengths
            out = ops.attention_decode(q, k, v, lengths, **words)
        else:
            k, v = self._keys_values(x, memory, positions, place, cache)
            out = ops.attention(q, k, v, key_lengths=lengths, dropout_p=dropout, **words)
        return self._output(out)

    def _step(self, q: Tensor, x: Tensor, positions: Positions, cache: Cache, words: dict[str, Any]) -> Any:
        """Self-attention of the newest tokens, few, to those in the cache and to themselves."""
        k, v = self._projected(x)
        caches, turned = cache.room_for(k, v), positions.tables(cache.longest, x.device)
        out = ops.attention_decode(q, *caches, k=k, v=v, rotary=turned, **words)
        cache.added(k.shape[1])
        return out

    def weights(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        positions: Positions,
        causal: bool = False,
        key_lengths: Tensor | None = None,
    ) -> Tensor:
        """What each query looks at, x from its first token on: (batch, nheads, seqlen_q, seqlen_k), rows sum to 1."""
        q, (k, _) = positions.turn(self._queries(x)), self._keys_values(x, memory, positions, 0, None)
        bias = positions.bias() if memory is None else None
        return attention_weights(q, k, causal=causal, bias=bias, key_lengths=key_lengths, scale=self.scale)

    def _queries(self, x: Tensor) -> Tensor:
        return self.q(x).unflatten(-1, (self.nheads, self.head_dim))

    def _keys_values(
        self, x: Tensor, memory: Tensor | None, positions: Positions, place: Start, cache: Cache | None
    ) -> tuple[Tensor, Tensor]:
        """Each (batch, seqlen_k, nheads, head_dim). `place` is where the keys stand, as `start` is of the queries."""
        if memory is not None and cache is not None and (found := cache.all()) is not None:
            return found
        k, v = self._projected(x if memory is None else memory)
        k = positions.turn(k, place)
        return (k, v) if cache is None else cache.append(k, v)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x, each (batch, seqlen_k, nheads, head_dim)."""
        k, v = self.kv(x).unflatten(-1, (2, self.nheads, self.head_dim)).unbind(2)
        return k, v

    def _output(self, out: Any) -> Tensor:
        assert isinstance(out, Tensor)  # a pair only where the lse is asked for
        return self.out(out.flatten(2))  # (batch, seqlen_q, nheads, head_dim) -> (batch, seqlen_q, inner) -> d_model


def packed_memory(packing: Tensor | Packing | None) -> Packing:
    if not isinstance(packing, Packing):
        raise TypeError(f"the queries are packed, so the memory must be: its key_lengths are {type(packing).__name__}")
    return packing


def attend_packed(q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, **words: Any) -> Tensor:
    """Attention of q (1, total_q, nheads, head_dim) within each sequence: (1, total_q, nheads, head_dim)."""
    out = ops.attention_packed(
        q[0],
        k[0],
        v[0],
        cu_seqlens_q=queries.cu_seqlens,
        cu_seqlens_k=keys.cu_seqlens,
        max_seqlen_q=queries.longest,
        max_seqlen_k=keys.longest,
        **words,
    )
    assert isinstance(out, Tensor)  # a pair only where the lse is asked for
    return out[None]
