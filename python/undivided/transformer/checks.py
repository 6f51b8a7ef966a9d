"""Clear errors for what users pass to a model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn import Packing


def check_ids(name: str, ids: Tensor) -> Tensor:
    """Raises: TypeError or ValueError for what is no batch of symbol numbers."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} has dtype {ids.dtype}, expected torch.int64 or torch.int32")
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, expected (batch, seqlen) with seqlen at least 1")
    return ids


def check_lengths(name: str, lengths: Tensor | Packing | None, ids: Tensor) -> None:
    """Raises: ValueError where the lengths do not fit the batch, or the packing the packed one."""
    if isinstance(lengths, Packing):
        total = lengths.positions.shape[0]
        if ids.shape[:2] != (1, total):
            raise ValueError(f"{name} packs {total} tokens, ids have shape {tuple(ids.shape)}, expected (1, {total})")
    elif lengths is not None and lengths.shape != ids.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(lengths.shape)}, expected (batch,) = ({ids.shape[0]},)")
