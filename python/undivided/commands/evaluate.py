"""Scores a checkpoint, beside the figures that others published."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..tasks import PairData, PublishedRow, Task
from ..training.inference import answer
from ..training.log import Display
from ..training.models import SavedModel, load_model
from ..training.settings import choose_device
from . import CommandError
from .result_rows import append_row, result_row, rows_so_far
from .train import load_data
from .writable import check_writable

OURS = "this checkpoint"
COUNTS = ("words", "labels")  # what a score holds besides percent


@dataclass(frozen=True)
class Evaluation:
    """Scores of one checkpoint with what is needed to read them."""

    scores: dict[str, float]
    count: int
    seconds: float
    beams: int
    notes: tuple[str, ...]
    mistakes: tuple[tuple[str, str, str], ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, nargs="+", help="a run's folder, or a .safetensors file that a run wrote"
    )
    parser.add_argument("--data", metavar="DIR", help="a folder with the data (default: the variable UNDIVIDED_DATA)")
    parser.add_argument("--split", choices=("test", "dev"), default="test", help="which examples (default: test)")
    parser.add_argument("--limit", type=int, help="only the first so many examples")
    parser.add_argument("--batch-size", type=int, default=512, help="examples a batch")
    parser.add_argument("--beams", type=int, help="hypotheses in the search for a sequence (default: the task's own)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--mistakes", type=int, default=0, metavar="N", help="also show the first N wrong answers")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="append the scores, with how they came about, as a row"
    )


def run(args: argparse.Namespace) -> int:
    for name, low in (("limit", 1), ("batch_size", 1), ("beams", 1), ("mistakes", 0)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise CommandError(f"--{name.replace('_', '-')} {value} must be at least {low}")
    if args.csv is not None:
        check_writable(args.csv)
        rows_so_far(args.csv)  # which refuses a file of another kind
    for path in args.checkpoint:
        report(path, args)
    return 0


def report(path: Path, args: argparse.Namespace) -> None:
    """Scores one checkpoint, and prints and appends what was asked for."""
    saved = load_model(path, choose_device(args.device))
    display = Display("evaluate", saved.task.metric, quiet=args.json)
    data = load_data(saved.task, args.data, display)
    found = evaluate(saved, data, args.split, args.limit, args.batch_size, args.json, args.beams)
    if args.json:
        print(json.dumps({**found.scores, "seconds": round(found.seconds, 2), "notes": found.notes, **facts(saved)}))
    else:
        show(saved, found, args.split == "test" and data.comparable, args.mistakes)
    if args.csv is not None:  # last, so that a file that cannot be written does not take the score with it
        append_row(args.csv, result_row(saved, found.scores, found.beams, data.split, args.split, args.limit))


def show(saved: SavedModel, found: Evaluation, comparable: bool, mistakes: int) -> None:
    """Prints the scores, among the published ones where they are `comparable`, and the first few mistakes."""
    console = Console()
    if comparable:
        console.print(table(saved.task, [(OURS, found.scores)]))
    else:
        console.print(score_line(found.scores), highlight=False)
    search = f", {found.beams} hypotheses each" if found.beams > 1 else ""
    console.print(f"{found.count} {saved.task.unit} in {found.seconds:.1f} s{search}", highlight=False)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False)
    for text, given, wanted in found.mistakes[:mistakes]:
        console.print(f"  {text:<16} {given:<32} wanted {wanted}", highlight=False, markup=False)


def evaluate(
    saved: SavedModel,
    data: PairData,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 512,
    quiet: bool = False,
    beams: int | None = None,
) -> Evaluation:
    """Answers every example of a split and scores the answers. `beams` is that of the task where it is None."""
    task, examples = saved.task, (data.test if split == "test" else data.dev)[:limit]
    beams = task.beams if beams is None else beams
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bar = progress.add_task(f"{split} {task.unit}", total=len(examples))
        answers = answer(
            saved.model,
            task,
            saved.source,
            saved.target,
            [one.source for one in examples],
            batch_size,
            lambda count: progress.advance(bar, count),
            beams,
        )
    seconds = time.monotonic() - started
    wrong = tuple(
        (one.text, " ".join(given), " / ".join(" ".join(accepted) for accepted in one.references))
        for one, given in zip(examples, answers, strict=True)
        if given not in one.references
    )
    scores = task.score(answers, [one.references for one in examples])
    return Evaluation(scores, len(examples), seconds, beams, notes(saved, data, split, limit), wrong)


def notes(saved: SavedModel, data: PairData, split: str, limit: int | None) -> tuple[str, ...]:
    """What a reader must know before comparing the score with another."""
    found, unit = [], saved.task.unit
    if not data.comparable and saved.task.published:
        found.append(f"the {unit} are of the split {data.split}: not comparable with the published table")
    if data.comparable and split == "test" and saved.task.caveat:
        found.append(saved.task.caveat)
    if saved.about.get("split") != data.split:
        found.append(
            f"the model was trained on the split {saved.about.get('split')}, the {unit} are of {data.split}: "
            "it may have learnt from some of them"
        )
    if limit is not None:
        found.append(f"only the first {limit} {unit} were scored")
    if split == "dev":
        found.append(f"development {unit} chose the checkpoint, so this score flatters it")
    return tuple(found)


def facts(saved: SavedModel) -> dict[str, Any]:
    """What a report says about the model itself."""
    weights = sum(weight.numel() for weight in saved.model.parameters())
    about = {key: saved.about.get(key) for key in ("step", "seconds", "split")}
    return {"task": saved.task.name, "model": saved.kind, "weights": weights, "trained": about}


def score_line(scores: dict[str, float]) -> str:
    return ", ".join(f"{key.upper()} {value:.2f} %" for key, value in scores.items() if key not in COUNTS)


def table(task: Task, ours: list[tuple[str, dict[str, float]]]) -> Table:
    """Our rows among the published ones, best first."""
    rows = [(row, False) for row in task.published]
    rows += [(PublishedRow(name, scores, "measured now"), True) for name, scores in ours]
    sign = -1.0 if task.higher_is_better else 1.0
    rows.sort(key=lambda pair: sign * pair[0].scores.get(task.metric, sign * float("inf")))
    drawn = Table(title=task.summary, title_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("system")
    for column in task.columns:
        drawn.add_column(f"{column if len(column) > 3 else column.upper()} %", justify="right")
    drawn.add_column("source")
    for row, is_ours in rows:
        figures = ("-" if column not in row.scores else f"{row.scores[column]:.2f}" for column in task.columns)
        drawn.add_row(row.system, *figures, row.source, style="bold green" if is_ours else None)
    return drawn
