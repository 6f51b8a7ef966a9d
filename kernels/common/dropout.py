"""Which probabilities dropout keeps: a hash of the seed and of the place, the same in every backend."""

from __future__ import annotations

import triton
import triton.language as tl


def mix_host(x: int) -> int:
    """The mixing step on a Python integer below 2^32."""
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


def seed_state(seed: int) -> int:
    """What all elements share of a seed below 2^63."""
    return mix_host(seed & 0xFFFFFFFF) ^ (seed >> 32)


@triton.jit
def mix(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def kept(state, threshold, head, i, j):
    """bool [M, N]. state, threshold: int32 with the bits of uint32; head: b * nheads + h; i [M], j [N]."""
    first = mix(state.to(tl.uint32) ^ head.to(tl.uint32))
    row = mix(first ^ i.to(tl.uint32))
    bits = mix(row[:, None] + j.to(tl.uint32)[None, :] * 0x9E3779B9)
    return bits >= threshold.to(tl.uint32)
