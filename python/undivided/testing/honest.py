"""Plain PyTorch in the dtype of its input, as an ordinary user would write it: what budgets are measured from."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference.attention import additive_bias
from ..reference.attention_decode import append, gathered, places
from ..reference.dropout import dropout_mask
from ..reference.mask import positions, visible


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    query_offset: Any = None,
    rotary: Any = None,
    sequence: int = 0,
    **words: Any,
) -> tuple[Tensor, Tensor]:
    """(out, lse): matmul, softmax, matmul, every step rounded to the input's dtype.

    sequence: as in the reference, the first row's number in dropout's counter.
    """
    group = q.shape[2] // k.shape[2]
    i, j = positions(q.shape[1], k.shape[1], query_offset, q.device)
    if rotary is not None:
        cos, sin = rotary
        q, k = turned(q, cos, sin, i[:, 0, :, 0]), turned(k, cos, sin)
    seen = visible(q.shape[1], k.shape[1], query_offset=query_offset, device=q.device, **words)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k = k.masked_fill(~k.isfinite(), 0).transpose(1, 2).repeat_interleave(group, 1)
    v = v.masked_fill(~v.isfinite(), 0).transpose(1, 2).repeat_interleave(group, 1)
    scores = (q.transpose(1, 2) * scale) @ k.transpose(-1, -2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    extra = additive_bias(bias, i, j, q.dtype)
    scores = scores if extra is None else scores + extra
    seen = seen.expand(scores.shape)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    empty = ~seen.any(-1, keepdim=True)
    safe = scores.masked_fill(empty, 0)
    weights = torch.softmax(safe, -1).masked_fill(empty, 0)[..., : k.shape[2]]
    lse = torch.logsumexp(safe, -1).masked_fill(empty[..., 0], -torch.inf)
    if dropout_p:
        batch, nheads, seqlen_q, seqlen_k = weights.shape
        kept = dropout_mask(seed or 0, dropout_p, sequence + batch, nheads, seqlen_q, seqlen_k, q.device)[sequence:]
        weights = torch.where(kept, weights / (1 - dropout_p), 0)
    return (weights.to(v.dtype) @ v).transpose(1, 2), lse


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    *,
    k: Tensor | None = None,
    v: Tensor | None = None,
    block_table: Tensor | None = None,
    rotary: Any = None,
    return_lse: bool = True,
    **words: Any,
) -> tuple[Tensor, Tensor]:
    """(out, lse): new keys and values into the caches, the caches gathered, then `attention`."""
    total = cache_lengths if k is None else cache_lengths + k.shape[1]
    if rotary is not None:
        cos, sin = rotary
        q = turned(q, cos, sin, places(q, total))
        k = None if k is None else turned(k, cos, sin, places(k, total))
    if k is not None and v is not None:
        append(k_cache, k, cache_lengths, block_table)
        append(v_cache, v, cache_lengths, block_table)
    keys, values = gathered(k_cache, block_table), gathered(v_cache, block_table)
    return attention(q, keys, values, key_lengths=total, query_offset=total - q.shape[1], **words)


def attention_packed(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **words: Any
) -> Any:
    """(out, lse) of packed sequences, one by one."""
    parts = []
    for b in range(len(cu_seqlens_q) - 1):
        rows, keys = (slice(int(starts[b]), int(starts[b + 1])) for starts in (cu_seqlens_q, cu_seqlens_k))
        parts.append(attention(q[None, rows], k[None, keys], v[None, keys], sequence=b, **words))
    outs, lses = zip(*parts, strict=True)
    return torch.cat([out[0] for out in outs]), torch.cat([lse[0] for lse in lses], dim=-1)


def layer_norm(x: Tensor, weight: Any = None, bias: Any = None, eps: float = 1e-5, residual: Any = None) -> Any:
    x = x if residual is None else x + residual
    weight, bias = (None if t is None else t.to(x.dtype) for t in (weight, bias))
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return y if residual is None else (y, x)


def rms_norm(x: Tensor, weight: Any = None, eps: float = 1e-6, residual: Any = None) -> Any:
    x = x if residual is None else x + residual
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight.to(x.dtype)
    return y if residual is None else (y, x)


def feed_forward(x: Tensor, w_in: Any, b_in: Any, w_out: Any, b_out: Any, activation: str, w_gate: Any = None) -> Any:
    act: Any = {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
        "silu": F.silu,
    }[activation]
    hidden = act(F.linear(x, w_in, b_in))
    hidden = hidden if w_gate is None else hidden * F.linear(x, w_gate)
    return F.linear(hidden, w_out, b_out)


def turned(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    at = torch.arange(x.shape[1], device=x.device) if positions is None else positions
    cos, sin = (t[at].to(x.dtype).unsqueeze(-2) for t in (cos, sin))
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


rotary = turned  # attention has a word of that name
