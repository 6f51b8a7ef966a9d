"""Padded batches without their padding: on a CPU a model takes it out before its layers and puts it back behind them.

Projections, norms and feed-forward networks then work on tokens alone, as attention does by the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor, nn

from ..dispatch import AttentionCall, choose
from ..nn import MultiHeadAttention, Packing, pack
from ..ops.attention_table import ATTENTION
from ..ops.checks import INTEGERS, readable

_KEPT = ContextVar("undivided.keep_padding", default=False)
LEAST = 64  # places of padding, from which leaving them out is worth the 0.1 to 0.3 ms that it takes


@contextmanager
def keep_padding() -> Iterator[None]:
    """Within it models carry the padding of a batch through all layers, as they always do on a GPU.

    On a CPU they leave it out by themselves where it is worth it: an encoder does by src_lengths, the whole model where
    it has tgt_lengths as well. What comes out is 0 at padding then, and inside the tokens lie as `undivided.nn.pack`
    lays them, (1, total, d_model). A model with hooks keeps its padding, as does one with a module that says
    `mixes_neighbours`, such as a convolution over time. Also a decorator. It follows the current thread or task, as
    torch.no_grad does.
    """
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


Side = tuple[Tensor, Tensor | Packing | None]  # symbols (batch, seqlen, ...), and their lengths (batch,)


def without_padding(model: nn.Module, *sides: Side) -> list[tuple[Tensor, Packing]] | None:
    """What `pack` makes of each side, or None where the padding is not worth leaving out.

    Only where a look at the lengths costs nothing, and a kernel has packed batches.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _KEPT.get():
        return None
    tokens, places, known = 0, 0, []
    for ids, lengths in sides:
        if not isinstance(lengths, Tensor) or lengths.dtype not in INTEGERS:
            return None
        if not readable(lengths) or not readable(ids):
            return None
        tokens, places = tokens + int(lengths.sum()), places + ids.shape[0] * ids.shape[1]
        known.append((ids, lengths))
    if not 0 < tokens <= places - LEAST or not all(map(allows, model.modules())):
        return None
    return [pack(ids, lengths) for ids, lengths in known]


def allows(module: nn.Module) -> bool:
    """Whether a module takes packed tokens, and nobody looks at them expecting (batch, seqlen, d_model)."""
    if getattr(module, "mixes_neighbours", False):
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    return not isinstance(module, MultiHeadAttention) or has_kernel(module.q.weight.dtype, module.head_dim)


@cache
def has_kernel(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether packed attention has one on a CPU."""
    name = str(dtype).removeprefix("torch.")
    call = AttentionCall("cpu", name, 0, 1, 1, 1, 1, head_dim, head_dim, packed=True)
    return choose(ATTENTION, call).name == "cpu"
