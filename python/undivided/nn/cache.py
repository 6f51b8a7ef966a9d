"""The keys and values that decoding keeps."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values of the tokens so far, in buffers made once for `longest` tokens.

    `keys`, `values`: (batch, longest, nheads, head_dim); on a CPU a head's tokens lie one after the other. `length`
    tokens of them are there, which `lengths`, int32 (batch,), says on their device. All three are None before the first
    token.

    on_device: a step that is recorded reads them, so `start` takes the positions of new tokens from `lengths`.
    of_source: they are those of the memory, which all hypotheses for a source share.
    """

    def __init__(self, longest: int, on_device: bool = False, of_source: bool = False) -> None:
        self.longest, self.length, self.on_device, self.of_source = longest, 0, on_device, of_source
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.lengths: Tensor | None = None

    def room_for(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(keys, values, lengths), after making sure that (batch, n, nheads, head_dim) can be added.

        Raises:
            ValueError: there is no room for n more tokens.
        """
        if self.keys is None or self.values is None or self.lengths is None:
            self.keys, self.values = self._buffer(k), self._buffer(v)
            self.lengths = torch.zeros(k.shape[0], dtype=torch.int32, device=k.device)
        self.check_room(k.shape[1])
        return self.keys, self.values, self.lengths

    def _buffer(self, x: Tensor) -> Tensor:
        batch, _, nheads, head_dim = x.shape
        if x.device.type != "cpu":
            return x.new_empty(batch, self.longest, nheads, head_dim)
        return x.new_empty(batch, nheads, self.longest, head_dim).transpose(1, 2)

    def check_room(self, count: int) -> None:
        """Raises: ValueError where there is no room for `count` more tokens."""
        end = self.length + count
        if end > self.longest:
            raise ValueError(f"the cache holds {self.longest} tokens, {end} were given; make it longer")

    def start(self, count: int) -> int | Tensor:
        """Where the next tokens stand: the position of the first, or, on the device, int64 (batch, count) of each."""
        if not self.on_device or self.lengths is None:
            return self.length
        return self.lengths[:, None] + torch.arange(count, device=self.lengths.device)

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
        """Keeps these rows of the batch, in this order: int64 (new batch,). As many as before keep their memory, which
        a recorded step reads."""
        if self.keys is None or self.values is None or self.lengths is None:
            return
        if rows.shape[0] != self.lengths.shape[0]:
            self.keys, self.values, self.lengths = self.keys[rows], self.values[rows], self.lengths[rows]
            return
        for tensor in (self.keys[:, : self.length], self.values[:, : self.length], self.lengths):
            tensor.copy_(tensor.index_select(0, rows))
