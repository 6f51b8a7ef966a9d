"""Rotary position embedding as it is defined."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(
    seqlen: int, head_dim: int, base: float = 10000.0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """cos and sin, each float32 (seqlen, head_dim / 2), of position / base^(2 i / head_dim) (Su et al. 2021)."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim)
    angle = torch.arange(seqlen, dtype=torch.float64, device=device)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotary(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """The definition of `undivided.rotary`: halves (x1, x2) become (x1 cos - x2 sin, x2 cos + x1 sin)."""
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    cos = cos[: x.shape[1]] if positions is None else cos[positions]
    sin = sin[: x.shape[1]] if positions is None else sin[positions]
    cos, sin = (t.to(dtype).unsqueeze(-2) for t in (cos, sin))  # (batch or none, seqlen, 1, head_dim / 2)
    x1, x2 = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x.dtype)
