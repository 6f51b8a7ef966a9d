"""The error that a kernel may have: measured, never chosen.

Against the float64 reference, a kernel's error must stay within twice the error of an honest PyTorch run of the same
mathematics in the same low precision, plus one rounding of the output type at the size of the largest value.

One addition: `scale` stands for the size of the terms that a result is summed from, and eight float32 roundings of it
are allowed. Where terms cancel (the key gradient of a softmax over one key is 0) the honest run may be exactly right
while any other order of the same float32 sum is off by a few roundings of its terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """One comparison: the largest absolute error, what was allowed, and whether it holds."""

    name: str
    error: float
    budget: float

    @property
    def ok(self) -> bool:
        return self.error <= self.budget  # NaN is never within a budget


def rounding(expected: Tensor, dtype: torch.dtype) -> float:
    """Half a unit in the last place of the largest finite value of `expected`, in `dtype`."""
    return largest_value(expected) * torch.finfo(dtype).eps / 2


def largest_value(x: Tensor) -> float:
    """The largest finite magnitude; 0 when there is none."""
    finite = x.detach()[torch.isfinite(x)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def largest_error(got: Tensor, expected: Tensor) -> float:
    """max |got - expected| in float64; NaN where one of them has NaN, or differs at an infinity."""
    if got.shape != expected.shape:
        raise ValueError(f"shapes differ: {tuple(got.shape)} and expected {tuple(expected.shape)}")
    if not got.numel():
        return 0.0
    got, expected = got.detach().double(), expected.detach().double()
    same = got == expected  # infinities that agree
    return float(torch.where(same, 0.0, (got - expected).abs()).max())


def check(name: str, got: Tensor, expected: Tensor, honest: Tensor, scale: float = 0.0) -> Verdict:
    """`got` against the float64 `expected`, with a budget from `honest`: plain PyTorch in got's own precision."""
    summing = 8 * torch.finfo(torch.float32).eps * scale
    budget = 2 * largest_error(honest, expected) + rounding(expected, got.dtype) + summing
    return Verdict(name, largest_error(got, expected), budget)
