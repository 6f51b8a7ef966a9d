"""Multi-head attention with its weights, and the cache that decoding keeps."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops
from ..reference import attention_weights
from .positions import Positions


class Cache:
    """Keys and values of the tokens so far, in buffers made once for `longest` tokens.

    `keys`, `values`: (batch, longest, nheads, head_dim); `length` tokens of them are there.
    """

    def __init__(self, longest: int) -> None:
        self.longest, self.length = longest, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (batch, n, nheads, head_dim) and gives all keys and values so far.

        Raises:
            ValueError: there is no room for n more tokens.
        """
        if self.keys is None or self.values is None:
            shape = (k.shape[0], self.longest, *k.shape[2:])
            self.keys, self.values = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[1]
        if end > self.longest:
            raise ValueError(f"the cache holds {self.longest} tokens, {end} were given; make it longer")
        self.keys[:, self.length : end], self.values[:, self.length : end] = k, v
        self.length = end
        return self.keys[:, :end], self.values[:, :end]

    def all(self) -> tuple[Tensor, Tensor] | None:
        """The keys and values so far, None before the first."""
        if self.keys is None or self.values is None:
            return None
        return self.keys[:, : self.length], self.values[:, : self.length]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order: int64 (new batch,)."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class MultiHeadAttention(nn.Module):
    """Vaswani et al. 2017, section 3.2.2. Self-attention without `memory`, cross attention with it.

    Raises:
        ValueError: nheads is below 1, d_model is not a multiple of it, or dropout is not from 0 to below 1.
    """

    def __init__(self, d_model: int, nheads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if nheads < 1 or d_model % nheads:
            raise ValueError(f"d_model={d_model} must be a multiple of nheads={nheads}, which must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be at least 0 and below 1")
        self.nheads, self.head_dim, self.dropout = nheads, d_model // nheads, dropout
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.kv = nn.Linear(d_model, 2 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        x: Tensor,  # (batch, seqlen_q, d_model)
        memory: Tensor | None = None,  # (batch, seqlen_k, d_model)
        *,
        positions: Positions,
        causal: bool = False,
        key_lengths: Tensor | None = None,
        start: int = 0,
        cache: Cache | None = None,
    ) -> Tensor:
        """(batch, seqlen_q, d_model).

        `start` is the position of x's first token. With a cache x holds only the newest tokens: the keys of earlier
        ones, or of the whole memory, are in the cache and are not made again.
        """
        q = positions.turn(self._queries(x), start)
        k, v = self._keys_values(x, memory, positions, start, cache)
        bias = positions.bias() if memory is None else None
        dropout = self.dropout if self.training else 0.0
        out = ops.attention(q, k, v, causal=causal, key_lengths=key_lengths, bias=bias, dropout_p=dropout)
        assert isinstance(out, Tensor)  # a pair only where the lse is asked for
        return self.out(out.flatten(2))  # (batch, seqlen_q, nheads, head_dim) -> (batch, seqlen_q, d_model)

    def weights(self, x: Tensor, memory: Tensor, *, positions: Positions, key_lengths: Tensor | None = None) -> Tensor:
        """What each query of a cross attention looks at: (batch, nheads, seqlen_q, seqlen_k), rows sum to 1."""
        k, _ = self._keys_values(x, memory, positions, 0, None)
        return attention_weights(positions.turn(self._queries(x)), k, key_lengths=key_lengths)

    def _queries(self, x: Tensor) -> Tensor:
        return self.q(x).unflatten(-1, (self.nheads, self.head_dim))

    def _keys_values(
        self, x: Tensor, memory: Tensor | None, positions: Positions, start: int, cache: Cache | None
    ) -> tuple[Tensor, Tensor]:
        """Each (batch, seqlen_k, nheads, head_dim)."""
        if memory is not None and cache is not None and (found := cache.all()) is not None:
            return found
        pairs = self.kv(x if memory is None else memory).unflatten(-1, (2, self.nheads, self.head_dim))
        k, v = pairs.unbind(2)
        k = positions.turn(k, start if memory is None else 0)
        return (k, v) if cache is None else cache.append(k, v)
