"""Shipped, because users verify too: the case tables, the error budget and poisoned memory."""

from . import compare
from .cases import (
    ATTENTION_CASES,
    FEED_FORWARD_CASES,
    NORM_CASES,
    QUICK,
    AttentionCase,
    FeedForwardCase,
    NormCase,
    make_inputs,
    widened,
)
from .poison import poison
from .tolerance import Verdict, check, largest_error

__all__ = [
    "ATTENTION_CASES",
    "FEED_FORWARD_CASES",
    "NORM_CASES",
    "QUICK",
    "AttentionCase",
    "FeedForwardCase",
    "NormCase",
    "Verdict",
    "check",
    "compare",
    "largest_error",
    "make_inputs",
    "poison",
    "widened",
]
