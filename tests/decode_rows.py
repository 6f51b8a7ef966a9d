"""Caches and lengths for tests of attention_decode."""

from __future__ import annotations

import torch

from rows import DEVICE, random

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def drawn(lengths, longest, seqlen_q=1, nheads=2, nheads_kv=2, head_dim=16, dtype=torch.float32, new=0):
    """(q, k_cache, v_cache, cache_lengths) and k, v."""
    batch = len(lengths)
    q = random(batch, seqlen_q, nheads, head_dim, seed=1, dtype=dtype)
    caches = [random(batch, longest, nheads_kv, head_dim, seed=n, dtype=dtype) for n in (2, 3)]
    k, v = (random(batch, new, nheads_kv, head_dim, seed=n, dtype=dtype) for n in (4, 5))
    return [q, *caches, ints(*lengths)], dict(k=k, v=v) if new else {}
