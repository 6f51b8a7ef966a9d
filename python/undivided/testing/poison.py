"""Fills every fresh allocation with NaN, so that a value that a kernel never wrote shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

PATCHED: tuple[tuple[Any, str], ...] = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (Tensor, "new_empty"),
    (Tensor, "new_empty_strided"),
)


def _fill(fresh: Tensor) -> Tensor:
    if fresh.is_floating_point():
        return fresh.fill_(torch.nan)
    return fresh.fill_(torch.iinfo(fresh.dtype).max) if fresh.dtype != torch.bool else fresh.fill_(True)


@contextmanager
def poison() -> Iterator[None]:
    """While it is open, torch.empty and its kin return NaN (integers: the largest value)."""

    def wrap(function: Any) -> Any:
        return lambda *args, **kwargs: _fill(function(*args, **kwargs))

    with ExitStack() as stack:
        for owner, name in PATCHED:
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))
        yield
