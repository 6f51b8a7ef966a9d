"""Position encodings that are added to the embeddings."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoidal(seqlen: int, d_model: int, base: float = 10000.0, device: torch.device | str = "cpu") -> Tensor:
    """float32 (seqlen, d_model): sin in the even columns, cos in the odd ones (Vaswani et al. 2017, section 3.5)."""
    columns = torch.arange(0, d_model, 2, dtype=torch.float64, device=device)
    angle = torch.arange(seqlen, dtype=torch.float64, device=device)[:, None] * base ** (-columns / d_model)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :d_model].float()
