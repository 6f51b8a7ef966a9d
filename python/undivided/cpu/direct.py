"""Calls that go to a kernel as they are, past the checks and the choice of a backend.

In a step of decoding the kernels of a small model take some 10 microseconds each, and Python as long before each of
them; where weights have filled the caches meanwhile, several times as long. So the plainest calls, without gradients
and all that needs a word in Python, are read and checked in C++. Where a check does not hold the answer is None, and
the op goes its usual way: what a call may be, and what is said of a bad one, stands there alone.

Each function but norm takes arguments of the op of its name; all give what the op returns, or None. With gradients
`attention_fits` and `norm_fits` make the same checks and no more, and `attention_kept` is for what passed them.
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

attention_fits = _C.attention_fits  # (q, k, v, key_lengths, query_offset, *relative, *words)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    query_offset: int | Tensor | None,
    relative: Relative,
    *words: Any,  # causal, window, scale
) -> Tensor | None:
    out, threads = torch.empty_like(q, memory_format=torch.contiguous_format), torch.get_num_threads()
    ran = _C.attention_direct(q, k, v, key_lengths, query_offset, *relative, *words, out, None, threads)
    return out if ran else None


def attention_kept(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    query_offset: int | None,
    relative: Relative,
    *words: Any,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of what `attention_fits` took."""
    out, threads = torch.empty_like(q, memory_format=torch.contiguous_format), torch.get_num_threads()
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32, device=CPU)
    if not _C.attention_direct(q, k, v, key_lengths, query_offset, *relative, *words, out, lse, threads):
        raise RuntimeError("attention: attention_fits took a call that the kernels do not")
    return out, lse


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


norm_fits = _C.norm_fits  # (x, residual, weight, bias, eps): whether `norm` would take them
NORMS = {"layer_norm": _C.layer_norm_direct, "rms_norm": _C.rms_norm_direct}


def norm(
    op: str, x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor | tuple[Tensor, Tensor] | None:
    """layer_norm or rms_norm."""
    y, summed = torch.empty_like(x), None if residual is None else torch.empty_like(x)
    if not NORMS[op](x, residual, weight, bias, y, summed, None, None, eps, torch.get_num_threads()):
        return None
    return y if summed is None else (y, summed)


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
