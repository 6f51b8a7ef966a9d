"""Models of the transformers library as this package's own, and back. Needs that library only to convert."""

from .bart import M2M100, Bart, Marian, MBart
from .convert import FAMILIES, from_huggingface, to_huggingface
from .family import Family
from .t5 import MT5, T5
from .whisper import Whisper

__all__ = [
    "FAMILIES",
    "M2M100",
    "MT5",
    "T5",
    "Bart",
    "Family",
    "MBart",
    "Marian",
    "Whisper",
    "from_huggingface",
    "to_huggingface",
]
