"""Checks that every op shares. Each error names the value and what is allowed.

isinstance is asked with tuples of types: torch.compile of torch 2.9 cannot trace a union of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reference.precision import autocasting

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def is_tensor(name: str, value: object) -> None:
    """A dense one: the others have no strides to read by."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "is a nested tensor" if value.is_nested else f"has layout {value.layout}"
        raise TypeError(f"{name} {kind}; allowed: dense tensors (layout torch.strided)")


def is_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} = {value!r} must be True or False")


def is_whole(name: str, value: object, words: str = "an int") -> None:
    """An int; True and False are none. A SymInt is one: torch.compile traces sizes as such."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} = {value!r} must be {words}")


def is_number(name: str, value: object, words: str = "a number") -> None:
    """A finite int or float. A tensor is none: its gradient would be lost without a word."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} = {value!r} must be {words}")
    if not -math.inf < value < math.inf:  # NaN is neither; torch.compile cannot trace math.isfinite
        raise ValueError(f"{name} = {value} must be finite")


def is_integer(name: str, value: Tensor) -> None:
    is_tensor(name, value)
    if value.dtype not in INTEGERS:
        raise TypeError(f"{name} has dtype {value.dtype}; allowed: int32, int64")


def is_plain(value: Tensor) -> bool:
    """No subclass of Tensor: one may have no values and no memory, as those of torch's FakeTensorMode."""
    return type(value) in (Tensor, torch.nn.Parameter)


def watched() -> bool:
    """Whether a mode, such as make_fx or torch's FakeTensorMode, sees or replaces what the dispatcher calls."""
    return torch._C._len_torch_dispatch_stack() > 0


def readable(value: Tensor) -> bool:
    """Whether looking at the values costs nothing: on a CPU, and not while a graph or a transform is traced."""
    tracing = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or watched()
    return not tracing and is_plain(value) and value.device.type == "cpu" and value.numel() > 0


def is_float(name: str, value: Tensor) -> None:
    is_tensor(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {value.dtype}; allowed: float32, bfloat16, float16, float64")


def same_dtype(first: str, value: Tensor, second: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(f"{second} has dtype {other.dtype}, {first} has {value.dtype}; they must be the same")


def same_device(first: str, value: Tensor, second: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{second} is on {other.device}, {first} is on {value.device}; they must be on one device")


def has_shape(name: str, value: Tensor, shape: tuple[int, ...], words: str) -> None:
    if value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {words} = {tuple(shape)}")


def is_like(name: str, value: Tensor, shape: tuple[int, ...], words: str, other: str, like: Tensor) -> None:
    """A tensor of this shape, of the dtype and on the device of `like`, which is called `other` and is a float."""
    is_tensor(name, value)
    if value.dtype != like.dtype:
        is_float(name, value)
        same_dtype(other, like, name, value)
    if value.device != like.device:
        same_device(other, like, name, value)
    if value.shape != shape:
        has_shape(name, value, shape, words)


def last_contiguous(value: Tensor) -> Tensor:
    """Kernels read rows: the last dimension must have stride 1. A copy is made where it has not."""
    return value if value.stride(-1) == 1 or value.shape[-1] <= 1 else value.contiguous()


def autocast_to(*values: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, every float dtype but float64 becomes the autocast dtype, as in torch's attention and linear.

    What is no tensor is left for the checks that follow.
    """
    if not torch._C._is_any_autocast_enabled():
        return values
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors or not autocasting(tensors[0]):
        return values
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.dtype in FLOATS[:3] else value for value in values
    )
