"""A call of attention in plain form: a fixed tuple of tensors and a fixed tuple of numbers.

The same two tuples feed the autograd function, the ops registered for torch.compile and every backend's launchers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Tensors(NamedTuple):
    """q, k, v in the public layout (batch, seqlen, nheads, head_dim), or (total, nheads, head_dim) when packed."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None = None  # 4-D, size 1 where it broadcasts
    relative_table: Tensor | None = None  # (num_buckets, nheads)
    sinks: Tensor | None = None  # (nheads,)
    alibi_slopes: Tensor | None = None  # (nheads,) or (batch, nheads), float32
    mask: Tensor | None = None  # bool, 4-D, size 1 where it broadcasts
    key_lengths: Tensor | None = None  # int32 (batch,)
    query_lengths: Tensor | None = None  # int32 (batch,)
    offsets: Tensor | None = None  # query_offset as int32 (batch,)
    cu_seqlens_q: Tensor | None = None  # int32 (batch + 1,)
    cu_seqlens_k: Tensor | None = None
    cos: Tensor | None = None  # (places, head_dim / 2): the kernel turns q and k by their positions; forward only
    sin: Tensor | None = None
    drawn_seed: Tensor | None = None  # int64 (), on the CPU: stands for Numbers.seed, which no traced graph knows


class Numbers(NamedTuple):
    scale: float
    left: int | None = None
    right: int | None = None
    offset: int | None = None
    max_distance: int = 128
    bidirectional: bool = True
    softcap: float | None = None
    dropout_p: float = 0.0
    seed: int = 0
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None


def wants_gradient(t: Tensors) -> tuple[bool, bool]:
    """Whether any tensor does, and whether one of bias, table and sinks does."""
    if not torch.is_grad_enabled():
        return False, False
    others = (
        (t.bias is not None and t.bias.requires_grad)
        or (t.relative_table is not None and t.relative_table.requires_grad)
        or (t.sinks is not None and t.sinks.requires_grad)
    )
    return others or t.q.requires_grad or t.k.requires_grad or t.v.requires_grad, others


def launcher_keywords(tensors: Tensors, numbers: Numbers) -> dict[str, Any]:
    """The keywords that every backend's launchers take, only those that are in use."""
    words: dict[str, Any] = {"scale": numbers.scale, "window": (numbers.left, numbers.right)}
    if tensors.cu_seqlens_q is not None:
        words.update(
            cu_seqlens_q=tensors.cu_seqlens_q,
            cu_seqlens_k=tensors.cu_seqlens_k,
            max_seqlen_q=numbers.max_seqlen_q,
            max_seqlen_k=numbers.max_seqlen_k,
        )
    else:
        batch, seqlen_q, nheads, _ = tensors.q.shape
        shape = (batch, nheads, seqlen_q, tensors.k.shape[1])
        if tensors.bias is not None:
            words["bias"] = tensors.bias.expand(shape)
        if tensors.mask is not None:
            words["mask"] = tensors.mask.expand(shape)
    if tensors.key_lengths is not None:
        words["key_lengths"] = tensors.key_lengths
    if tensors.query_lengths is not None:
        words["query_lengths"] = tensors.query_lengths
    if tensors.sinks is not None:
        words["sinks"] = tensors.sinks
    if tensors.alibi_slopes is not None:
        words["alibi_slopes"] = tensors.alibi_slopes
    if tensors.relative_table is not None:
        words.update(
            relative_table=tensors.relative_table,
            max_distance=numbers.max_distance,
            bidirectional=numbers.bidirectional,
        )
    if tensors.cos is not None:
        words.update(cos=tensors.cos, sin=tensors.sin)
    offset = numbers.offset if tensors.offsets is None else tensors.offsets
    if offset is not None:
        words["query_offset"] = offset
    if numbers.softcap is not None:
        words["softcap"] = numbers.softcap
    if numbers.dropout_p:
        seed = numbers.seed if tensors.drawn_seed is None else int(tensors.drawn_seed)
        words.update(dropout_p=numbers.dropout_p, seed=seed)
    return words


def output_shapes(tensors: Tensors) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of out and lse."""
    q, v = tensors.q, tensors.v
    out = (*q.shape[:-1], v.shape[-1])
    if tensors.cu_seqlens_q is not None:
        return out, (q.shape[1], q.shape[0])
    return out, (q.shape[0], q.shape[2], q.shape[1])


def empty_outputs(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Uninitialised out and lse: what the fakes of torch.compile need to know."""
    out, lse = output_shapes(tensors)
    q = tensors.q
    return q.new_empty(out), torch.empty(lse, dtype=torch.float32, device=q.device)
