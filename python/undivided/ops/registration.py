"""Registers an op and its gradient for torch.compile, by schema.

`Library.define` and `impl` cost a few microseconds a call; the `custom_op` decorator several times as much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .checks import is_plain, watched

LIBRARY = torch.library.Library("undivided", "FRAGMENT")


def by_registered_op(*values: torch.Tensor | None) -> bool:
    """Whether a call on these tensors must go through the registered op: torch.compile traces it, torch.jit.trace
    writes it down, modes see it, a subclass of Tensor, whichever argument it is, has rules of its own for it, and what
    stands in memory is not the values where the negative bit is set."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or watched():
        return True
    return not all(value is None or (is_plain(value) and not value.is_neg()) for value in values)


def register(name: str, schema: str, body: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Defines undivided::name with one body for CPU and CUDA tensors, and its fake for tracing."""
    LIBRARY.define(f"{name}{schema}")
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, body, key)
    torch.library.register_fake(f"undivided::{name}", fake, lib=LIBRARY)


def register_gradient(name: str, backward: Callable[..., Any], setup: Callable[..., Any]) -> None:
    torch.library.register_autograd(f"undivided::{name}", backward, setup_context=setup, lib=LIBRARY)
