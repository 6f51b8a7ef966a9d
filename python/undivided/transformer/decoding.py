"""The state of a decoding: caches, what does not change from step to step, and which row is which."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..nn import Cache
from .captured import Captured

SOURCE = ("memory", "src_lengths")  # of the tensors, those that all hypotheses for a source share


class Decoding:
    """`step(ids)` takes the newest symbols (batch, n) and gives logits (batch, vocabulary) of the next one.

    `batch` rows at first; `select` repeats, drops or reorders them, as a beam search does. With `captured`, the steps
    are replayed by it.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Decoding], Tensor],
        caches: list[Cache],
        tensors: dict[str, Tensor],
        batch: int,
        device: torch.device,
        captured: Captured | None = None,
    ) -> None:
        self._forward, self.caches, self.tensors = forward, caches, tensors
        self.batch, self.device, self._captured = batch, device, captured

    @torch.no_grad()
    def step(self, ids: Tensor) -> Tensor:
        return self._run(ids) if self._captured is None else self._captured.step(self._run, ids, self.caches)

    def _run(self, ids: Tensor) -> Tensor:
        logits = self._forward(ids, self)
        return logits if logits.dtype == torch.float64 else logits.float()

    def select(self, rows: Tensor, same_sources: bool = False) -> None:
        """rows: int64 (new batch,), numbers of present rows.

        same_sources: they are as many as before, each of the same source as the row in whose place it comes, as in a
        beam search: what is the source's stays as it is.
        """
        for cache in self.caches:
            if not (same_sources and cache.of_source):
                cache.select(rows)
        kept = {name: x[rows] for name, x in self.tensors.items() if not (same_sources and name in SOURCE)}
        if self._captured is not None and rows.shape[0] == self.batch:
            for name, tensor in kept.items():  # what a captured step reads stays where it is
                self.tensors[name].copy_(tensor)
            return
        self.tensors, self.batch = self.tensors | kept, rows.shape[0]
        if self._captured is not None:
            self._captured.forget()
