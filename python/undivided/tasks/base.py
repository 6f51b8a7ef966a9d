"""What a task is: data in, symbol sequences out, a score, and the figures that others published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .vocabulary import Vocabulary

Symbols = tuple[str, ...]
Scores = dict[str, float]

# The shapes of tasks: a sequence of another length, a label for every symbol, one label for all of them; a label for
# every symbol that is found from it and those before it alone.
N_TO_M, N_TO_N, N_TO_1 = "N-to-M", "N-to-N", "N-to-1"
LEFT_TO_RIGHT = "left-to-right"


@dataclass(frozen=True)
class Example:
    """One input to be scored on, with every accepted answer. `text` is what a reader is shown of it."""

    text: str
    source: Symbols
    references: tuple[Symbols, ...]


@dataclass(frozen=True)
class PairData:
    """A task's data: pairs to learn from, and examples to be scored on.

    A target has one label for every source symbol in a task from N to N, and one label in a task from N to 1.
    `split` names the split; `comparable` says whether published figures are about the same test set. Where `renewed` is
    given, each epoch has other pairs: `renewed(epoch)`, from 0 on, and `train` are those of epoch 0.
    """

    source: Vocabulary
    target: Vocabulary
    train: Sequence[tuple[Symbols, Symbols]]
    dev: Sequence[Example]
    test: Sequence[Example]
    split: str
    comparable: bool
    renewed: Callable[[int], Sequence[tuple[Symbols, Symbols]]] | None = None


@dataclass(frozen=True)
class PublishedRow:
    """Figures from elsewhere, in percent, under the names that the task's `score` gives them."""

    system: str
    scores: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks.

    `load(data)` reads the data, `symbols(text)` cuts one input, `score(outputs, references)` gives the metrics of
    outputs in the order of their references: those named in `columns` are percent, the others are counts. `metric`
    chooses the best checkpoint, the lowest unless `higher_is_better`. An output has at most `longest_output` numbers
    and is searched for with `beams` hypotheses when a checkpoint is scored or used, with one during training. `unit` is
    what an example is called; `caveat` is what a reader must know when the published rows stand beside ours. `recipes`
    are what training starts from, by name ("quick" for minutes on a CPU, "full" for a GPU or an hour): settings of the
    trainer and, under "model", of each model's config.
    """

    name: str
    summary: str
    dataset: str
    load: Callable[[str | Path | None], PairData]
    symbols: Callable[[str], Symbols]
    score: Callable[[Sequence[Symbols], Sequence[Sequence[Symbols]]], Scores]
    metric: str
    columns: tuple[str, ...]
    published: tuple[PublishedRow, ...]
    shape: str = N_TO_M
    longest_output: int = 1
    beams: int = 1
    higher_is_better: bool = False
    unit: str = "words"
    caveat: str = ""
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def better(self, a: Mapping[str, float], b: Mapping[str, float]) -> bool:
        """Whether scores `a` are better than `b`."""
        return a[self.metric] > b[self.metric] if self.higher_is_better else a[self.metric] < b[self.metric]
