"""Which keys a query sees: the one definition of masking."""

from __future__ import annotations

import torch
from torch import Tensor


def positions(
    seqlen_q: int, seqlen_k: int, query_offset: int | Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Positions on the key axis: of queries, (batch or 1, 1, seqlen_q, 1), and of keys, (1, 1, 1, seqlen_k)."""
    offset = seqlen_k - seqlen_q if query_offset is None else query_offset
    if isinstance(offset, Tensor):
        offset = offset.to(device=device, dtype=torch.int64)[:, None, None, None]
    i = torch.arange(seqlen_q, device=device)[None, None, :, None] + offset
    return i, torch.arange(seqlen_k, device=device)[None, None, None, :]


def visible(
    seqlen_q: int,
    seqlen_k: int,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    query_offset: int | Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """bool, broadcastable to (batch, nheads, seqlen_q, seqlen_k); True is visible."""
    device = torch.device(device)
    i, j = positions(seqlen_q, seqlen_k, query_offset, device)
    left, right = (None, None) if window is None else window
    if causal:
        right = 0 if right is None else min(right, 0)
    seen = torch.ones(1, 1, seqlen_q, seqlen_k, dtype=torch.bool, device=device)
    if left is not None:
        seen = seen & (j >= i - left)
    if right is not None:
        seen = seen & (j <= i + right)
    if key_lengths is not None:
        seen = seen & (j < key_lengths.to(device)[:, None, None, None])
    if query_lengths is not None:
        rows = torch.arange(seqlen_q, device=device)[None, None, :, None]
        seen = seen & (rows < query_lengths.to(device)[:, None, None, None])
    if mask is not None:
        seen = seen & mask
    return seen
