"""An embedding that hears: slots of frames become vectors by two convolutions over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..tasks.frames import BANDS, FRAMES, LEVELS, SLOT
from ..tasks.vocabulary import PAD

STRIDE, KERNEL = 2, 5
# In training, this many bands and frames at most are hidden, of each row one stretch of each (SpecAugment, Park 2019).
HIDDEN_BANDS, HIDDEN_FRAMES = 5, 12


class FrameEmbedding(nn.Module):
    """src (batch, seqlen, SLOT) of levels -> (batch, seqlen, d_model).

    Two convolutions over time, each with stride 2, turn the four frames of a slot into one vector (as in front of
    Whisper, Radford et al. 2023). Padding is silent to them: a row means the same in any batch.
    """

    mixes_neighbours = True  # packed, the end of a sound would mix with the beginning of the next

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(BANDS, d_model, KERNEL, STRIDE, padding=KERNEL // 2)
        self.second = nn.Conv1d(d_model, d_model, KERNEL, STRIDE, padding=KERNEL // 2)

    def check(self, name: str, src: Tensor) -> Tensor:
        """Raises: TypeError or ValueError for what is no batch of slots."""
        if src.dtype not in (torch.uint8, torch.int64):
            raise TypeError(f"{name} has dtype {src.dtype}, expected torch.uint8 or torch.int64")
        if src.dim() != 3 or src.shape[1] == 0 or src.shape[2] != SLOT:
            raise ValueError(f"{name} has shape {tuple(src.shape)}, expected (batch, seqlen, {SLOT})")
        return src

    def forward(self, src: Tensor) -> Tensor:
        frames = src.unflatten(2, (FRAMES, BANDS)).flatten(1, 2)  # (batch, seqlen * FRAMES, BANDS)
        heard = (frames[:, :, :1] != PAD).transpose(1, 2)  # (batch, 1, seqlen * FRAMES)
        if self.training:
            frames = hidden(frames)
        x = (frames.float() * (2 / LEVELS) - 1).transpose(1, 2) * heard
        x = functional.gelu(self.first(x)) * heard[:, :, ::STRIDE]  # (batch, d_model, seqlen * FRAMES / 2)
        return functional.gelu(self.second(x)).transpose(1, 2)


def hidden(frames: Tensor) -> Tensor:
    """frames (batch, n, BANDS), of each row some neighbouring bands and neighbouring frames at the middle level."""
    batch, count, bands = frames.shape
    over_time = stretch(batch, count, min(HIDDEN_FRAMES, count // 4), frames.device)[:, :, None]
    over_bands = stretch(batch, bands, HIDDEN_BANDS, frames.device)[:, None, :]
    return frames.masked_fill(over_time | over_bands, (LEVELS + 1) // 2)


def stretch(batch: int, count: int, most: int, device: torch.device) -> Tensor:
    """bool (batch, count): in each row one stretch of at most `most`."""
    width, place = torch.rand((2, batch, 1), device=device)
    width = (width * (most + 1)).floor()
    begin = (place * (count - width + 1)).floor()
    at = torch.arange(count, device=device)
    return (at >= begin) & (at < begin + width)
