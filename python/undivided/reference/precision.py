"""The reference keeps its precision under autocast, which would round the inputs of its matrix products to 16 bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Words = ParamSpec("Words")
Result = TypeVar("Result")


def full_precision(function: Callable[Words, Result]) -> Callable[Words, Result]:
    """Decorates a function of tensors on one device: autocast is off while it runs."""

    @functools.wraps(function)
    def run(*values: Words.args, **words: Words.kwargs) -> Result:
        kind = next(value.device.type for value in (*values, *words.values()) if isinstance(value, torch.Tensor))
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            return function(*values, **words)
        with torch.autocast(kind, enabled=False):
            return function(*values, **words)

    return run
