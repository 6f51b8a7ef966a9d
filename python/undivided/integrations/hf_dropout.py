"""Dropout on a CPU with a quarter of the random numbers: one int64 of torch's generator decides on four elements.

torch draws a number for each element, one after the other on one thread: a fifth of a training step of T5-small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.checks import readable

LEVELS = 2**16  # probabilities are multiples of 1 / LEVELS
FEW = 2**14  # elements: up to so many one op of torch is quicker than the six here


class Dropout:
    """Lends its forward to torch's Dropout. `self` is the module."""

    def forward(self: Any, input: Tensor) -> Tensor:
        if self.inplace:
            result: Tensor = type(self).forward(self, input)
            return result
        return dropout(input, self.p, self.training)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """x with elements set to 0 with probability p and the others divided by 1 - p, as torch's `dropout` has it.

    Numbers come from torch's default generator: a seed decides what is dropped, but of more than FEW elements not
    the same as in torch.
    """
    drops = round(p * LEVELS)
    # On a GPU, too, torch's own is quick.
    if not training or not 0 < drops < LEVELS or x.numel() <= FEW or not readable(x):
        return F.dropout(x, p, training)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device="cpu").random_(-(2**63), None)
    levels = words.view(torch.int16)[: x.numel()].view(x.shape)
    return x * (levels >= drops - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - drops))
