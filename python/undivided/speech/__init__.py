"""Speech to text with Whisper: audio in, features, the model, text out."""

from .audio import RATE, read_audio, resample
from .features import log_mel
from .recognizer import Recognizer
from .whisper_weights import load_whisper, load_whisper_for_huggingface

__all__ = [
    "RATE",
    "Recognizer",
    "load_whisper",
    "load_whisper_for_huggingface",
    "log_mel",
    "read_audio",
    "resample",
]
