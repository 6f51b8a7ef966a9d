"""Packed attention as it is defined: one call for each sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention import attention
from .bias import ALiBi


def attention_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    return_lse: bool = False,
    **words: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `undivided.attention_packed`; max_seqlen_q and max_seqlen_k change nothing."""
    outs, lses = [], []
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b in range(len(starts_q) - 1):
        part_q = q[starts_q[b] : starts_q[b + 1]][None]
        part_k = k[starts_k[b] : starts_k[b + 1]][None]
        part_v = v[starts_k[b] : starts_k[b + 1]][None]
        own = dict(words)
        if isinstance(own.get("bias"), ALiBi) and own["bias"].slopes.dim() == 2:
            own["bias"] = ALiBi(own["bias"].slopes[b])
        out, lse = attention(part_q, part_k, part_v, sequence=b, return_lse=True, **own)
        outs.append(out[0])
        lses.append(lse[0])
    rest = q.shape[0] - starts_q[-1]
    outs.append(q.new_zeros(rest, q.shape[1], v.shape[-1]))
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lses.append(torch.full((q.shape[1], rest), -torch.inf, dtype=lse_dtype, device=q.device))
    out, lse = torch.cat(outs), torch.cat(lses, dim=1)
    return (out, lse) if return_lse else out
