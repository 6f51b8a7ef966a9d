"""Dropout from a counter: an element is a function of the seed and its place, so nothing is ever stored."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every input bit reaches every output bit; int64 holds the words."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def dropout_mask(
    seed: int, p: float, batch: int, nheads: int, seqlen_q: int, seqlen_k: int, device: torch.device | str = "cpu"
) -> Tensor:
    """bool (batch, nheads, seqlen_q, seqlen_k); True is kept, with probability 1 - p."""
    word = torch.tensor(seed & _LOW, device=device)
    heads = torch.arange(batch * nheads, device=device)
    row = _mix(_mix(word) ^ (seed >> 32) ^ heads)[:, None]
    row = _mix(row ^ torch.arange(seqlen_q, device=device))[:, :, None]
    keys = torch.arange(seqlen_k, device=device) * 0x9E3779B9
    drawn = _mix((row + keys) & _LOW)
    return (drawn >= round(p * 2**32)).view(batch, nheads, seqlen_q, seqlen_k)
