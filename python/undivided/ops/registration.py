"""Registers an op and its gradient for torch.compile, by schema.

`Library.define` and `impl` cost a few microseconds a call; the `custom_op` decorator several times as much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .checks import is_plain

LIBRARY = torch.library.Library("undivided", "FRAGMENT")


def by_registered_op(value: torch.Tensor) -> bool:
    """Whether a call must go through the registered op: torch.compile traces it, torch.jit.trace writes it down, and
    subclasses of Tensor have rules of their own for it."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or not is_plain(value)


def register(name: str, schema: str, body: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Defines undivided::name with one body for CPU and CUDA tensors, and its fake for tracing."""
    LIBRARY.define(f"{name}{schema}")
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, body, key)
    torch.library.register_fake(f"undivided::{name}", fake, lib=LIBRARY)


def register_gradient(name: str, backward: Callable[..., Any], setup: Callable[..., Any]) -> None:
    torch.library.register_autograd(f"undivided::{name}", backward, setup_context=setup, lib=LIBRARY)
