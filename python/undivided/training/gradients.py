"""How much of the loss's gradient reaches each input position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .batches import Batch
from .loss import token_loss
from .shapes import Shape


def input_gradients(model: nn.Module, shape: Shape, batch: Batch) -> Tensor:
    """The norm of the loss's gradient with respect to the embedding of each source position, (seqlen,) float64.

    The mean over the rows of the batch that have the position. In a recurrent network it shrinks with the distance to
    where the loss is (Bengio et al. 1994).

    Args:
        model: its encoder's embedding is called first, in `encoder.embedding`; where the decoder shares it, the later
            calls are the decoder's. Nothing in it changes.
        batch: a padded one.

    Raises:
        TypeError: the batch is packed.
    """
    if not isinstance(batch.src_lengths, Tensor):
        raise TypeError("input_gradients needs a padded batch, this one is packed")
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if seen:
            return output
        seen.append(output.detach().requires_grad_())
        return seen[0]

    handle = model.encoder.embedding.register_forward_hook(keep)  # type: ignore[union-attr, operator]
    try:
        loss = token_loss(shape.logits(model, batch), batch)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(loss, seen)
    norms = gradient.double().norm(dim=-1)  # (batch, seqlen), 0 at padding
    inside = torch.arange(norms.shape[1], device=norms.device) < batch.src_lengths[:, None]
    return (norms * inside).sum(0) / inside.sum(0)
