"""What launchers share, on the host."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor


@functools.cache
def interpreting() -> bool:
    """Triton itself reads its variable when a kernel is defined, so this says how kernels of this process run."""
    return bool(triton.knobs.runtime.interpret)


@functools.cache
def several_devices() -> bool:
    return torch.cuda.device_count() > 1


def device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of x the current one; with a single GPU, or none, it is."""
    return torch.cuda.device_of(x) if several_devices() else nullcontext()


def on_its_device(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a launcher: its kernels run on the device of its first tensor, whatever the current device is."""

    @functools.wraps(launcher)
    def launch(first: Tensor, *rest: Any, **words: Any) -> Any:
        with device_of(first):
            return launcher(first, *rest, **words)

    return launch


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Read once. Without a GPU it is 4, so that small tests reach what depends on it."""
    if interpreting() or device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def capability(device: torch.device) -> int:
    """The compute capability, as 90 for 9.0; read once. 0 without a GPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def widened(*tensors: Tensor | None) -> list[Tensor | None]:
    """In the interpreter, bfloat16 as float32: its arithmetic on bfloat16 is that of the raw bits."""
    if not interpreting():
        return list(tensors)
    return [t.float() if t is not None and t.dtype == torch.bfloat16 else t for t in tensors]


def power_of_two(number: int, lowest: int = 16) -> int:
    """The smallest power of two that is at least `number` and `lowest`."""
    return max(lowest, 1 << (max(number, 1) - 1).bit_length())


def signed(number: int) -> int:
    """The int32 with the bits of a uint32: Triton's integer arguments are signed."""
    return number - 2**32 if number >= 2**31 else number
