"""Dropout from a counter: an element is a function of the seed and its place, so nothing is ever stored."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

LOW = 0xFFFFFFFF
Words = TypeVar("Words", int, Tensor)


def mix(x: Words) -> Words:
    """A bijection of 32-bit words in which every input bit reaches every output bit; int64 holds a tensor's words."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & LOW
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & LOW
    return x ^ (x >> 16)


def seed_state(seed: int) -> int:
    """What all elements share of a seed below 2^63."""
    return mix(seed & LOW) ^ (seed >> 32)


def dropout_mask(
    seed: int | Tensor,
    p: float,
    batch: int,
    nheads: int,
    seqlen_q: int,
    seqlen_k: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """bool (batch, nheads, seqlen_q, seqlen_k); True is kept, with probability 1 - p."""
    # On a tensor, as torch.compile may hold the seed as a symbol, or as a tensor.
    words = (seed & LOW, seed >> 32)
    low, high = (word.to(device) if isinstance(word, Tensor) else torch.tensor(word, device=device) for word in words)
    state = mix(low) ^ high
    row = mix(state ^ torch.arange(batch * nheads, device=device))[:, None]
    row = mix(row ^ torch.arange(seqlen_q, device=device))[:, :, None]
    keys = torch.arange(seqlen_k, device=device) * 0x9E3779B9
    drawn = mix((row + keys) & LOW)
    return (drawn >= round(p * 2**32)).view(batch, nheads, seqlen_q, seqlen_k)
