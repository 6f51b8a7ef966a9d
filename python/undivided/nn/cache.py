"""The keys and values that decoding keeps."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values of the tokens so far, in buffers made once for `longest` tokens.

    `keys`, `values`: (batch, longest, nheads, head_dim); `length` tokens of them are there, which `lengths`, int32
    (batch,), says on their device. All three are None before the first token.
    """

    def __init__(self, longest: int) -> None:
        self.longest, self.length = longest, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.lengths: Tensor | None = None

    def room_for(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(keys, values, lengths), after making sure that (batch, n, nheads, head_dim) can be added.

        Raises:
            ValueError: there is no room for n more tokens.
        """
        if self.keys is None or self.values is None or self.lengths is None:
            shape = (k.shape[0], self.longest, *k.shape[2:])
            self.keys, self.values = k.new_empty(shape), v.new_empty(shape)
            self.lengths = torch.zeros(k.shape[0], dtype=torch.int32, device=k.device)
        end = self.length + k.shape[1]
        if end > self.longest:
            raise ValueError(f"the cache holds {self.longest} tokens, {end} were given; make it longer")
        return self.keys, self.values, self.lengths

    def added(self, count: int) -> None:
        """Counts tokens that have been written behind the last one."""
        assert self.lengths is not None
        self.length += count
        self.lengths += count

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (batch, n, nheads, head_dim) and gives all keys and values so far. Raises: as `room_for`."""
        keys, values, _ = self.room_for(k, v)
        end = self.length + k.shape[1]
        keys[:, self.length : end], values[:, self.length : end] = k, v
        self.added(k.shape[1])
        return keys[:, :end], values[:, :end]

    def all(self) -> tuple[Tensor, Tensor] | None:
        """The keys and values so far, None before the first."""
        if self.keys is None or self.values is None:
            return None
        return self.keys[:, : self.length], self.values[:, : self.length]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order: int64 (new batch,)."""
        if self.keys is not None and self.values is not None and self.lengths is not None:
            self.keys, self.values, self.lengths = self.keys[rows], self.values[rows], self.lengths[rows]
