"""Additive biases that are a function of the distance between key and query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """T5's learned relative bias (Raffel et al. 2020, section 2.1): one number per head and distance bucket.

    table: (num_buckets, nheads), any float dtype. max_distance: from here on all distances share the last bucket.
    bidirectional: half of the buckets are for keys after the query; otherwise those keys count as distance 0.
    """

    table: Tensor
    max_distance: int = 128
    bidirectional: bool = True


@dataclass(frozen=True, eq=False)
class ALiBi:
    """Linear bias -slope * |query position - key position| (Press et al. 2022, section 3).

    slopes: (nheads,) or (batch, nheads), any float dtype.
    """

    slopes: Tensor


def relative_buckets(distance: Tensor, num_buckets: int, max_distance: int = 128, bidirectional: bool = True) -> Tensor:
    """The bucket, int64, of each key position minus query position.

    As the rule gives it on Python's numbers, on every device: where buckets begin is reckoned with those, and distances
    are compared with it. (A GPU's own logarithm and division put the distance 16 of 32 buckets up to 128 one lower.)
    Transformers takes the logarithm in float32; up to 4096 tokens
    its buckets are the same for the models in use: 16, 32, 64 or 128 up to 64, 128, 256 or 512, T5's, MPNet's and
    LayoutLM's among them, and WavLM's 320 up to 800. With other sizes a boundary that is a whole number may fall to
    either side: with 18 buckets up to 128, the distances 8, 16 and 64 are one lower here. The C++ kernels read these
    buckets; the Triton kernels stand alone and have the rule again, tested to be equal.
    """
    half = num_buckets // 2 if bidirectional else num_buckets
    base = torch.where(distance > 0, half, 0) if bidirectional else torch.zeros_like(distance)
    n = distance.abs() if bidirectional else (-distance).clamp_min(0)
    exact = half // 2
    far = torch.full_like(n, exact)
    for start in _starts(exact, half, max_distance):
        far = far + (n >= start)
    return base + torch.where(n < exact, n, far)


@lru_cache(maxsize=32)
def _starts(exact: int, half: int, max_distance: int) -> tuple[int, ...]:
    """The least distance in each of the buckets exact + 1 to half - 1."""

    def steps(n: int) -> int:
        return int(math.log(n / exact) / math.log(max_distance / exact) * (half - exact))

    def first(step: int) -> int:
        """By halves; `bisect` does the same, and torch.compile cannot trace it."""
        low, high = exact, max_distance
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if steps(middle) >= step else (middle + 1, high)
        return low

    return tuple(first(step) for step in range(1, half - exact))
