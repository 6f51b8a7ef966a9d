"""What padding costs: the same batches padded and packed, and batches of inputs of like length.

The padding of padded ones goes through all layers, as it does in most models; by themselves ours leave it out on a CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...transformer import keep_padding
from ..batches import Batches, mixed_seed
from ..recipes import settings_for
from .claim import Claim, Panel, Setup, losses, trial, update_seconds

LOGGED = 20  # rows a way
MOST_UPDATES, FEWEST_UPDATES = 5000, 20


class Shuffled(Batches):
    """Batches in random order, whatever the lengths of what they hold."""

    def order(self, epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        return list(torch.randperm(len(self.examples), generator=generator).split(self.batch_size))


@dataclass(frozen=True)
class Way:
    """How the examples come to the model."""

    batches: type[Batches]
    packed: bool


WAYS: Mapping[str, Way] = {
    "padded": Way(Shuffled, False),
    "packed": Way(Shuffled, True),
    "padded, like lengths": Way(Batches, False),
    "packed, like lengths": Way(Batches, True),
}


@dataclass(frozen=True)
class Row:
    """A part of one training.

    `loss` is the mean over the part's updates; `tokens` counts the symbols of sources and targets so far, `padding` is
    the part of all symbols of the padded batch, in percent, that were padding, 0 where they are packed.
    """

    way: str
    updates: int
    seconds: float
    tokens: int
    padding: float
    loss: float


def measure(setup: Setup) -> list[Row]:
    """The same number of updates in every way, as many as the budget allows; nothing but updates is timed."""
    updates = 3 if setup.quick else affordable(setup)
    rows = []
    for name, way in WAYS.items():
        setup.say(f"{name}, {updates} updates")
        settings = settings_for(
            setup.task, "transformer", "quick", setup.device, options={"dropout": 0.0}, steps=updates, seed=setup.seed
        )
        with trial(setup.task, settings, setup.data) as trainer, keep_padding():
            examples = trainer.batches.examples
            batches = way.batches(examples, settings.batch_size, settings.seed, packed=way.packed)
            trainer.batches = batches
            order = [rows for epoch in range(updates // len(batches) + 1) for rows in batches.order(epoch)][:updates]
            counts = [counted(examples.src_lengths[rows], examples.tgt_lengths[rows]) for rows in order]
            found, started, begun = [], time.perf_counter(), 0
            for number, loss in enumerate(losses(trainer, updates), start=1):
                found.append(loss)
                if number * LOGGED // updates > (number - 1) * LOGGED // updates:
                    real, all_places = (sum(column) for column in zip(*counts[:number], strict=True))
                    padding = 0.0 if way.packed else 100 * (1 - real / all_places)
                    seconds = round(time.perf_counter() - started, 3)
                    mean = round(statistics.fmean(found[begun:]), 4)
                    rows.append(Row(name, number, seconds, real, round(padding, 1), mean))
                    begun = number
    return rows


def counted(src_lengths: Tensor, tgt_lengths: Tensor) -> tuple[int, int]:
    """(symbols, places) of one batch: what it holds, and what it holds padded to the longest."""
    both = (src_lengths.long(), tgt_lengths.long())
    return sum(int(one.sum()) for one in both), sum(int(one.max()) * len(one) for one in both)


def affordable(setup: Setup) -> int:
    """How many updates fit into the budget, if all ways were as slow as the first."""
    settings = settings_for(setup.task, "transformer", "quick", setup.device, steps=1)
    with trial(setup.task, settings, setup.data) as probe, keep_padding():
        probe.batches = Shuffled(probe.batches.examples, settings.batch_size, settings.seed)
        seconds = update_seconds(probe)
    return max(FEWEST_UPDATES, min(MOST_UPDATES, int(60 * setup.minutes / (len(WAYS) * seconds))))


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    last = {row.way: row for row in rows}  # the last row of each
    speeds = {way: row.tokens / row.seconds for way, row in last.items()}
    base = speeds[next(iter(WAYS))]
    return [
        (
            way,
            f"{row.padding:.1f}",
            f"{speeds[way]:,.0f}",
            f"{speeds[way] / base:.2f}",
            f"{row.loss:.4f}",
            str(row.updates),
        )
        for way, row in last.items()
    ]


CLAIM = Claim(
    name="packing",
    summary="padded against packed batches: the same updates, tokens a second without padding",
    row=Row,
    measure=measure,
    columns=("batches", "padding %", "tokens/s", "times as fast", "loss at the end", "updates"),
    lines=lines,
    panels=(Panel("seconds", "loss", "way", "seconds of training", "training loss"),),
)
