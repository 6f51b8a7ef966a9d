"""Fused attention, layer norm and feed-forward kernels behind one small API, with a plain PyTorch reference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import reference
from .dispatch import BackendRefused
from .integrations import torch_flash
from .invariance import batch_invariant
from .memory import keep_freed_memory
from .ops import (
    attention,
    attention_decode,
    attention_packed,
    explain,
    feed_forward,
    layer_norm,
    merge_attention,
    rms_norm,
    rotary,
)
from .reference import ALiBi, RelativeBias

if TYPE_CHECKING:
    from .integrations.huggingface import accelerate, restore
    from .integrations.torch_sdpa import install_sdpa, sdpa, sdpa_report, uninstall_sdpa

__version__ = "0.1.0"

# Names that are imported when they are first asked for.
_ON_DEMAND = {"accelerate": "huggingface", "restore": "huggingface"} | dict.fromkeys(
    ("install_sdpa", "sdpa", "sdpa_report", "uninstall_sdpa"), "torch_sdpa"
)

__all__ = [
    "ALiBi",
    "BackendRefused",
    "RelativeBias",
    "accelerate",
    "attention",
    "attention_decode",
    "attention_packed",
    "batch_invariant",
    "explain",
    "feed_forward",
    "install_sdpa",
    "keep_freed_memory",
    "layer_norm",
    "merge_attention",
    "reference",
    "restore",
    "rms_norm",
    "rotary",
    "sdpa",
    "sdpa_report",
    "uninstall_sdpa",
]

torch_flash.register()


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".integrations.{_ON_DEMAND[name]}", __name__), name)
