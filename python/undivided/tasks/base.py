"""What a task is: data in, symbol sequences out, a score, and the figures that others published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .vocabulary import Vocabulary

Symbols = tuple[str, ...]
References = Mapping[str, Sequence[Symbols]]


@dataclass(frozen=True)
class PairData:
    """A task's data: pairs to learn from, and words with every accepted answer to be scored on.

    `split` names the split; `comparable` says whether published figures are about the same test set.
    """

    source: Vocabulary
    target: Vocabulary
    train: Sequence[tuple[Symbols, Symbols]]
    dev: References
    test: References
    split: str
    comparable: bool


@dataclass(frozen=True)
class PublishedRow:
    """A figure from elsewhere; None where the source does not give it. Percent."""

    system: str
    per: float | None
    wer: float | None
    source: str


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks.

    `load(data)` reads the data, `symbols(text)` cuts one input, `score(outputs, references)` gives the metrics, of
    which `metric` (lower is better) chooses the best checkpoint. `recipes` are what training starts from, by name
    ("quick" for minutes on a CPU, "full" for a GPU or an hour): settings of the trainer and, under "model", of each
    model's config.
    """

    name: str
    summary: str
    dataset: str
    load: Callable[[str | Path | None], PairData]
    symbols: Callable[[str], Symbols]
    score: Callable[[Mapping[str, Symbols], References], dict[str, float]]
    metric: str
    longest_output: int
    published: tuple[PublishedRow, ...]
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
