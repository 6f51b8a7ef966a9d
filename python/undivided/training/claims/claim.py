"""What a claim is: something that is said of these models, with the measurement that shows how far it holds."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...tasks import PairData, Task
from ..session import prepare
from ..settings import Settings
from ..trainer import Trainer

TIMED_UPDATES = 10


@dataclass(frozen=True)
class Setup:
    """What a measurement is given.

    `minutes` is the budget of all that it trains; `quick` asks for the smallest measurement that has every kind of row,
    in seconds and whatever the budget. `models` are the kinds to measure where a claim is about kinds of models, all of
    the recipe where it is empty. `say` is told how far it is.
    """

    task: Task
    data: PairData
    minutes: float
    seed: int = 0
    device: str = "cpu"
    quick: bool = False
    models: tuple[str, ...] = ()
    say: Callable[[str], None] = lambda text: None

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.models or tuple(self.task.recipes["quick"]["model"])


@dataclass(frozen=True)
class Panel:
    """One plot of a figure: the field `y` of the rows over their field `x`, a line for each value of `line`."""

    x: str
    y: str
    line: str
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Claim:
    """A row of the table of claims.

    `measure(setup)` gives rows, all of the frozen dataclass `row`. `columns` are the headings of the printed table and
    `lines(rows)` its lines; `drawn(rows)` are the rows that the panels draw. `suits(task)` is None, or a sentence that
    says why it cannot be measured on that task; `of_kinds`: several kinds of model are measured.
    """

    name: str
    summary: str
    row: type[Any]
    measure: Callable[[Setup], list[Any]]
    columns: tuple[str, ...]
    lines: Callable[[Sequence[Any]], list[tuple[str, ...]]]
    panels: tuple[Panel, ...]
    suits: Callable[[Task], str | None] = lambda task: None
    drawn: Callable[[Sequence[Any]], Sequence[Any]] = lambda rows: rows
    of_kinds: bool = False


@contextmanager
def trial(task: Task, settings: Settings, data: PairData) -> Iterator[Trainer]:
    """A trainer that is ready to run, in a folder that goes away with it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = prepare(task, settings, data, Path(folder))
        try:
            yield trainer
        finally:
            trainer.log.close()


def losses(trainer: Trainer, updates: int) -> Iterator[float]:
    """The training loss of each of so many updates, with the learning rate of the whole schedule."""
    for number in range(updates):
        trainer.loss_sum.zero_()
        trainer.update(trainer.settings.schedule.rate(number / updates))
        yield float(trainer.loss_sum)  # on a GPU this waits for the update


def update_seconds(trainer: Trainer, updates: int = TIMED_UPDATES) -> float:
    """The median time of an update over the first batches, after two that are not counted."""
    seconds = []
    for _ in range(updates + 2):
        started = time.perf_counter()
        trainer.update(trainer.settings.lr)
        if trainer.settings.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def weights_of(trainer: Trainer) -> int:
    return sum(weight.numel() for weight in trainer.model.parameters())
