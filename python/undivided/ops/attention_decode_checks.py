"""Validation of attention_decode's arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_decode_plain import Tensors
from .checks import has_shape, is_float, is_integer, is_like, is_tensor, same_device, same_dtype

QUERIES = "(batch, seqlen_q, nheads, head_dim)"
CACHE = "(batch, longest, nheads_kv, head_dim)"
NEW = "(batch, seqlen_new, nheads_kv, head_dim of its cache)"
BLOCKS = "(num_blocks, block_size, nheads_kv, head_dim)"


def four_dimensions(name: str, value: Tensor, words: str) -> None:
    if value.dim() != 4:
        raise ValueError(f"{name} has {value.dim()} dimensions {tuple(value.shape)}, expected 4: {words}")


def check_caches(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor | None) -> int:
    """How many tokens a row of the caches can hold, after checking their shapes, dtypes and devices."""
    is_float("q", q)
    four_dimensions("q", q, QUERIES)
    dtype, device = q.dtype, q.device
    for name, value in (("k_cache", k_cache), ("v_cache", v_cache)):
        is_tensor(name, value)
        if value.dtype != dtype:
            same_dtype("q", q, name, value)
        if value.device != device:
            same_device("q", q, name, value)
        four_dimensions(name, value, CACHE if block_table is None else BLOCKS)
        if value.stride(3) != 1 and value.size(3) > 1:
            raise ValueError(f"{name} has stride {value.stride(3)} along head_dim, allowed: 1 (contiguous)")
    batch, _, nheads, head_dim = q.shape
    first, size, nheads_kv, head_dim_k = k_cache.shape
    first_v, size_v, nheads_v, head_dim_v = v_cache.shape
    if first_v != first or size_v != size or nheads_v != nheads_kv:
        raise ValueError(f"k_cache {tuple(k_cache.shape)} and v_cache {tuple(v_cache.shape)} differ before head_dim")
    if head_dim_k != head_dim:
        raise ValueError(f"head_dim differs: q {head_dim}, k_cache {head_dim_k}")
    if head_dim == 0 or head_dim_v == 0:
        raise ValueError(f"head_dim {head_dim} and head_dim_v {head_dim_v} must be at least 1")
    if nheads == 0 or nheads_kv == 0 or nheads % nheads_kv != 0:
        raise ValueError(f"nheads {nheads} is not a multiple of nheads_kv {nheads_kv}, both at least 1")
    if block_table is None:
        if first != batch:
            raise ValueError(f"batch differs: q {batch}, k_cache {first}; blocks of keys need a block_table")
        return size
    is_integer("block_table", block_table)
    same_device("q", q, "block_table", block_table)
    if block_table.dim() != 2 or block_table.shape[0] != batch or block_table.shape[1] == 0:
        shape = tuple(block_table.shape)
        raise ValueError(f"block_table has shape {shape}, expected (batch, most_blocks) = ({batch}, at least 1)")
    if first == 0 or size == 0:
        raise ValueError(f"num_blocks {first} and block_size {size} must be at least 1")
    return block_table.shape[1] * size


def check_new(q: Tensor, k: Tensor | None, v: Tensor | None, k_cache: Tensor, v_cache: Tensor) -> None:
    """The tokens that are appended, and that the caches can be written to."""
    if k is None and v is None:
        return
    if k is None or v is None:
        raise ValueError(f"{'k' if k is None else 'v'} is None; k and v must be given together, or neither of them")
    for name, value, cache in (("k", k, k_cache), ("v", v, v_cache)):
        is_tensor(name, value)
        four_dimensions(name, value, NEW)
        is_like(name, value, (q.shape[0], k.shape[1], *cache.shape[2:]), NEW, "q", q)
        strides = cache.stride()
        if 0 in strides and any(stride == 0 and size > 1 for stride, size in zip(strides, cache.shape, strict=True)):
            raise ValueError(
                f"{name}_cache is expanded (strides {strides}): tokens of several rows would be written to one "
                "place; make it contiguous"
            )


def check_lengths(cache_lengths: Tensor, q: Tensor) -> None:
    """Shape, dtype and device; `check_values` looks at the values."""
    is_integer("cache_lengths", cache_lengths)
    has_shape("cache_lengths", cache_lengths, (q.shape[0],), "(batch,)")
    same_device("q", q, "cache_lengths", cache_lengths)


def check_values(tensors: Tensors) -> None:
    """What a row holds and where its blocks are; of tensors on a CPU, where looking costs nothing."""
    cache_lengths, block_table = tensors.cache_lengths, tensors.block_table
    new = 0 if tensors.k is None else tensors.k.shape[1]
    num_blocks, size, _, _ = tensors.k_cache.shape
    longest = size if block_table is None else size * block_table.shape[1]
    lengths = cache_lengths.tolist()
    if not lengths:
        return
    if min(lengths) < 0 or max(lengths) > longest - new:
        b, length = next((b, n) for b, n in enumerate(lengths) if not 0 <= n <= longest - new)
        raise ValueError(
            f"cache_lengths[{b}] = {length}; allowed: 0 to {longest - new}: a row holds {longest} tokens, {new} are new"
        )
    if tensors.cos is not None and max(lengths) + new > tensors.cos.shape[0]:
        raise ValueError(
            f"cos has {tensors.cos.shape[0]} positions, a row has {max(lengths) + new} tokens; make the table longer"
        )
    if block_table is None:
        return
    for b, numbers in enumerate(block_table.tolist()):
        used = numbers[: -(-(lengths[b] + new) // size)]
        if used and (min(used) < 0 or max(used) >= num_blocks):
            at, number = next((at, n) for at, n in enumerate(used) if not 0 <= n < num_blocks)
            raise ValueError(f"block_table[{b}, {at}] = {number}; allowed: 0 to {num_blocks - 1}")


def refuse_gradients(tensors: Tensors) -> None:
    """Raises: NotImplementedError where one of them wants a gradient."""
    if not torch.is_grad_enabled():
        return
    for name, value in zip(tensors._fields, tensors, strict=True):
        if value is not None and value.requires_grad:
            raise NotImplementedError(
                f"attention_decode has no gradient, and {name} requires one; use undivided.attention for training, or "
                "torch.no_grad() around decoding"
            )
