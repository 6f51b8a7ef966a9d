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
CALL = "undivided.cpu.attention_call"
Longest = tuple[Any, Any]  # max_seqlen_q and max_seqlen_k
Offsets = tuple[Any, Any]  # cu_seqlens_q and cu_seqlens_k


class Words(NamedTuple):
    """Arguments of `attention` or `attention_packed` that are no tensors, and those of a relative bias."""

    query_offset: Any
    causal: Any
    window: Any
    scale: Any
    longest: Longest | None  # of a packed batch
    dropout: tuple[float, int] | None  # and its seed
    max_distance: int = 128
    bidirectional: bool = True

    def options(self, table: Tensor | None, key_lengths: Any, offsets: Offsets | None) -> tuple[Any, ...] | None:
        """As `cpu.direct.attention` has them; None where the op must look at the bias."""
        bias = None if table is None else RelativeBias(table, self.max_distance, self.bidirectional)
        relative = relative_words(bias)
        if relative is None:
            return None
        packed = None if self.longest is None or offsets is None else (*offsets, *self.longest)
        dropout = None if self.dropout is None else load(CALL).dropout_words(*self.dropout)
        return key_lengths, self.query_offset, packed, *relative, self.causal, self.window, self.scale, dropout

    def numbers(self, head_dim: int) -> Numbers:
        left, right = self.window or (None, None)
        longest_q, longest_k = self.longest or (None, None)
        dropout_p, seed = self.dropout or (0.0, 0)
        return Numbers(
            scale=1.0 / math.sqrt(head_dim) if self.scale is None else self.scale,
            left=left,
            right=0 if self.causal else right,
            offset=self.query_offset,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
            dropout_p=dropout_p,
            seed=seed,
            max_seqlen_q=longest_q,
            max_seqlen_k=longest_k,
        )


def _backward_directly(ctx: Any, saved: Any, dout: Tensor) -> tuple[Any, ...] | None:
    q, k, v, table, key_lengths, *offsets, out, lse = saved
    options = ctx.words.options(table, key_lengths, tuple(offsets))
    if options is None or dout.is_neg():
        return None
    needs = ctx.needs_input_grad[3]
    dout = last_contiguous(dout)
    grads = load(CPU).backward_directly(dout, q, k, v, out, lse, options, ctx.lengths, needs)
    return None if grads is None else _of_inputs(grads, table)


def _of_inputs(grads: Any, table: Tensor | None) -> tuple[Any, ...]:
    dq, dk, dv, _, dtable, _ = grads
    return dq, dk, dv, None if dtable is None or table is None else dtable.to(table.dtype), *(None,) * 5


class DirectAttention(torch.autograd.Function):
    """apply(q, k, v, table, key_lengths, cu_seqlens_q, cu_seqlens_k, words, kept) -> out, of what a direct call gave.
    AttentionFunction, which hands all tensors and words of a call on, takes a small one half as long again."""

    @staticmethod
    def forward(ctx: Any, *values: Any) -> Any:
        *tensors, words, (out, lse, lengths) = values
        ctx.save_for_backward(*tensors, out, lse)
        ctx.words, ctx.lengths = words, lengths
        return out

    @staticmethod
    @first_derivatives_only("attention", directly=_backward_directly)
    def backward(ctx: Any, saved: Any, dout: Tensor) -> tuple[Any, ...]:
        """Hooks gave back something else than was saved, or dout is no plain tensor."""
        q, k, v, table, key_lengths, cu_seqlens_q, cu_seqlens_k, out, lse = saved
        lengths = dict(key_lengths=key_lengths, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
        tensors = Tensors(q, k, v, relative_table=table, **lengths)
        numbers = ctx.words.numbers(q.shape[-1])
        if ctx.words.longest is not None:
            numbers = numbers._replace(max_seqlen_q=ctx.lengths[0], max_seqlen_k=ctx.lengths[1])
        needs = (False, ctx.needs_input_grad[3], False)
        return _of_inputs(run_backward(CPU, dout, None, out, lse, tensors, numbers, needs), table)


apply_plainly = without_python(DirectAttention)


def directly(
    backend: str,
    q: Any,
    k: Any,
    v: Any,
    *,
    key_lengths: Any = None,
    query_offset: Any = None,
    offsets: Offsets | None = None,
    longest: Longest | None = None,
    bias: Any = None,
    causal: Any,
    window: Any = None,
    scale: Any,
    dropout_p: Any = 0.0,
    seed: Any = None,
) -> tuple[Tensor | None, Any]:
    """(out, seed) of `attention`, or with offsets of `attention_packed`, with these words and no others, past its
    checks and the choice of a backend. out is None where it must go its usual way, with that seed: it may have been
    drawn here."""
    if not plain_call(backend, q) or type(dropout_p) is not float:
        return None, seed
    if backend == "auto" and rules.TILES and q.dtype == torch.bfloat16:  # as faster_than_tiles says
        return None, seed
    if not (seed is None or (type(seed) is int and 0 <= seed < 2**63)) or not 0.0 <= dropout_p < 1.0:
        return None, seed
    table, far = None, (128, True)
    if bias is not None:
        if type(bias) is not RelativeBias or bias.table is None:
            return None, seed
        table, far = bias.table, (bias.max_distance, bias.bidirectional)
    if dropout_p and seed is None:
        seed = int(torch.randint(2**62, (), device="cpu"))
    words = Words(query_offset, causal, window, scale, longest, (dropout_p, seed) if dropout_p else None, *far)
    options = words.options(table, key_lengths, offsets)
    if options is None:
        return None, seed
    wanted = torch.is_grad_enabled() and any_requires_grad(q, k, v, table)
    kept = load(DIRECT).attention(q, k, v, options, wanted)
    if kept is None:
        return None, seed
    out: Tensor = kept[0]
    if wanted:
        out = apply_plainly(q, k, v, table, key_lengths, *(offsets or (None, None)), words, kept)
    return out, seed
