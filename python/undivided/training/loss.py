"""What is minimised."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from .batches import Batch


def summed_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The sum of the cross-entropy over the targets that are no padding, in float32, as a 0-d tensor."""
    flat, flat_targets = logits.flatten(0, 1).float(), targets.flatten()
    return functional.cross_entropy(
        flat, flat_targets, ignore_index=0, reduction="sum", label_smoothing=label_smoothing
    )


def token_loss(logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """The mean of the cross-entropy over the targets that are no padding, in float32, as a 0-d tensor."""
    return summed_loss(logits, batch.targets, label_smoothing) / batch.tokens
