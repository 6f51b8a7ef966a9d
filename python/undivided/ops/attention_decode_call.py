"""attention_decode on a chosen backend: straight to its launcher in eager, by registered ops under torch.compile.

There are two ops for one body: the one that appends says that it writes to the caches; the other must not, since what
is written to is copied where memory is shared, and a memory that all steps of a decoding read would be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import reference
from ..dispatch import Backend, load
from ..reference import ALiBi, RelativeBias
from .attention_decode_checks import check_values
from .attention_decode_plain import Numbers, Tensors
from .checks import readable
from .derivatives import refuse_transforms
from .registration import by_registered_op, register

TENSORS = len(Tensors._fields)


def run(module: str, tensors: Tensors, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """(out, lse) from the launcher in a backend's module."""
    t, n = tensors, numbers
    if t.q.is_cpu:
        check_values(tensors)
    words: dict[str, Any] = {}
    if t.relative_table is not None:
        words.update(relative_table=t.relative_table, max_distance=n.max_distance, bidirectional=n.bidirectional)
    if t.alibi_slopes is not None:
        words["alibi_slopes"] = t.alibi_slopes
    if t.cos is not None:
        words.update(cos=t.cos, sin=t.sin)
    found: tuple[Tensor, Tensor] = load(module).attention_decode(
        t.q,
        t.k_cache,
        t.v_cache,
        t.cache_lengths,
        k=t.k,
        v=t.v,
        block_table=t.block_table,
        scale=n.scale,
        window=(n.left, n.right),
        softcap=n.softcap,
        sinks=t.sinks,
        **words,
    )
    if t.k is not None:
        increment_version((t.k_cache, t.v_cache))
    return found


def run_reference(tensors: Tensors, numbers: Numbers) -> tuple[Tensor, Tensor]:
    t, n = tensors, numbers
    if readable(t.cache_lengths):  # torch.compile traces this one
        check_values(tensors)
    bias: RelativeBias | ALiBi | None = None if t.alibi_slopes is None else ALiBi(t.alibi_slopes)
    if t.relative_table is not None:
        bias = RelativeBias(t.relative_table, n.max_distance, n.bidirectional)
    return reference.attention_decode(  # type: ignore[return-value]
        t.q,
        t.k_cache,
        t.v_cache,
        t.cache_lengths,
        k=t.k,
        v=t.v,
        block_table=t.block_table,
        causal=False,  # it is in the window
        window=(n.left, n.right),
        bias=bias,
        scale=n.scale,
        softcap=n.softcap,
        sinks=t.sinks,
        rotary=None if t.cos is None or t.sin is None else (t.cos, t.sin),
        return_lse=True,
    )


def _body(module: str, *values: Any) -> tuple[Tensor, Tensor]:
    return run(module, Tensors(*values[:TENSORS]), Numbers(*values[TENSORS:]))


def _fake(module: str, *values: Any) -> tuple[Tensor, Tensor]:
    t = Tensors(*values[:TENSORS])
    batch, seqlen_q, nheads, _ = t.q.shape
    lse = torch.empty((batch, nheads, seqlen_q), dtype=torch.float32, device=t.q.device)
    return t.q.new_empty((batch, seqlen_q, nheads, t.v_cache.shape[3])), lse


def _schema(k_cache: str, v_cache: str) -> str:
    return (
        f"(str module, Tensor q, {k_cache} k_cache, {v_cache} v_cache, Tensor cache_lengths, Tensor? k, Tensor? v, "
        "Tensor? block_table, Tensor? relative_table, Tensor? alibi_slopes, Tensor? sinks, Tensor? cos, Tensor? sin, "
        "float scale, SymInt? left, SymInt? right, int max_distance, bool bidirectional, float? softcap) "
        "-> (Tensor, Tensor)"
    )


register("attention_decode", _schema("Tensor", "Tensor"), _body, _fake)
register("attention_decode_append", _schema("Tensor(a!)", "Tensor(b!)"), _body, _fake)


def apply(row: Backend, tensors: Tensors, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """(out, lse), by the cheapest path that the caller's mode allows."""
    if row.name == "reference":
        return run_reference(tensors, numbers)
    if by_registered_op(*tensors):
        ops = torch.ops.undivided
        op = ops.attention_decode if tensors.k is None else ops.attention_decode_append
        return op(row.module, *tensors, *numbers)
    refuse_transforms("attention_decode", *tensors)
    return run(row.module, tensors, numbers)
