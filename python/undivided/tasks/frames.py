"""Sound as a sequence of symbols: each is a slot of 40 ms, four frames of how strong 24 bands of pitch are.

The levels are those of Whisper's input (`undivided.speech.features`), below 4 kHz, in 255 steps up to the loudest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..speech.features import HOP, log_mel
from .base import Symbols
from .vocabulary import Vocabulary

BINS, BANDS = 32, 24  # of the 32 bands up to 8 kHz, the 24 lowest end near 4 kHz
FRAMES = 4  # in a slot
SLOT = FRAMES * BANDS
SECONDS = 0.01 * FRAMES
LEVELS = 255  # 0 is padding, 1 the quietest that is told apart, 80 dB below the loudest


class Frames(Vocabulary):
    """Slots are symbols without a list of them: each has a character for each of its levels."""

    kind = "frames"

    def __init__(self) -> None:
        super().__init__(())

    def fields(self) -> dict[str, Any]:
        return {}

    def encode(self, symbols: Sequence[str]) -> Any:
        """uint8 (slots, SLOT), the frames of a slot one after the other.

        Raises:
            ValueError: a symbol is no slot.
        """
        wrong = [symbol for symbol in symbols if len(symbol) != SLOT or not all("\0" < one <= "\xff" for one in symbol)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no slot: {SLOT} characters from 1 to {LEVELS} are needed")
        data = bytearray("".join(symbols).encode("latin-1"))
        return torch.frombuffer(data, dtype=torch.uint8).view(-1, SLOT) if data else torch.zeros(0, SLOT).byte()

    def pieces(self, symbols: Sequence[str]) -> tuple[str, ...]:
        """Where each slot begins, in seconds."""
        return tuple(f"{SECONDS * number:.2f}" for number in range(len(symbols)))


def strengths(samples: Tensor) -> Tensor:
    """float32 (frames, BANDS) of samples (n,) at 16,000 a second, a frame every 10 ms; 2 is 80 dB."""
    return log_mel(samples, BINS, -(-samples.shape[0] // HOP))[:BANDS].T


def slots(frames: Tensor) -> Symbols:
    """The symbols of `strengths` (frames, BANDS); the last slot is filled up with silence."""
    steps = ((frames - frames.max()) / 2 + 1).clamp(0, 1) * (LEVELS - 1) + 1
    filled = torch.nn.functional.pad(steps.round().byte(), (0, 0, 0, -len(frames) % FRAMES), value=1)
    text = bytes(filled.flatten().tolist()).decode("latin-1")
    return tuple(text[place : place + SLOT] for place in range(0, len(text), SLOT))
