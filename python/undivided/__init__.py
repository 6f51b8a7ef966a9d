"""Fused attention, layer norm and feed-forward kernels behind one small API, with a plain PyTorch reference."""

from . import reference
from .dispatch import BackendRefused
from .ops import (
    attention,
    attention_packed,
    explain,
    feed_forward,
    layer_norm,
    merge_attention,
    rms_norm,
    rotary,
)
from .reference import ALiBi, RelativeBias

__version__ = "0.1.0"

__all__ = [
    "ALiBi",
    "BackendRefused",
    "RelativeBias",
    "attention",
    "attention_packed",
    "explain",
    "feed_forward",
    "layer_norm",
    "merge_attention",
    "reference",
    "rms_norm",
    "rotary",
]
