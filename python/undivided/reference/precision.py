"""The reference keeps its precision under autocast, which would round the inputs of its matrix products to 16 bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Words = ParamSpec("Words")
Result = TypeVar("Result")


def autocasting(value: torch.Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    if not torch._C._is_any_autocast_enabled():  # a fifth of the time of what follows
        return False
    # No torch.amp.is_autocast_available, which torch.compile cannot trace up to 2.11. "meta" has no autocast.
    return value.device.type != "meta" and torch.is_autocast_enabled(value.device.type)


def full_precision(function: Callable[Words, Result]) -> Callable[Words, Result]:
    """Decorates a function of tensors on one device: autocast is off while it runs."""

    @functools.wraps(function)
    def run(*values: Words.args, **words: Words.kwargs) -> Result:
        first = next(value for value in (*values, *words.values()) if isinstance(value, torch.Tensor))
        if not autocasting(first):
            return function(*values, **words)
        with torch.autocast(first.device.type, enabled=False):
            return function(*values, **words)

    return run
