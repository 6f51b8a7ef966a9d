"""The state of a decoding: caches, what does not change from step to step, and which row is which."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..nn import Cache


class Decoding:
    """`step(ids)` takes the newest symbols (batch, n) and gives logits (batch, vocabulary) of the next one.

    `batch` rows at first; `select` repeats, drops or reorders them, as a beam search does.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Decoding], Tensor],
        caches: list[Cache],
        tensors: dict[str, Tensor],
        batch: int,
        device: torch.device,
    ) -> None:
        self._forward, self.caches, self.tensors = forward, caches, tensors
        self.batch, self.device = batch, device

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        logits = self._forward(ids, self)
        return logits if logits.dtype == torch.float64 else logits.float()

    def select(self, rows: Tensor) -> None:
        """rows: int64 (new batch,), numbers of present rows."""
        for cache in self.caches:
            cache.select(rows)
        self.tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}
        self.batch = rows.shape[0]
