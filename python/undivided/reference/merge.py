"""Merging attention over disjoint parts of the keys, as it is defined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The definition of `undivided.merge_attention`: each part weighs exp(its lse)."""
    stacked = torch.stack(list(lses))  # (parts, batch, nheads, seqlen_q)
    empty = torch.isneginf(stacked).all(0)
    lse = torch.where(empty, -torch.inf, torch.logsumexp(torch.where(empty, 0.0, stacked), 0))
    weights = torch.exp(stacked - torch.where(empty, 0.0, lse))  # a part without keys weighs exp(-inf) = 0
    weights = weights.transpose(-1, -2)[..., None]
    wide = torch.stack([out.to(weights.dtype) for out in outs])
    return (weights * wide).sum(0).to(outs[0].dtype), lse
