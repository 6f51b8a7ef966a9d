"""Attention as it is defined: the score matrix in full, in float32 or better. Slow on purpose."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .bias import ALiBi, RelativeBias, relative_buckets
from .dropout import dropout_mask
from .mask import positions, visible
from .precision import full_precision
from .rotary import rotary as turn

Bias = Tensor | RelativeBias | ALiBi


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def additive_bias(bias: Bias | None, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The bias as a tensor broadcastable to (batch, nheads, seqlen_q, seqlen_k); i, j are positions."""
    if bias is None:
        return None
    if isinstance(bias, RelativeBias):
        buckets = relative_buckets(j - i, bias.table.shape[0], bias.max_distance, bias.bidirectional)
        return bias.table.to(dtype)[buckets[:, 0]].permute(0, 3, 1, 2)
    if isinstance(bias, ALiBi):
        slopes = bias.slopes.to(dtype)
        slopes = slopes[None] if slopes.dim() == 1 else slopes
        return -slopes[:, :, None, None] * (i - j).abs()
    return bias.to(dtype)


def masked_softmax(scores: Tensor, seen: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """(probabilities, lse) over the last dimension; a row that sees nothing has probabilities 0 and lse -inf.

    To see nothing is to have no visible score above -inf.
    """
    scores = torch.where(seen, scores, -math.inf)
    extra = None if sinks is None else sinks.to(scores.dtype)[None, :, None]
    empty = torch.isneginf(scores.detach()).all(-1)
    top = scores.detach().amax(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -math.inf)
    if extra is not None:
        top = torch.maximum(top, extra.detach())
    top = torch.where(empty | torch.isinf(top), 0.0, top)
    # exp of a masked score is replaced, not computed: exp(-inf) is 0 but its gradient would meet inf.
    finite = ~torch.isneginf(scores.detach())
    weights = torch.where(finite, torch.where(finite, scores - top[..., None], 0.0).exp(), 0.0)
    total = weights.sum(-1)
    if extra is not None:
        total = total + (extra - top).exp()
    total = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -math.inf, total.log() + top)
    # A NaN in what a row sees is in its total: what it does not see stays 0 all the same.
    return torch.where(finite & ~empty[..., None], weights / total[..., None], 0.0), lse


def may_look(value: Tensor) -> bool:
    """Whether its values are there to be looked at: a subclass may have none, as FakeTensorMode's, and while a graph is
    traced, or recorded on a GPU, they are not there yet."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    recording = value.is_cuda and torch.cuda.is_current_stream_capturing()
    return type(value) is Tensor and value.device.type != "meta" and not recording


def weigh(probabilities: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """probabilities @ v, in which a NaN or Inf in v reaches only the rows that see it."""
    finite = torch.isfinite(v)
    out = probabilities @ torch.where(finite, v, 0.0)
    if may_look(v) and bool(finite.all()):
        return out
    seen = seen.expand(probabilities.shape).to(v.dtype)
    for found, value in ((torch.isposinf(v), math.inf), (torch.isneginf(v), -math.inf), (torch.isnan(v), math.nan)):
        out = out + torch.where(seen @ found.to(v.dtype) > 0, value, 0.0)
    return out


@full_precision
def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    query_offset: int | Tensor | None = None,
) -> Tensor:
    """The probabilities (batch, nheads, seqlen_q, seqlen_k) that `attention` weighs the values with."""
    return _weights(
        q,
        k,
        visible(
            q.shape[1],
            k.shape[1],
            causal=causal,
            window=window,
            mask=mask,
            key_lengths=key_lengths,
            query_lengths=query_lengths,
            query_offset=query_offset,
            device=q.device,
        ),
        bias,
        scale,
        softcap,
        sinks,
        query_offset,
    )[0]


def _weights(q: Tensor, k: Tensor, seen: Tensor, bias: Any, scale: Any, softcap: Any, sinks: Any, offset: Any) -> Any:
    group = q.shape[2] // k.shape[2]
    # A query that sees nothing takes no part: what stands in it would meet the 0 of its gradient.
    wide_q = torch.where(seen.any(-1, keepdim=True), _wide(q).transpose(1, 2), 0.0)
    wide_k = _wide(k).transpose(1, 2).repeat_interleave(group, dim=1)
    # a key that is not finite is taken out of the product and put back where it is seen
    finite = torch.isfinite(wide_k).all(-1)
    scores = wide_q @ torch.where(finite[..., None], wide_k, 0.0).transpose(-1, -2)
    scores = torch.where(finite[:, :, None, :] | ~seen, scores, math.nan)
    scores = scores * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    i, j = positions(q.shape[1], k.shape[1], offset, q.device)
    extra = additive_bias(bias, i, j, scores.dtype)
    if extra is not None:
        scores = scores + extra
    return masked_softmax(scores, seen.expand(scores.shape), sinks)


@full_precision
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    query_offset: int | Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    return_lse: bool = False,
    sequence: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `undivided.attention`: same words, any float dtype, any device, twice differentiable.

    sequence: the number that the first row of the batch has in dropout's counter.
    """
    if rotary is not None:
        i, _ = positions(q.shape[1], k.shape[1], query_offset, q.device)
        q, k = turn(q, *rotary, i[:, 0, :, 0]), turn(k, *rotary)
    seen = visible(
        q.shape[1],
        k.shape[1],
        causal=causal,
        window=window,
        mask=mask,
        key_lengths=key_lengths,
        query_lengths=query_lengths,
        query_offset=query_offset,
        device=q.device,
    )
    probabilities, lse = _weights(q, k, seen, bias, scale, softcap, sinks, query_offset)
    if dropout_p:
        batch, nheads, seqlen_q, seqlen_k = probabilities.shape
        kept = dropout_mask(
            0 if seed is None else seed, dropout_p, sequence + batch, nheads, seqlen_q, seqlen_k, q.device
        )[sequence:]
        probabilities = torch.where(kept, probabilities / (1 - dropout_p), 0.0)
        seen = seen & kept
    wide_v = _wide(v).transpose(1, 2).repeat_interleave(q.shape[2] // v.shape[2], dim=1)
    out = weigh(probabilities, wide_v, seen).transpose(1, 2).to(q.dtype)
    return (out, lse) if return_lse else out
