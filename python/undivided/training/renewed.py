"""Examples that are others in each epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .batches import Examples

Pairs = Sequence[tuple[Sequence[Any], Sequence[int]]]


class Renewed(Examples):
    """The pairs of `epoch`, which `pairs(epoch)` gives; only those of one epoch are held."""

    def __init__(
        self,
        pairs: Callable[[int], Pairs],
        device: torch.device | str,
        shifted: bool = True,
        epoch: int = 0,
    ) -> None:
        super().__init__(pairs(epoch), device, shifted)
        self.pairs, self.epoch = pairs, epoch

    def at(self, epoch: int) -> Examples:
        return self if epoch == self.epoch else Renewed(self.pairs, self.device, self.shifted, epoch)
