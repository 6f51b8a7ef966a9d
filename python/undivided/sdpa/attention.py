"""torch.nn.functional.scaled_dot_product_attention, in this package's words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    mask: Tensor | None,
    key_lengths: Tensor | None,
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Attention on torch's own kernels; layouts as in `undivided.attention`, causal only when square."""
    if key_lengths is not None:
        inside = torch.arange(k.shape[1], device=k.device) < key_lengths[:, None]
        # torch multiplies a masked value by 0: NaN in the padding would spread.
        k = k.masked_fill(~inside[:, :, None, None], 0)
        v = v.masked_fill(~inside[:, :, None, None], 0)
        inside = inside[:, None, None, :]
        mask = inside if mask is None else mask & inside
    attn_mask = mask
    if bias is not None:
        bias = bias.to(q.dtype)
        attn_mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=attn_mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
