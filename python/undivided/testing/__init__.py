"""Shipped, because users verify too: the case tables, the error budget and poisoned memory."""

from . import compare
from .cases import (
    ATTENTION_CASES,
    FEED_FORWARD_CASES,
    NORM_CASES,
    QUICK,
    ROTARY_CASES,
    AttentionCase,
    FeedForwardCase,
    NormCase,
    RotaryCase,
    make_inputs,
    widened,
)
from .decode_cases import DECODE_CASES, DECODE_QUICK, DecodeCase, make_decode_inputs
from .poison import poison
from .tolerance import Verdict, check, largest_error

__all__ = [
    "ATTENTION_CASES",
    "DECODE_CASES",
    "DECODE_QUICK",
    "FEED_FORWARD_CASES",
    "NORM_CASES",
    "QUICK",
    "ROTARY_CASES",
    "AttentionCase",
    "DecodeCase",
    "FeedForwardCase",
    "NormCase",
    "RotaryCase",
    "Verdict",
    "check",
    "compare",
    "largest_error",
    "make_decode_inputs",
    "make_inputs",
    "poison",
    "widened",
]
