"""Whisper tiny.en with its published weights, and what it hears: the recording of the tests, where both are at hand."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

from torch import nn

from undivided.environment import data_folder
from undivided.speech.audio import read_audio
from undivided.speech.features import log_mel
from undivided.speech.whisper_weights import PACKAGE, load_whisper_for_huggingface

from .huggingface_models import SHAPES, Batch

POSITIONS = 1500  # that Whisper hears, of two frames each


@lru_cache(maxsize=1)
def recording() -> Path | None:
    """speech/jfk.flac of the folder with data; None where it, the weights or a reader of sound are missing."""
    folder = data_folder()
    path = None if folder is None else folder / "speech" / "jfk.flac"
    installed = all(importlib.util.find_spec(name) is not None for name in (PACKAGE, "soundfile", "transformers"))
    return path if installed and path is not None and path.is_file() else None


def published_whisper(attn_implementation: str) -> nn.Module:
    """WhisperForConditionalGeneration, float32. It does not end before the symbols that are asked for are there."""
    model = load_whisper_for_huggingface()
    model.set_attn_implementation(attn_implementation)
    model.generation_config.eos_token_id = None
    return model.eval()  # type: ignore[no-any-return]


def speech(device: str) -> Batch:
    """The recording as features (1, channels, 3000)."""
    path = recording()
    assert path is not None  # there is no case without it
    features = log_mel(read_audio(path), SHAPES["whisper-tiny.en"].mel, 2 * POSITIONS)[None]
    return Batch({"input_features": features.to(device)}, (POSITIONS,), (0,))
