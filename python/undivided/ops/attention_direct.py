"""Calls of attention that go to the CPU's kernels directly, as `direct.py` says, with gradients and without."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import rules
from ..dispatch import load
from ..reference import RelativeBias
from .attention_autograd import run_backward
from .attention_plain import Numbers, Tensors
from .checks import last_contiguous
from .derivatives import first_derivatives_only
from .direct import DIRECT, any_requires_grad, plain_call, relative_words, without_python

CPU = "undivided.cpu.attention"


class Words(NamedTuple):
    """Arguments of `attention`, and those of a relative bias beside its table."""

    query_offset: Any
    max_distance: int
    bidirectional: bool
    causal: Any
    window: Any
    scale: Any

    def relative(self, table: Tensor | None) -> Any:
        """As `relative_words`, of a table that hooks may have changed."""
        return relative_words(None if table is None else RelativeBias(table, self.max_distance, self.bidirectional))

    def numbers(self, head_dim: int) -> Numbers:
        left, right = self.window or (None, None)
        return Numbers(
            scale=1.0 / math.sqrt(head_dim) if self.scale is None else self.scale,
            left=left,
            right=0 if self.causal else right,
            offset=self.query_offset,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )


def _backward_directly(ctx: Any, saved: Any, dout: Tensor) -> tuple[Any, ...] | None:
    q, k, v, table, key_lengths, out, lse = saved
    words, wanted = ctx.words, ctx.needs_input_grad[3]
    relative = words.relative(table)
    if relative is None or dout.is_neg():
        return None
    grads = load(CPU).backward_directly(
        last_contiguous(dout), q, k, v, out, lse, key_lengths, words.query_offset, *relative, *words[3:], wanted
    )
    return None if grads is None else _of_inputs(grads, table)


def _of_inputs(grads: Any, table: Tensor | None) -> tuple[Any, ...]:
    dq, dk, dv, _, dtable, _ = grads
    return dq, dk, dv, None if dtable is None or table is None else dtable.to(table.dtype), None, None, None


class DirectAttention(torch.autograd.Function):
    """apply(q, k, v, table, key_lengths, words, (out, lse)) -> out, of what a direct call gave. AttentionFunction,
    which hands all tensors and words of a call on, takes a small one half as long again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, table: Any, key_lengths: Any, words: Words, kept: Any
    ) -> Any:
        out, lse = kept
        ctx.save_for_backward(q, k, v, table, key_lengths, out, lse)
        ctx.words = words
        return out

    @staticmethod
    @first_derivatives_only("attention", directly=_backward_directly)
    def backward(ctx: Any, saved: Any, dout: Tensor) -> tuple[Any, ...]:
        """Hooks gave back something else than was saved, or dout is no plain tensor."""
        q, k, v, table, key_lengths, out, lse = saved
        tensors = Tensors(q, k, v, relative_table=table, key_lengths=key_lengths)
        numbers = ctx.words.numbers(q.shape[-1])
        needs = (False, ctx.needs_input_grad[3], False)
        return _of_inputs(run_backward(CPU, dout, None, out, lse, tensors, numbers, needs), table)


apply_plainly = without_python(DirectAttention)


def directly(
    backend: str,
    q: Any,
    k: Any,
    v: Any,
    key_lengths: Any,
    query_offset: Any,
    bias: Any,
    causal: Any,
    window: Any,
    scale: Any,
) -> Tensor | None:
    """out of `attention` with these words and no others, past its checks and the choice of a backend; None where it
    must go its usual way."""
    if not plain_call(backend, q):
        return None
    if backend == "auto" and rules.TILES and q.dtype == torch.bfloat16:  # as faster_than_tiles says
        return None
    relative = relative_words(bias)
    if relative is None:
        return None
    words, table = (causal, window, scale), None if bias is None else bias.table
    wanted = torch.is_grad_enabled() and any_requires_grad(q, k, v, table)
    kept = load(DIRECT).attention(wanted, q, k, v, key_lengths, query_offset, relative, *words)
    if kept is None:
        return None
    out: Tensor = kept[0]
    if wanted:
        far, both = (128, True) if bias is None else (bias.max_distance, bias.bidirectional)
        out = apply_plainly(q, k, v, table, key_lengths, Words(query_offset, far, both, *words), kept)
    return out
