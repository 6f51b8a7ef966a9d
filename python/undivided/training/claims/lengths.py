"""How score, time of an update and time to a score go with the length of the input, at the same number of weights.

Images are read pixel by pixel at several sizes of the same image; texts are cut to their first words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch

from ...tasks import N_TO_1, Example, PairData, Task
from ..checkpoint import BEST, LOG
from ..inference import answer
from ..log import Display, read_log
from ..models import build, load_model
from ..recipes import settings_for
from ..settings import Settings
from .claim import TIMED_UPDATES, Claim, Panel, Setup, trial, update_seconds, weights_of

Symbols = tuple[str, ...]

REACHED = 60.0  # the accuracy on development examples that the time to a score is taken at
EVALUATIONS = 10
DEV = 100
TESTED = 500
SHORTEST = 16  # symbols


@dataclass(frozen=True)
class Row:
    """One model trained on inputs of one length. `seconds_to_reach` is None where it did not get to REACHED %."""

    length: int
    model: str
    weights: int
    updates: int
    seconds: float
    update_ms: float
    accuracy: float
    seconds_to_reach: float | None


def suits(task: Task) -> str | None:
    return None if task.shape == N_TO_1 else f"it needs a task from N to 1, {task.name} is from {task.shape}"


def measure(setup: Setup) -> list[Row]:
    """The budget is divided evenly among lengths and models."""
    sizes = {kind: {} if kind == "transformer" else as_large(setup, kind) for kind in setup.kinds}
    found = shortened(setup)
    minutes = setup.minutes / (len(found) * len(sizes))
    rows = []
    for length, data in found.items():
        for kind in sizes:
            setup.say(f"{kind}, {length} symbols")
            budget: dict[str, Any] = {"steps": 2, "evaluations": 1} if setup.quick else {"minutes": minutes}
            given = {"evaluations": EVALUATIONS, "dev_words": DEV, **budget}
            settings = settings_for(
                setup.task, kind, "quick", setup.device, options=sizes[kind], seed=setup.seed, **given
            )
            rows.append(trained(setup, settings, data, length))
    return rows


def trained(setup: Setup, settings: Settings, data: PairData, length: int) -> Row:
    # What is timed before training must not change it, so it is timed on a trainer of its own.
    with trial(setup.task, settings, data) as probe:
        update = update_seconds(probe, 1 if setup.quick else TIMED_UPDATES)
    with trial(setup.task, settings, data) as trainer:
        result = trainer.run(Display("", setup.task.metric, quiet=True))
        log, saved = read_log(trainer.out / LOG), load_model(trainer.out / BEST, settings.device)
        weights = weights_of(trainer)
    if result.interrupted:
        raise KeyboardInterrupt
    reached = [one["seconds"] for one in log if one["kind"] == "dev" and one[setup.task.metric] >= REACHED]
    examples = data.test[:TESTED]
    answers = answer(saved.model, setup.task, data.source, data.target, [one.source for one in examples])
    return Row(
        length=length,
        model=settings.model,
        weights=weights,
        updates=result.steps,
        seconds=round(result.seconds, 2),
        update_ms=round(1e3 * update, 3),
        accuracy=round(setup.task.score(answers, [one.references for one in examples])[setup.task.metric], 2),
        seconds_to_reach=reached[0] if reached else None,
    )


def as_large(setup: Setup, kind: str) -> dict[str, int]:
    """The width at which this kind has the number of weights that is nearest to the transformer's."""
    recipe = setup.task.recipes["quick"]["model"]

    def weights(name: str, width: int | None = None) -> int:
        options = recipe[name] if width is None else {**recipe[name], "d_model": width}
        model = build(name, setup.task.shape, setup.data.source, setup.data.target, options)
        return sum(weight.numel() for weight in model.parameters())

    wanted = weights("transformer")
    low, high = 2, 512  # half widths: a model that reads both ways shares an even one
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if weights(kind, 2 * middle) < wanted else (low, middle)
    return {"d_model": min((2 * low - 2, 2 * low), key=lambda width: abs(weights(kind, width) - wanted))}


def shortened(setup: Setup) -> dict[int, PairData]:
    """The data at several lengths of its inputs, the shortest first."""
    longest = max(len(source) for source, _ in setup.data.train)
    if setup.task.unit == "images":
        side = isqrt(longest)
        ways: dict[int, Callable[[Symbols], Symbols]] = {}
        for small in range(1, side + 1):
            if side % small == 0 and small * small >= SHORTEST:
                ways[small * small] = lambda symbols, factor=side // small: pooled(symbols, factor)  # type: ignore[misc]
    else:
        lengths = [SHORTEST * 4**power for power in range(8) if SHORTEST * 4**power < longest]
        ways = {length: lambda symbols, length=length: symbols[:length] for length in [*lengths, longest]}  # type: ignore[misc]
    if setup.quick:
        ways = dict(list(ways.items())[:2])
    return {length: changed(setup.data, way) for length, way in ways.items()}


def changed(data: PairData, way: Callable[[Symbols], Symbols]) -> PairData:
    def examples(part: Sequence[Example]) -> list[Example]:
        return [dataclasses.replace(one, source=way(one.source)) for one in part]

    train = [(way(source), target) for source, target in data.train]
    return dataclasses.replace(data, train=train, dev=examples(data.dev), test=examples(data.test))


def pooled(symbols: Symbols, factor: int) -> Symbols:
    """A square image of levels of brightness at 1/factor of its side: the nearest level of the mean of each block."""
    side = isqrt(len(symbols))
    image = torch.tensor([int(one) for one in symbols], dtype=torch.float64).view(side // factor, factor, -1, factor)
    return tuple(str(level) for level in image.mean((1, 3)).round().int().flatten().tolist())


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for row in rows:
        reached = "-" if row.seconds_to_reach is None else f"{row.seconds_to_reach:.1f}"
        figures = (f"{row.weights / 1e3:.0f}", f"{row.update_ms:.1f}", str(row.updates), f"{row.accuracy:.1f}", reached)
        found.append((str(row.length), row.model, *figures))
    return found


CLAIM = Claim(
    name="lengths",
    summary=f"score, time of an update and time to {REACHED:.0f} % by length of input, with as many weights",
    row=Row,
    measure=measure,
    columns=("symbols", "model", "k weights", "ms/update", "updates", "test %", f"s to {REACHED:.0f} %"),
    lines=lines,
    panels=(
        Panel("length", "accuracy", "model", "symbols", "test accuracy % in equal minutes", log_x=True),
        Panel("length", "update_ms", "model", "symbols", "ms an update", log_x=True, log_y=True),
        Panel("length", "seconds_to_reach", "model", "symbols", f"seconds to {REACHED:.0f} %", log_x=True, log_y=True),
    ),
    suits=suits,
    of_kinds=True,
)
