"""The thin encoder-decoder transformer, its heads, generation and files."""

from .beam_search import beam_search
from .config import Config
from .decoding import Decoding
from .files import load, save
from .generation import greedy_search, sample
from .heads import CausalLM, NextToken, SequenceClassifier, TokenClassifier
from .model import Transformer
from .padding import keep_padding

__all__ = [
    "CausalLM",
    "Config",
    "Decoding",
    "NextToken",
    "SequenceClassifier",
    "TokenClassifier",
    "Transformer",
    "beam_search",
    "greedy_search",
    "keep_padding",
    "load",
    "sample",
    "save",
]
