"""What the trainer must know of a task's shape: how a model of it is called, and how it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..tasks import LEFT_TO_RIGHT, N_TO_1, N_TO_M, N_TO_N
from ..tasks.vocabulary import SPECIAL
from .batches import Batch


@dataclass(frozen=True)
class Shape:
    """A row of the table of shapes.

    `shifted`: targets are written symbol by symbol, each from those before it. `logits(model, batch)` gives (batch,
    targets, vocabulary). `answer(model, src, src_lengths, longest, beams)` gives ids (batch, n).
    """

    shifted: bool
    logits: Callable[[nn.Module, Batch], Tensor]
    answer: Callable[[nn.Module, Tensor, Tensor, int, int], Tensor]


def sequence_logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.src, batch.tgt, src_lengths=batch.src_lengths, tgt_lengths=batch.tgt_lengths)


def token_logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.src, src_lengths=batch.src_lengths)


def one_logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.src, src_lengths=batch.src_lengths)[:, None]


def searched(model: nn.Module, src: Tensor, src_lengths: Tensor, longest: int, beams: int) -> Tensor:
    """Ids (batch, n), n <= longest, without begin; what follows the first end means nothing."""
    return model.generate(src, src_lengths=src_lengths, max_length=longest, beams=beams)  # type: ignore[operator]


def token_labels(model: nn.Module, src: Tensor, src_lengths: Tensor, longest: int, beams: int) -> Tensor:
    """The likeliest label of every symbol, padding behind the last."""
    labels = likeliest(model(src, src_lengths=src_lengths))
    beyond = torch.arange(labels.shape[1], device=labels.device) >= src_lengths[:, None]
    return labels.masked_fill(beyond, 0)


def one_label(model: nn.Module, src: Tensor, src_lengths: Tensor, longest: int, beams: int) -> Tensor:
    return likeliest(model(src, src_lengths=src_lengths))[:, None]


def likeliest(logits: Tensor) -> Tensor:
    """The best of the labels; the numbers before them are those of padding, begin and end."""
    return logits[..., len(SPECIAL) :].argmax(-1) + len(SPECIAL)


SHAPES = {
    N_TO_M: Shape(True, sequence_logits, searched),
    N_TO_N: Shape(False, token_logits, token_labels),
    N_TO_1: Shape(False, one_logits, one_label),
    LEFT_TO_RIGHT: Shape(False, token_logits, token_labels),
}
