"""Where a model with an encoder alone looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..tasks import N_TO_M
from .inference import Symbols, device_of
from .models import SavedModel


def attends(saved: SavedModel) -> bool:
    """Whether there is a map: of cross attention, or of the self-attention of an encoder alone."""
    return hasattr(saved.model, "cross_attention") or (saved.task.shape != N_TO_M and len(blocks_of(saved)) > 0)


def blocks_of(saved: SavedModel) -> Sequence[Any]:
    return getattr(saved.model.encoder, "blocks", ())  # type: ignore[return-value]


@torch.no_grad()
def self_attention(saved: SavedModel, symbols: Symbols) -> Tensor:
    """How much each symbol of the input looks at each: (input, input), float32 on the CPU, rows sum to 1.

    The mean over the heads and blocks of the encoder.

    Raises:
        ValueError: the model has no self-attention.
    """
    if not len(blocks := blocks_of(saved)):
        raise ValueError(f"model={saved.kind!r} has no attention, so there is no map of it")
    maps: list[Tensor] = []

    def keep(attention: Any, inputs: tuple[Tensor, ...], words: Mapping[str, Any]) -> None:
        maps.append(attention.weights(inputs[0], positions=words["positions"], causal=words["causal"]))

    handles = [block.attention.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    try:
        src = torch.tensor([saved.source.encode(symbols)], device=device_of(saved.model))
        saved.model.encoder(src)  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(maps).mean((0, 1, 2)).float().cpu()
