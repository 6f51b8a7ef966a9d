"""Inputs in, answers out: a model applied to many symbol sequences at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..tasks import Task, Vocabulary, pad
from ..tasks.vocabulary import BEGIN, SPECIAL
from .models import SavedModel
from .shapes import SHAPES

Symbols = tuple[str, ...]
Progress = Callable[[int], None]

MOST_SYMBOLS = 1 << 14  # in one batch, however many inputs that is: whole documents would need gigabytes


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def answer(
    model: nn.Module,
    task: Task,
    source: Vocabulary,
    target: Vocabulary,
    inputs: Sequence[Symbols],
    batch_size: int = 512,
    advance: Progress | None = None,
    beams: int = 1,
) -> list[Symbols]:
    """The likeliest answer to every input, in the order of `inputs`.

    Args:
        model: in evaluation mode, of the task's shape.
        inputs: symbols; inputs of like length share a batch.
        advance: called with the number of inputs done since the last call.
        beams: hypotheses in the search for a sequence, 1 is greedy; a batch has so many times fewer inputs.

    Raises:
        ValueError: `beams` is below 1, or above 1 for labels, which are not searched for.
    """
    device, shape = device_of(model), SHAPES[task.shape]
    if beams < 1 or (beams > 1 and not shape.shifted):
        raise ValueError(f"beams={beams} must be 1 for a task from {task.shape.replace('-', ' ')}, else at least 1")
    answers: dict[int, Symbols] = {}
    for numbers in by_length(inputs, max(1, batch_size // beams)):
        src, src_lengths = pad([source.encode(inputs[number]) for number in numbers])
        ids = shape.answer(model, src.to(device), src_lengths.to(device), task.longest_output, beams)
        answers.update(zip(numbers, map(target.decode, ids.tolist()), strict=True))
        if advance is not None:
            advance(len(numbers))
    return [answers[number] for number in range(len(inputs))]


def by_length(inputs: Sequence[Symbols], batch_size: int) -> Iterator[list[int]]:
    """The numbers of the inputs in batches, shortest inputs first."""
    numbers = sorted(range(len(inputs)), key=lambda number: len(inputs[number]))
    while numbers:
        count = 1
        while count < min(batch_size, len(numbers)) and (count + 1) * len(inputs[numbers[count]]) <= MOST_SYMBOLS:
            count += 1
        yield numbers[:count]
        numbers = numbers[count:]


@torch.no_grad()
def probabilities(saved: SavedModel, symbols: Symbols) -> dict[str, float]:
    """How likely a model from N to 1 takes each label to be, the likeliest first; the sum is 1."""
    device = device_of(saved.model)
    src, src_lengths = pad([saved.source.encode(symbols)])
    logits = saved.model(src.to(device), src_lengths=src_lengths.to(device))[0, len(SPECIAL) :]
    found = dict(zip(saved.target.symbols, logits.float().softmax(-1).tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


@torch.no_grad()
def cross_attention(saved: SavedModel, symbols: Symbols, answered: Symbols) -> Tensor:
    """Where a model looked for each symbol of its answer: (answer + 1, input), float32 on the CPU, rows sum to 1.

    The mean over the heads and blocks of the decoder; the last row is that of the end symbol.

    Raises:
        ValueError: the model has no cross attention.
    """
    if not hasattr(saved.model, "cross_attention"):
        raise ValueError(f"model={saved.kind!r} has no cross attention, so there is no map of it")
    device = device_of(saved.model)
    src = pad([saved.source.encode(symbols)])[0].to(device)
    tgt = torch.tensor([[BEGIN, *saved.target.encode(answered)]], device=device)
    maps = saved.model.cross_attention(src, tgt)  # type: ignore[operator]
    return torch.stack(maps).mean((0, 1, 2)).float().cpu()
