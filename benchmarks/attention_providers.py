"""Attention: who computes it. A provider is a function (case, device) -> function of q, k, v (and table), and a line
in `providers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .gate import compiled, ours
from .op import Absent, Function, Provider
from .peers import attention_peers, refuse


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    version = torch.__version__
    forced = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    forced += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION] if device == "cuda" else []
    return [
        *ours(own, backends),
        Provider("torch sdpa", version, sdpa),
        *(Provider(f"torch sdpa {short(one)}", version, only(one), slow=one == SDPBackend.MATH) for one in forced),
        Provider("torch.compile", version, compiled(sdpa), compiles=True),
        Provider("torch flex", version, flex, compiles=True),
        *attention_peers(device),
    ]


def own(case: Any, device: str, backend: str) -> Function:
    import undivided

    from .attention import with_words

    function = undivided.attention_packed if case.packed else undivided.attention
    return with_words(case, device, function, backend=backend)


def sdpa(case: Any, device: str) -> Function:
    """As a user of plain torch calls it: a mask for padding, a loop over packed sequences, biases made dense."""
    if case.packed:
        return packed_sdpa(case)
    mask = dense_bias(case, device)
    buckets = relative(case, device) if case.bias == "relative" else None

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
        extra = mask if table is None else table[buckets].permute(2, 0, 1)[None]
        return heads_first(q, k, v, case, attn_mask=extra, is_causal=case.causal)

    return function


def heads_first(q: Tensor, k: Tensor, v: Tensor, case: Any, **words: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=case.nheads != case.nheads_kv, **words)
    return out.transpose(1, 2)


def packed_sdpa(case: Any) -> Function:
    ends = list(accumulate(case.lengths))
    spans = [slice(end - n, end) for end, n in zip(ends, case.lengths, strict=True)]

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [heads_first(q[None, one], k[None, one], v[None, one], case, is_causal=case.causal) for one in spans]
        return torch.cat([part[0] for part in parts])

    return function


def dense_bias(case: Any, device: str) -> Tensor | None:
    """Padding as a bool mask (batch, 1, 1, seqlen_k), ALiBi as a bias (1, nheads, seqlen_q, seqlen_k)."""
    if case.lengths:
        inside = torch.arange(case.seqlen_k, device=device) < torch.tensor(case.lengths, device=device)[:, None]
        return inside[:, None, None, :]
    if case.bias == "alibi":
        away = distance(case, device).abs().neg()
        return (case.slopes(device)[:, None, None] * away).to(getattr(torch, case.dtype))[None]
    return None


def distance(case: Any, device: str) -> Tensor:
    """Key position minus query position, the last query beside the last key: (seqlen_q, seqlen_k)."""
    i = torch.arange(case.seqlen_q, device=device) + case.seqlen_k - case.seqlen_q
    return torch.arange(case.seqlen_k, device=device) - i[:, None]


def relative(case: Any, device: str) -> Tensor:
    from undivided.reference.bias import relative_buckets

    return relative_buckets(distance(case, device), 32)


def only(backend: SDPBackend) -> Callable[[Any, str], Function]:
    """torch's attention with one of its kernels and no other."""

    def make(case: Any, device: str) -> Function:
        inner = sdpa(case, device)

        def function(**values: Tensor) -> Tensor:
            try:
                with sdpa_kernel(backend):
                    return inner(**values)
            except RuntimeError as error:
                if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                    raise
                raise NotImplementedError(f"torch's {short(backend)} kernel does not take this case") from error

        return function

    return make


def short(backend: SDPBackend) -> str:
    return backend.name.removesuffix("_ATTENTION").lower()


def flex(case: Any, device: str) -> Function:
    """FlexAttention: block masks for causal and padding, a score function for the biases."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    refuse(case, "packed batches through this adapter", case.packed)
    mask = None
    if case.causal or case.lengths:
        shift = case.seqlen_k - case.seqlen_q
        valid = torch.tensor(case.lengths or [case.seqlen_k] * case.batch, device=device)

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            inside = j < valid[b]
            return inside & (j <= i + shift) if case.causal else inside

        mask = create_block_mask(seen, case.batch, None, case.seqlen_q, case.seqlen_k, device=device)
    buckets = relative(case, device) if case.bias == "relative" else None
    slopes, away = case.slopes(device), distance(case, device).abs()
    kernel = torch.compile(flex_attention, dynamic=False)

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
        if device == "cpu" and q.requires_grad:
            raise NotImplementedError("FlexAttention has no backward on a CPU")

        def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if table is not None and buckets is not None:
                return value + table[buckets[i, j], h]
            return value - slopes[h] * away[i, j]

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        score_mod = score if case.bias else None
        out = kernel(q, k, v, score_mod=score_mod, block_mask=mask, enable_gqa=case.nheads != case.nheads_kv)
        return out.transpose(1, 2)

    return function
