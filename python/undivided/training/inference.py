"""Inputs in, answers out: a model applied to many symbol sequences at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..tasks import Vocabulary, pad
from ..tasks.vocabulary import BEGIN
from .models import SavedModel

Symbols = tuple[str, ...]
Progress = Callable[[int], None]


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def answer(
    model: nn.Module,
    source: Vocabulary,
    target: Vocabulary,
    inputs: Mapping[str, Sequence[str]],
    longest_output: int,
    batch_size: int = 512,
    advance: Progress | None = None,
) -> dict[str, Symbols]:
    """The greedy answer to every input, in the order of `inputs`.

    Args:
        model: in evaluation mode; its `generate(src, src_lengths=, max_length=)` gives ids (batch, n).
        inputs: {name: symbols}; inputs of like length share a batch.
        longest_output: an answer is cut after this many symbols.
        advance: called with the number of inputs done since the last call.
    """
    device = device_of(model)
    answers: dict[str, Symbols] = {}
    for names in by_length(inputs, batch_size):
        src, src_lengths = pad([source.encode(inputs[name]) for name in names])
        ids = greedy(model, src.to(device), src_lengths.to(device), longest_output)
        answers.update(zip(names, map(target.decode, ids.tolist()), strict=True))
        if advance is not None:
            advance(len(names))
    return {name: answers[name] for name in inputs}


def greedy(model: nn.Module, src: Tensor, src_lengths: Tensor, longest_output: int) -> Tensor:
    """Ids (batch, n), n <= longest_output, without begin; what follows the first end means nothing."""
    with torch.no_grad():
        return model.generate(src, src_lengths=src_lengths, max_length=longest_output)  # type: ignore[operator]


def by_length(inputs: Mapping[str, Sequence[str]], batch_size: int) -> Iterable[list[str]]:
    """The names in batches, shortest inputs first."""
    names = sorted(inputs, key=lambda name: len(inputs[name]))
    return (names[start : start + batch_size] for start in range(0, len(names), batch_size))


@torch.no_grad()
def cross_attention(saved: SavedModel, symbols: Symbols, answered: Symbols) -> Tensor:
    """Where a model looked for each symbol of its answer: (answer + 1, input), float32 on the CPU, rows sum to 1.

    The mean over the heads and blocks of the decoder; the last row is that of the end symbol.
    """
    device = device_of(saved.model)
    src = torch.tensor([saved.source.encode(symbols)], device=device)
    tgt = torch.tensor([[BEGIN, *saved.target.encode(answered)]], device=device)
    maps = saved.model.cross_attention(src, tgt)  # type: ignore[operator]
    return torch.stack(maps).mean((0, 1, 2)).float().cpu()
