"""How each kind of positions goes on where inputs are longer than any that training had."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...nn.positions import POSITIONS
from ...tasks import N_TO_1, Example, PairData, Task
from ..checkpoint import BEST
from ..inference import answer
from ..log import Display
from ..models import load_model
from ..recipes import settings_for
from .claim import Claim, Panel, Setup, trial

BUCKETS = 8  # lengths up to the longest that is trained on; as many again beyond it
EACH = 200  # test examples a length
FEWEST = 20  # test examples without which a length says nothing


@dataclass(frozen=True)
class Row:
    """Test examples of up to `length` symbols, longer than those of the row before. `seen`: training had such lengths.

    `score` is of the task's first column.
    """

    positions: str
    length: int
    seen: bool
    examples: int
    metric: str
    score: float
    updates: int


def suits(task: Task) -> str | None:
    if task.shape == N_TO_1 and task.unit == "images":
        return f"all inputs of {task.name} have the same length"
    if task.unit == "recordings and strings":
        return (
            f"the score of {task.name} needs single digits and strings, inputs of one length may be of one kind alone"
        )
    return None


def measure(setup: Setup) -> list[Row]:
    """Trains on the shorter half of the inputs, the budget divided evenly, and tests on all lengths."""
    lengths = sorted(len(source) for source, _ in setup.data.train)
    limit = lengths[len(lengths) // 2]
    short = only_short(setup.data, limit)
    groups = by_length(setup.data.test, limit, *((1, 5) if setup.quick else (FEWEST, EACH)))
    budget: dict[str, Any] = {"minutes": setup.minutes / len(POSITIONS)}
    if setup.quick:
        budget = {"steps": 2, "evaluations": 1}
    rows = []
    for kind in POSITIONS:
        setup.say(f"positions {kind}, trained on up to {limit} symbols")
        given = {"dev_words": 200, "seed": setup.seed, **budget}
        settings = settings_for(setup.task, "transformer", "quick", setup.device, options={"positions": kind}, **given)
        with trial(setup.task, settings, short) as trainer:
            result = trainer.run(Display("", setup.task.metric, quiet=True))
            if result.interrupted:
                raise KeyboardInterrupt
            model = load_model(trainer.out / BEST, setup.device).model
        for length, examples in groups.items():
            inputs = [one.source for one in examples]
            answers = answer(model, setup.task, short.source, short.target, inputs)
            metric = setup.task.columns[0]
            score = setup.task.score(answers, [one.references for one in examples])[metric]
            rows.append(Row(kind, length, length <= limit, len(examples), metric, round(score, 2), result.steps))
    return rows


def only_short(data: PairData, limit: int) -> PairData:
    """What has at most `limit` symbols, to train on and to choose the checkpoint by."""
    train = [pair for pair in data.train if len(pair[0]) <= limit]
    return dataclasses.replace(data, train=train, dev=[one for one in data.dev if len(one.source) <= limit])


def by_length(examples: Sequence[Example], limit: int, fewest: int, most: int) -> dict[int, list[Example]]:
    """The first `most` examples of each range of lengths, up to twice the limit; a range has the name of its end."""
    width = max(1, limit // BUCKETS)
    groups: dict[int, list[Example]] = {}
    for one in examples:
        # Counted from the limit, so that no range has lengths on both sides of it.
        end = limit - (limit - len(one.source)) // width * width
        group = groups.setdefault(end, [])
        if len(group) < most and end <= 2 * limit:
            group.append(one)
    return {end: groups[end] for end in sorted(groups) if len(groups[end]) >= fewest}


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Means over the lengths that training had and over the others, every length with the same weight."""
    found = []
    for kind in dict.fromkeys(row.positions for row in rows):
        own = [row for row in rows if row.positions == kind]
        cells = []
        for seen in (True, False):
            scores = [row.score for row in own if row.seen is seen]
            cells.append(f"{sum(scores) / len(scores):.1f}" if scores else "-")
        farthest = own[-1]
        cells.append(f"{farthest.score:.1f} at {farthest.length}")
        found.append((kind, own[0].metric, *cells, str(own[0].updates)))
    return found


CLAIM = Claim(
    name="positions",
    summary="kinds of positions on lengths that training had and on longer ones",
    row=Row,
    measure=measure,
    columns=("positions", "metric", "lengths seen", "longer", "the longest", "updates"),
    lines=lines,
    panels=(Panel("length", "score", "positions", "symbols of the input", "test score %"),),
    suits=suits,
)
