"""Validation of attention's arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reference import ALiBi, RelativeBias
from .checks import (
    FLOATS,
    has_shape,
    is_flag,
    is_float,
    is_integer,
    is_number,
    is_tensor,
    is_whole,
    readable,
    same_device,
    same_dtype,
)

# The largest distance on the key axis that a word may name: sums of three of them still fit into 32 bits.
FAR = 2**29


def check_qkv(q: Tensor, k: Tensor, v: Tensor, dims: int) -> None:
    """q (..., seqlen_q, nheads, head_dim), k and v (..., seqlen_k, nheads_kv, ...); dims 4, or 3 when packed."""
    words = "(batch, seqlen, nheads, head_dim)" if dims == 4 else "(total, nheads, head_dim)"
    for name, value in (("q", q), ("k", k), ("v", v)):
        is_float(name, value)
        if value.dim() != dims:
            raise ValueError(f"{name} has {value.dim()} dimensions {tuple(value.shape)}, expected {dims}: {words}")
        if value is not q:
            same_dtype("q", q, name, value)
            same_device("q", q, name, value)
    *batch, _, nheads, head_dim = q.shape
    *batch_k, seqlen_k, nheads_kv, head_dim_k = k.shape
    *batch_v, seqlen_v, nheads_v, head_dim_v = v.shape
    if dims == 4 and not batch == batch_k == batch_v:
        raise ValueError(f"batch differs: q {batch[0]}, k {batch_k[0]}, v {batch_v[0]}")
    if seqlen_k != seqlen_v or nheads_kv != nheads_v:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} differ in seqlen or nheads")
    if head_dim != head_dim_k:
        raise ValueError(f"head_dim differs: q {head_dim}, k {head_dim_k}")
    if nheads == 0 or nheads_kv == 0:
        raise ValueError(f"nheads {nheads} and nheads_kv {nheads_kv} must be at least 1")
    if nheads % nheads_kv != 0:
        raise ValueError(f"nheads {nheads} is not a multiple of nheads_kv {nheads_kv}")
    if head_dim == 0 or head_dim_v == 0:
        raise ValueError(f"head_dim {head_dim} and head_dim_v {head_dim_v} must be at least 1")


def check_lengths(name: str, lengths: Tensor | None, batch: int, limit: int, like: Tensor) -> Tensor | None:
    """int32 (batch,) with values from 0 to `limit`; int64 is converted. Values are checked on a CPU only."""
    if lengths is None:
        return None
    is_integer(name, lengths)
    has_shape(name, lengths, (batch,), "(batch,)")
    same_device("q", like, name, lengths)
    within(name, lengths, 0, limit)
    return plain_integers(lengths)


def within(name: str, value: Tensor, lowest: int, highest: int) -> None:
    if readable(value):
        low, high = int(value.min()), int(value.max())
        if low < lowest or high > highest:
            raise ValueError(f"{name} holds values from {low} to {high}; allowed: {lowest} to {highest}")


def plain_integers(value: Tensor) -> Tensor:
    """As kernels read them: int32, one after the other."""
    if value.dtype == torch.int32 and value.is_contiguous():
        return value
    return value.to(torch.int32).contiguous()


def check_offsets(name: str, offsets: Tensor, total: int, like: Tensor) -> Tensor:
    """cu_seqlens: int32 (batch + 1,), starting with 0, never falling, ending with at most `total`."""
    is_integer(name, offsets)
    if offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"{name} has shape {tuple(offsets.shape)}, expected (batch + 1,)")
    same_device("q", like, name, offsets)
    if readable(offsets):
        values = offsets.tolist()
        falling = any(b < a for a, b in zip(values, values[1:], strict=False))
        if values[0] != 0 or falling or values[-1] > total:
            raise ValueError(f"{name} = {values} must start with 0, never fall and end with at most {total} tokens")
    return plain_integers(offsets)


def check_longest(name: str, given: int | None, offsets: Tensor) -> int:
    """max_seqlen: the longest sequence of `offsets`, which are checked; a longer one is allowed, and none is worked
    through where it is known to be longer."""
    if given is not None:
        is_whole(name, given, "an int or None")
        if given < 0:
            raise ValueError(f"{name} = {given} must be at least 0")
        if not readable(offsets):
            return given
    longest = int((offsets[1:] - offsets[:-1]).max()) if offsets.shape[0] > 1 else 0
    if given is None:
        return longest
    if given < longest:
        raise ValueError(f"{name} = {given} is below the longest sequence, which has {longest} tokens")
    return longest


def check_window(window: tuple[int | None, int | None] | None, causal: bool) -> tuple[int | None, int | None]:
    """(left, right) with causal folded in: causal is a right bound of 0."""
    is_flag("causal", causal)
    if window is not None and (not isinstance(window, (tuple, list)) or len(window) != 2):
        raise TypeError(f"window = {window!r} must be (left, right), each an int or None, or None")
    left, right = (None, None) if window is None else window
    for side, value in (("left", left), ("right", right)):
        if value is not None:
            is_whole(f"window {side}", value, "an int or None")
            if not 0 <= value <= FAR:
                raise ValueError(f"window {side} = {value} must be from 0 to 2**29; None is no bound on that side")
    return left, 0 if causal else right


def check_numbers(scale: float | None, softcap: float | None, dropout_p: float, head_dim: int) -> float:
    """The scale, after checking the numbers."""
    if softcap is not None:
        is_number("softcap", softcap, "a number above 0, or None for off")
        if not softcap > 0:
            raise ValueError(f"softcap = {softcap} must be above 0, or None for off")
    is_number("dropout_p", dropout_p, "a number")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p = {dropout_p} must be at least 0 and under 1")
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    is_number("scale", scale, "a number or None; a learned scale multiplies q")
    return float(scale)


def check_seed(seed: int) -> int:
    is_whole("seed", seed, "an int or None")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed = {seed} must be from 0 to 2**63 - 1")
    return seed


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
        check_relative_bias(bias, nheads, like)
        return
    slopes = bias.slopes
    is_float("bias.slopes", slopes)
    same_device("q", like, "bias.slopes", slopes)
    if tuple(slopes.shape) not in ((nheads,), (batch, nheads)):
        shape = tuple(slopes.shape)
        raise ValueError(f"bias.slopes has shape {shape}, expected (nheads,) = ({nheads},) or ({batch}, {nheads})")
    if slopes.requires_grad and torch.is_grad_enabled():
        raise ValueError("bias.slopes require a gradient, but ALiBi's slopes are not learned; detach them")


def check_relative_bias(bias: RelativeBias, nheads: int, like: Tensor) -> None:
    table = bias.table
    is_float("bias.table", table)
    same_device("q", like, "bias.table", table)
    is_flag("bias.bidirectional", bias.bidirectional)
    is_whole("bias.max_distance", bias.max_distance)
    # T5's rule: half of a direction's buckets hold one distance each, the others share the distances up to the last.
    fewest = 4 if bias.bidirectional else 2
    if table.dim() != 2 or table.shape[1] != nheads or table.shape[0] < fewest:
        shape = tuple(table.shape)
        raise ValueError(
            f"bias.table has shape {shape}, expected (num_buckets, nheads) = (at least {fewest}, {nheads})"
        )
    exact = table.shape[0] // (4 if bias.bidirectional else 2)
    if not exact < bias.max_distance <= FAR:
        raise ValueError(
            f"bias.max_distance = {bias.max_distance} must be from {exact + 1} to 2**29 with {table.shape[0]} buckets"
        )


def check_sinks(sinks: Tensor | None, nheads: int, like: Tensor) -> Tensor | None:
    """(nheads,), one after the other."""
    if sinks is None:
        return None
    is_float("sinks", sinks)
    same_device("q", like, "sinks", sinks)
    has_shape("sinks", sinks, (nheads,), "(nheads,)")
    return sinks.contiguous()


def check_query_offset(offset: int | Tensor | None, batch: int, like: Tensor) -> int | Tensor | None:
    if offset is None:
        return None
    if not isinstance(offset, Tensor):
        is_whole("query_offset", offset, "an int, an int32 tensor (batch,) or None")
        if not -FAR <= offset <= FAR:
            raise ValueError(f"query_offset = {offset} must be from -2**29 to 2**29")
        return offset
    is_integer("query_offset", offset)
    has_shape("query_offset", offset, (batch,), "(batch,)")
    same_device("q", like, "query_offset", offset)
    within("query_offset", offset, -FAR, FAR)
    return plain_integers(offset)
