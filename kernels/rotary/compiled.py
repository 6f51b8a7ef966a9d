"""The rotary kernel, compiled ahead of time as a call of a given kind would."""

from __future__ import annotations

import torch

from ..aot import Resources, compile_call
from .forward import WARPS, arguments_of, turn_kernel


def compile_rotary(
    head_dim: int, dtype: torch.dtype, capability: int, inverse: bool = False, positions: bool = False
) -> Resources:
    """What the kernel needs, for 8 heads of contiguous tensors and float32 tables; `inverse` is the backward."""
    x = torch.empty((2, 64, 8, head_dim), dtype=dtype, device="meta")
    table = torch.empty((64, head_dim // 2), device="meta")
    rows = torch.empty((2, 64), dtype=torch.int32, device="meta") if positions else None
    return compile_call(turn_kernel, arguments_of(x, x, table, table, rows, inverse), capability, WARPS)
