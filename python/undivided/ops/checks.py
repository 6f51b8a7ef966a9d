"""Checks that every op shares. Each error names the value and what is allowed."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


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
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {words} = {tuple(shape)}")


def last_contiguous(value: Tensor) -> Tensor:
    """Kernels read rows: the last dimension must have stride 1. A copy is made where it has not."""
    return value if value.stride(-1) == 1 or value.shape[-1] <= 1 else value.contiguous()


def autocast_to(*values: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, float32 tensors become the autocast dtype, as torch's own attention and linear do."""
    kind = next(value for value in values if value is not None).device.type
    if not torch.is_autocast_enabled(kind):
        return values
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        value.to(dtype) if value is not None and value.is_floating_point() and value.dtype != torch.float64 else value
        for value in values
    )
