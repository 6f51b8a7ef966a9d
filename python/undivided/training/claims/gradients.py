"""At initialisation, the first of many inputs hardly moves a recurrent network's loss; it moves a transformer's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..gradients import input_gradients
from ..recipes import settings_for
from ..trainer import Trainer
from .claim import Claim, Panel, Setup, trial

END = 0.1  # the part of the positions that counts as the first or the last ones


@dataclass(frozen=True)
class Row:
    """The mean norm of the loss's gradient at one position of the longest inputs, before training."""

    model: str
    position: int
    gradient: float


def gradients_of(trainer: Trainer) -> list[float]:
    """The gradient at every position of a batch of the longest inputs, without dropout."""
    examples = trainer.batches.examples
    longest = examples.src_lengths.argsort(descending=True, stable=True)[: trainer.settings.batch_size]
    trainer.model.eval()
    with torch.backends.cudnn.flags(enabled=False):  # whose recurrent cells have no backward without dropout
        return input_gradients(trainer.model, trainer.shape, examples.batch(longest)).tolist()


def ends(gradients: Sequence[float]) -> tuple[float, float]:
    """The mean over the first and over the last tenth of the positions."""
    tenth = max(1, int(END * len(gradients)))
    return statistics.fmean(gradients[:tenth]), statistics.fmean(gradients[-tenth:])


def measure(setup: Setup) -> list[Row]:
    """Seconds, whatever the budget: nothing is trained."""
    rows = []
    for kind in setup.kinds:
        setup.say(f"gradients of the {kind}")
        settings = settings_for(setup.task, kind, "quick", setup.device, steps=1, seed=setup.seed)
        with trial(setup.task, settings, setup.data) as trainer:
            gradients = gradients_of(trainer)
        rows += rows_of(kind, gradients)
    return rows


def rows_of(kind: str, gradients: Sequence[float]) -> list[Row]:
    return [Row(kind, number, float(f"{value:.4g}")) for number, value in enumerate(gradients)]


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for kind in dict.fromkeys(row.model for row in rows):
        gradients = [row.gradient for row in rows if row.model == kind]
        first, last = ends(gradients)
        ratio = f"{first / last:.1e}" if last else "-"
        found.append((kind, str(len(gradients)), str(gradients.count(0.0)), f"{first:.1e}", f"{last:.1e}", ratio))
    return found


CLAIM = Claim(
    name="gradients",
    summary="norm of the loss's gradient at each input position, before training",
    row=Row,
    measure=measure,
    columns=("model", "positions", "where it is 0", "first tenth", "last tenth", "ratio"),
    lines=lines,
    panels=(Panel("position", "gradient", "model", "source position", "norm of the loss's gradient", log_y=True),),
    of_kinds=True,
)
