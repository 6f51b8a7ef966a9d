"""Calls that go to a kernel as they are, past the checks and the choice of a backend.

In a step of decoding the kernels of a small model take some 10 microseconds each, and Python as long before each of
them; where weights have filled the caches meanwhile, several times as long. So the plainest calls, those of which
nothing needs a word in Python, are read and checked in C++. Where a check does not hold the answer is None, and the op
goes its usual way: what a call may be, and what is said of a bad one, stands there alone.

Functions take arguments of the op of their name and give what it returns, or what their docstrings say, or None.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C
from . import CPU
from .feed_forward import ACTIVATIONS
from .linear import MOST_ROWS

# As torch.autograd.graph.increment_version, without its Python.
increment_version = torch._C._increment_version
Relative = tuple[Tensor, Tensor] | tuple[None, None]  # the table and the rows of it by distance, of a relative bias


def attention(
    q: Tensor, k: Tensor, v: Tensor, options: tuple[Any, ...], keep: bool
) -> tuple[Tensor, Tensor | None, tuple[int, int]] | None:
    """(out, lse, the lengths of queries and keys, in a packed batch the longest); lse is None unless `keep`, for a
    backward. options: key_lengths, query_offset, packed, table, buckets, causal, window, scale, dropout, of which
    packed is (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k) or None, and dropout
    `attention_call.dropout_words` or None."""
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), None
    if keep:
        *batch, rows, heads, _ = q.shape if q.dim() > 2 else (0, 0, 0)
        lse = torch.empty(*batch, heads, rows, dtype=torch.float32, device=CPU)
    lengths = _C.attention_direct(q, k, v, *options, out, lse, torch.get_num_threads())
    return None if lengths is None else (out, lse, lengths)


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    relative: Relative,
    *words: Any,  # causal, window, scale
) -> Tensor | None:
    out, threads = torch.empty_like(q, memory_format=torch.contiguous_format), torch.get_num_threads()
    if not _C.attention_decode_direct(q, k_cache, v_cache, cache_lengths, k, v, *relative, *words, out, threads):
        return None
    if k is not None:
        increment_version((k_cache, v_cache))
    return out


NORMS = {"layer_norm": _C.layer_norm_direct, "rms_norm": _C.rms_norm_direct}
NORM_BACKWARDS = {"layer_norm": _C.layer_norm_backward_direct, "rms_norm": _C.rms_norm_backward_direct}


def norm(
    op: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None] | None:
    """(y, summed, mean, rstd) of layer_norm or rms_norm; the last two are None unless `keep`, for a backward."""
    y, summed, mean, rstd = torch.empty_like(x), None if residual is None else torch.empty_like(x), None, None
    if keep:
        if not x.dim() or not x.shape[-1]:
            return None
        rstd = torch.empty(x.numel() // x.shape[-1], dtype=torch.float32, device=CPU)
        mean = torch.empty_like(rstd) if op == "layer_norm" else None
    ran = NORMS[op](x, residual, weight, bias, y, summed, mean, rstd, eps, torch.get_num_threads())
    return (y, summed, mean, rstd) if ran else None


def norm_backward(
    op: str,
    dy: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor,
    has_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """(dx, dweight, dbias); x is what was normalised."""
    dx, dweight = torch.empty_like(x), None if weight is None else torch.empty_like(weight)
    dbias = torch.empty_like(weight) if has_bias and weight is not None else None
    backward, threads = NORM_BACKWARDS[op], torch.get_num_threads()
    return (dx, dweight, dbias) if backward(dy, dsummed, x, weight, mean, rstd, dx, dweight, dbias, threads) else None


def _few_rows(x: Tensor) -> bool:
    return x.dim() > 1 and x.numel() <= MOST_ROWS * x.shape[-1]


def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor | None:
    if not _few_rows(x) or not isinstance(w, Tensor) or w.dim() != 2:
        return None
    y = x.new_empty(*x.shape[:-1], w.shape[0])
    return y if _C.linear_direct(x, w, bias, y, torch.get_num_threads()) else None


def feed_forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    activation: str,
    w_gate: Tensor | None,
) -> Tensor | None:
    if not _few_rows(x) or type(activation) is not str or activation not in ACTIVATIONS:
        return None
    y, code = torch.empty_like(x, memory_format=torch.contiguous_format), ACTIVATIONS[activation]
    threads = torch.get_num_threads()
    return y if _C.feed_forward_direct(x, w_in, b_in, w_out, b_out, code, w_gate, y, threads) else None


def rotary(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, inverse: bool) -> Tensor | None:
    """x turned; with `inverse` by the negative angles, which is its gradient."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y if _C.rotary_direct(x, cos, sin, positions, y, inverse, torch.get_num_threads()) else None
