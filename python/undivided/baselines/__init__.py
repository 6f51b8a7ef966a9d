"""The recurrent models that the transformer is compared with: on the same data, by the same trainer and metrics."""

from .config import CELLS, POOLINGS, Config
from .heads import SequenceClassifier, TokenClassifier
from .recurrent import Recurrent
from .sequence import AttentionSeq2Seq, Seq2Seq

__all__ = [
    "CELLS",
    "POOLINGS",
    "AttentionSeq2Seq",
    "Config",
    "Recurrent",
    "Seq2Seq",
    "SequenceClassifier",
    "TokenClassifier",
]
