"""torch.nn.functional.scaled_dot_product_attention, in this package's words."""

from __future__ import annotations

import torch
from torch import Tensor

from .hidden import all_finite, bad_keys, rows_that_see

# torch's own function whatever torch.nn.functional holds: `undivided.sdpa()` puts this package's there.
TORCH_SDPA = torch._C._nn.scaled_dot_product_attention
LOWEST = -2.3e38  # a bias that is finite times log2(e)


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
    """Attention on torch's own kernels; layouts as in `undivided.attention`, causal only when square.

    mask and bias have 4 dimensions, of size 1 where they broadcast.
    """
    visible, bad = mask, None
    if key_lengths is not None:
        inside = torch.arange(k.shape[1], device=k.device) < key_lengths[:, None]  # (batch, seqlen_k)
        visible = inside[:, None, None, :] if mask is None else mask & inside[:, None, None, :]
    if (causal or visible is not None) and not all_finite(k, v):
        if key_lengths is not None:
            k, v = (t.masked_fill(~inside[:, :, None, None], 0) for t in (k, v))
        if causal or mask is not None:  # otherwise every query sees every key that is left
            bad = bad_keys(k, v, q.shape[2])
            k, v = (torch.nan_to_num(t, 0.0, 0.0, 0.0) for t in (k, v))
    out = TORCH_SDPA(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=additive(visible, bias, q, k),
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    ).transpose(1, 2)
    if bad is None:
        return out
    return torch.where(rows_that_see(bad, visible)[..., None], torch.nan, out)


def additive(mask: Tensor | None, bias: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Mask and bias as torch's one argument, (batch, nheads, seqlen_q, seqlen_k) by stride 0."""
    both = mask
    if bias is not None:
        bias = (bias if bias.device.type == "cpu" else raised(bias, q.dtype)).to(q.dtype)
        both = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    return None if both is None else both.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])


def raised(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias with what is finite kept finite in `dtype` and inside a GPU's kernel, which multiplies it by log2(e).

    Many write the lowest float for -inf, and a row of nothing else gives the mean.
    """
    lowest = max(LOWEST, torch.finfo(dtype).min)
    low = (bias < lowest) & (bias != float("-inf"))
    return bias + torch.where(low, lowest - bias, 0.0).detach()  # a sum, so that gradients pass
