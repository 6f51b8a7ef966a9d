"""Modules of torch around attention, as the tests of undivided.sdpa() call them."""

from __future__ import annotations

import torch
from torch import nn

from rows import DEVICE, random

TORCH = torch._C._nn.scaled_dot_product_attention
# Enough elements that the largest rounding error of each of two runs is no matter of luck.
D_MODEL, NHEADS, SEQLEN, SEQLEN_MEMORY = 64, 4, 33, 41
LENGTHS = {SEQLEN: torch.tensor([33, 14]), SEQLEN_MEMORY: torch.tensor([25, 41])}


def padding(seqlen: int) -> torch.Tensor:
    """True is padding, as torch's modules have it."""
    return (torch.arange(seqlen) >= LENGTHS[seqlen][:, None]).to(DEVICE)


def causal() -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(SEQLEN, device=DEVICE)


def inputs(dtype=torch.float32) -> dict[str, torch.Tensor]:
    return {
        "x": random(2, SEQLEN, D_MODEL, dtype=dtype),
        "memory": random(2, SEQLEN_MEMORY, D_MODEL, seed=1, dtype=dtype),
    }


def attention_module(**words) -> nn.MultiheadAttention:
    torch.manual_seed(2)
    return nn.MultiheadAttention(D_MODEL, NHEADS, batch_first=True, device=DEVICE, **words)


def layer(kind, **words) -> nn.Module:
    torch.manual_seed(2)
    words = dict(dropout=0.0, batch_first=True, device=DEVICE) | words
    return kind(D_MODEL, NHEADS, 48, **words)


def decode(run, x, memory):
    masks = dict(tgt_key_padding_mask=padding(SEQLEN), memory_key_padding_mask=padding(SEQLEN_MEMORY))
    return run(x, memory, tgt_mask=causal() < 0, **masks)
