"""Whisper's input: how strong each of some bands of pitch is, every hundredth of a second (Radford et al. 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .audio import RATE

WINDOW, HOP = 400, 160  # samples: 25 ms, every 10 ms


def log_mel(samples: Tensor, bins: int = 80, frames: int = 3000) -> Tensor:
    """float32 (bins, frames) of samples (n,) at 16,000 a second; silence fills up what is shorter.

    Raises:
        ValueError: the samples are more than the frames hold, or are no vector.
    """
    if samples.dim() != 1 or samples.shape[0] > frames * HOP:
        raise ValueError(f"samples have shape {tuple(samples.shape)}, expected (n,) with n at most {frames * HOP}")
    filled = torch.nn.functional.pad(samples.float(), (0, frames * HOP - samples.shape[0]))
    window = torch.hann_window(WINDOW, device=samples.device)
    spectrum = torch.stft(filled, WINDOW, HOP, window=window, return_complex=True)[:, :-1]
    bands = (mel_filters(bins).to(samples.device) @ spectrum.abs().square()).clamp_min(1e-10).log10()
    # The quietest that is told apart is 80 dB below the loudest; the result is about 1 in size.
    return (bands.maximum(bands.max() - 8) + 4) / 4


def mel_filters(bins: int) -> Tensor:
    """float32 (bins, WINDOW // 2 + 1): triangles of equal width on Slaney's mel scale from 0 to 8 kHz, of equal area.

    The scale is linear below 1 kHz, 15 steps, and logarithmic above it, 27 steps to 6.4 kHz.
    """
    mel = torch.linspace(0, _mel(RATE / 2), bins + 2, dtype=torch.float64)
    corners = torch.where(mel < 15, mel * (200 / 3), 1000 * 6.4 ** ((mel - 15) / 27))
    frequency = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    low, top, high = (corners[i : bins + i, None] for i in range(3))
    triangles = torch.minimum((frequency - low) / (top - low), (high - frequency) / (high - top)).clamp_min(0)
    return (triangles * 2 / (high - low)).float()


def _mel(frequency: float) -> float:
    return frequency * 3 / 200 if frequency < 1000 else 15 + 27 * math.log(frequency / 1000) / math.log(6.4)
