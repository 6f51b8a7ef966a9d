"""Validation of attention's arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reference import ALiBi, RelativeBias
from .checks import FLOATS, has_shape, is_float, is_tensor, same_device, same_dtype


def check_qkv(q: Tensor, k: Tensor, v: Tensor, dims: int) -> None:
    """q (..., seqlen_q, nheads, head_dim), k and v (..., seqlen_k, nheads_kv, ...); dims 4, or 3 when packed."""
    words = "(batch, seqlen, nheads, head_dim)" if dims == 4 else "(total, nheads, head_dim)"
    for name, value in (("q", q), ("k", k), ("v", v)):
        is_float(name, value)
        if value.dim() != dims:
            raise ValueError(f"{name} has {value.dim()} dimensions {tuple(value.shape)}, expected {dims}: {words}")
        same_dtype("q", q, name, value)
        same_device("q", q, name, value)
    if dims == 4 and not q.shape[0] == k.shape[0] == v.shape[0]:
        raise ValueError(f"batch differs: q {q.shape[0]}, k {k.shape[0]}, v {v.shape[0]}")
    if k.shape[-3] != v.shape[-3] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} differ in seqlen or nheads")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"head_dim differs: q {q.shape[-1]}, k {k.shape[-1]}")
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2] != 0:
        raise ValueError(f"nheads {q.shape[-2]} is not a multiple of nheads_kv {k.shape[-2]}")
    if q.shape[-1] == 0 or v.shape[-1] == 0:
        raise ValueError(f"head_dim {q.shape[-1]} and head_dim_v {v.shape[-1]} must be at least 1")


def check_lengths(name: str, lengths: Tensor | None, batch: int, limit: int, like: Tensor) -> Tensor | None:
    """int32 (batch,) with values from 0 to `limit`; int64 is converted. Values are checked on a CPU only."""
    if lengths is None:
        return None
    is_tensor(name, lengths)
    if lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} has dtype {lengths.dtype}; allowed: int32, int64")
    has_shape(name, lengths, (batch,), "(batch,)")
    same_device("q", like, name, lengths)
    if not torch.compiler.is_compiling() and lengths.device.type == "cpu" and lengths.numel():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > limit:
            raise ValueError(f"{name} holds values from {low} to {high}; allowed: 0 to {limit}")
    return lengths.to(torch.int32)


def check_offsets(name: str, offsets: Tensor, total: int, like: Tensor) -> Tensor:
    """cu_seqlens: int32 (batch + 1,), starting with 0, never falling, ending with at most `total`."""
    is_tensor(name, offsets)
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} has dtype {offsets.dtype}; allowed: int32, int64")
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"{name} has shape {tuple(offsets.shape)}, expected (batch + 1,)")
    same_device("q", like, name, offsets)
    if not torch.compiler.is_compiling() and offsets.device.type == "cpu":
        values = offsets.tolist()
        falling = any(b < a for a, b in zip(values, values[1:], strict=False))
        if values[0] != 0 or falling or values[-1] > total:
            raise ValueError(f"{name} = {values} must start with 0, never fall and end with at most {total} tokens")
    return offsets.to(torch.int32)


def check_window(window: tuple[int | None, int | None] | None, causal: bool) -> tuple[int | None, int | None]:
    """(left, right) with causal folded in: causal is a right bound of 0."""
    left, right = (None, None) if window is None else window
    for side, value in (("left", left), ("right", right)):
        if value is not None and not isinstance(value, int):
            raise TypeError(f"window {side} = {value!r} must be an int or None")
    if causal:
        right = 0 if right is None else min(right, 0)
    return left, right


def check_numbers(scale: float | None, softcap: float | None, dropout_p: float, head_dim: int) -> float:
    """The scale, after checking the numbers."""
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap = {softcap} must be above 0, or None for off")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p = {dropout_p} must be at least 0 and under 1")
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if not math.isfinite(scale):
        raise ValueError(f"scale = {scale} must be finite")
    return float(scale)


def broadcast_4d(name: str, value: Tensor, shape: tuple[int, int, int, int], like: Tensor) -> Tensor:
    """`value` as a 4-D view whose broadcast dimensions have size 1, so that gradients come back reduced."""
    is_tensor(name, value)
    same_device("q", like, name, value)
    if value.dim() > 4:
        raise ValueError(f"{name} has {value.dim()} dimensions, at most 4: (batch, nheads, seqlen_q, seqlen_k)")
    value = value[(None,) * (4 - value.dim())]
    for dim, (size, full) in enumerate(zip(value.shape, shape, strict=True)):
        if size not in (1, full):
            raise ValueError(
                f"{name} {tuple(value.shape)} does not broadcast to (batch, nheads, seqlen_q, seqlen_k) = {shape}"
            )
        if size > 1 and value.stride(dim) == 0:  # expanded by the caller: autograd sums over it exactly once
            value = value.narrow(dim, 0, 1)
    return value


def check_mask(mask: Tensor | None, shape: tuple[int, int, int, int], like: Tensor) -> Tensor | None:
    if mask is None:
        return None
    is_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; allowed: bool (True is visible). Additive values go to `bias`")
    return broadcast_4d("mask", mask, shape, like)


def check_dense_bias(bias: Tensor, shape: tuple[int, int, int, int], like: Tensor) -> Tensor:
    is_tensor("bias", bias)
    if bias.dtype not in FLOATS:
        raise TypeError(f"bias has dtype {bias.dtype}; allowed: float32, bfloat16, float16, float64")
    return broadcast_4d("bias", bias, shape, like)


def check_structured_bias(bias: RelativeBias | ALiBi, nheads: int, batch: int, like: Tensor) -> None:
    if isinstance(bias, RelativeBias):
        is_float("bias.table", bias.table)
        same_device("q", like, "bias.table", bias.table)
        if bias.table.dim() != 2 or bias.table.shape[1] != nheads:
            shape = tuple(bias.table.shape)
            raise ValueError(f"bias.table has shape {shape}, expected (num_buckets, nheads) = (any, {nheads})")
        return
    is_float("bias.slopes", bias.slopes)
    same_device("q", like, "bias.slopes", bias.slopes)
    if tuple(bias.slopes.shape) not in ((nheads,), (batch, nheads)):
        shape = tuple(bias.slopes.shape)
        raise ValueError(f"bias.slopes has shape {shape}, expected (nheads,) = ({nheads},) or ({batch}, {nheads})")


def check_sinks(sinks: Tensor | None, nheads: int, like: Tensor) -> None:
    if sinks is not None:
        is_float("sinks", sinks)
        same_device("q", like, "sinks", sinks)
        has_shape("sinks", sinks, (nheads,), "(nheads,)")


def check_query_offset(offset: int | Tensor | None, batch: int, like: Tensor) -> int | Tensor | None:
    if offset is None or isinstance(offset, int):
        return offset
    if not isinstance(offset, Tensor):
        raise TypeError(f"query_offset = {offset!r} must be an int, an int32 tensor (batch,) or None")
    if offset.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"query_offset has dtype {offset.dtype}; allowed: int32, int64")
    has_shape("query_offset", offset, (batch,), "(batch,)")
    same_device("q", like, "query_offset", offset)
    return offset.to(torch.int32)
