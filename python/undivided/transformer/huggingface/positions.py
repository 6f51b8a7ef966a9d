"""Sines and cosines in the two column orders and the two series of wavelengths that published models have."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...nn import Sinusoidal
from ...reference import sinusoidal


class SplitSinusoidal(Sinusoidal):
    """Marian's: those of Vaswani et al. 2017, first the columns of sines, then those of cosines."""

    def rows(self, longest: int) -> Tensor:
        table = sinusoidal(longest, self.d_model)
        return torch.cat([table[:, 0::2], table[:, 1::2]], 1)


class ReachingSinusoidal(Sinusoidal):
    """Those of tensor2tensor (`reaching_sinusoidal`) from position `first` on."""

    def __init__(self, d_model: int, first: int) -> None:
        super().__init__(d_model)
        self.first = first

    def rows(self, longest: int) -> Tensor:
        return reaching_sinusoidal(self.first + longest, self.d_model)[self.first :]


def reaching_sinusoidal(longest: int, d_model: int) -> Tensor:
    """float32 (longest, d_model): sines, then cosines, of wavelengths that grow from 2 pi until they reach 20000 pi.

    The angles are made in float32, as they were when the models that use them were trained.

    Raises:
        ValueError: d_model is below 4: there are not two wavelengths.
    """
    if d_model < 4:
        raise ValueError(f"d_model={d_model} must be at least 4 for these positions")
    half = d_model // 2
    frequency = torch.exp(torch.arange(half).float() * -(math.log(10000.0) / (half - 1)))
    angle = torch.arange(longest).float()[:, None] * frequency
    return pad(torch.cat([angle.sin(), angle.cos()], 1), (0, d_model % 2))
