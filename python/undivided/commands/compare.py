"""Trains several kinds of model on a task, with the same data, trainer and budget, and puts them side by side; or
measures one of the claims on it."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..tasks import PairData, Task, task
from ..training.checkpoint import BEST
from ..training.claims import gradients
from ..training.claims.claim import trial, update_seconds
from ..training.log import Display
from ..training.models import KINDS, load_model
from ..training.session import prepare
from ..training.settings import Settings
from . import CommandError
from .compare_claims import add_claim_arguments, run_claim
from .evaluate import evaluate
from .figures import CURE, drawable, panels
from .result_rows import write_rows
from .train import add_settings, holds_run, load_data, new_settings, remove_run
from .writable import check_writable


@dataclass(frozen=True)
class Row:
    """One model. `first` and `last`: mean norm of the loss's gradient at the first and last tenth of the positions of
    the longest batch, before training; `update_ms`: median time of an update; `score`: on the test part.
    """

    task: str
    model: str
    weights: int
    positions: int
    first: float
    last: float
    update_ms: float
    updates: int
    seconds: float
    metric: str
    score: float
    seed: int
    device: str
    threads: int
    version: str
    torch: str
    date: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="what to train on")
    parser.add_argument("--models", help="kinds of model, separated by commas (default: all that the recipe has)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows (default: compare.csv in --out)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the gradients (default: gradients.png in --out)")
    add_claim_arguments(parser)
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    chosen = task(args.task)
    if args.claim is not None:
        return run_claim(chosen, chosen_kinds(chosen, args.models) if args.models else None, args)
    if args.quick:
        raise CommandError("--quick is for --claim; models are compared for less time with --minutes or --steps")
    kinds = chosen_kinds(chosen, args.models)
    out = args.out or Path("runs") / f"compare-{chosen.name}"
    path, png = args.csv or out / "compare.csv", args.png or out / "gradients.png"
    settings = {kind: new_settings(chosen, argparse.Namespace(**{**vars(args), "model": kind})) for kind in kinds}
    for kind in kinds:
        if holds_run(out / kind) and not args.overwrite:
            raise CommandError(f"{out / kind} holds a run; --overwrite replaces it")
    old = old_rows(path, chosen, kinds, out, args.overwrite)
    data = load_data(chosen, args.data, Display("compare", chosen.metric, quiet=args.quiet))
    check_writable(path, png)
    # All are measured before the first is trained, so that what one of them cannot be made of ends it here.
    before = {kind: before_training(chosen, settings[kind], data) for kind in kinds}
    rows: list[Row] = []
    try:
        for kind in kinds:
            row = trained(chosen, settings[kind], data, out / kind, before[kind], args.quiet)
            if row is None:
                return 130
            rows.append(row)
    finally:  # what was trained is kept, whatever happens to the others
        if rows:
            Console().print(table(chosen, rows))
            begun = kinds[: len(rows) + 1]
            write_rows(path, [*(row for row in old if row["model"] not in begun), *map(asdict, rows)])
            print(f"rows: {path}")
    if drawable():
        norms = [row for kind in kinds for row in gradients.rows_of(kind, before[kind].norms)]
        print(f"gradients: {panels(png, gradients.CLAIM.panels, norms)}")
    else:
        print(CURE)
    return 0


def chosen_kinds(chosen: Task, asked: str | None) -> list[str]:
    """The kinds of model that were asked for, or all that the task's recipe has sizes for."""
    kinds = list(chosen.recipes["quick"]["model"]) if asked is None else asked.split(",")
    kinds = list(dict.fromkeys(kind.strip() for kind in kinds))
    for kind in kinds:
        if kind not in KINDS or chosen.shape not in KINDS[kind].models:
            fitting = ", ".join(name for name, row in KINDS.items() if chosen.shape in row.models)
            raise CommandError(f"--models {kind!r} cannot be trained on {chosen.name}; allowed: {fitting}")
    return kinds


def old_rows(path: Path, chosen: Task, kinds: Sequence[str], out: Path, overwrite: bool) -> list[dict[str, Any]]:
    """The rows of a file that is written anew: of kinds that are asked for now, or whose runs are still there.

    Raises:
        CommandError: there are other rows, which would be lost, and `overwrite` was not asked for.
    """
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    columns = {one.name for one in fields(Row)}
    ours = [row for row in rows if row.keys() == columns and row["task"] == chosen.name]
    found = [row for row in ours if row["model"] in kinds or holds_run(out / row["model"])]
    if len(found) < len(rows) and not overwrite:
        raise CommandError(f"{path} has rows of other runs than those in {out}; --overwrite replaces them")
    return found


@dataclass(frozen=True)
class Before:
    """What is measured before training: the gradient at every position, and the time of an update."""

    norms: list[float]
    update_ms: float


def before_training(chosen: Task, settings: Settings, data: PairData) -> Before:
    # It must not change the training, so it is measured on a trainer of its own.
    with trial(chosen, settings, data) as probe:
        return Before(gradients.gradients_of(probe), 1e3 * update_seconds(probe))


def trained(chosen: Task, settings: Settings, data: PairData, place: Path, before: Before, quiet: bool) -> Row | None:
    """One model's row; None where its training was interrupted."""
    trainer = prepare(chosen, settings, data, place)
    remove_run(place)
    result = trainer.run(Display(f"{chosen.name} {settings.model}", chosen.metric, quiet=quiet))
    if result.interrupted:
        print(f"interrupted at update {result.steps} of {settings.model}")
        return None
    scores = evaluate(load_model(place / BEST, settings.device), data, quiet=quiet).scores
    first, last = gradients.ends(before.norms)
    return Row(
        task=chosen.name,
        model=settings.model,
        weights=sum(weight.numel() for weight in trainer.model.parameters()),
        positions=len(before.norms),
        first=first,
        last=last,
        update_ms=before.update_ms,
        updates=result.steps,
        seconds=result.seconds,
        metric=chosen.metric,
        score=scores[chosen.metric],
        seed=settings.seed,
        device=settings.device,
        threads=torch.get_num_threads(),
        version=__version__,
        torch=torch.__version__,
        date=date.today().isoformat(),
    )


def table(chosen: Task, rows: Sequence[Row]) -> Table:
    """One line a model, in the order of training."""
    drawn = Table(title=title(chosen, rows), title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(COLUMNS):
        drawn.add_column(column, justify="left" if number == 0 else "right")
    for cells in lines(rows):
        drawn.add_row(*cells)
    return drawn


def title(chosen: Task, rows: Sequence[Row]) -> str:
    return f"{chosen.summary}; gradients at the first and last tenth of {rows[0].positions} positions, before training"


COLUMNS = ("model", "M weights", "first", "last", "ms/update", "updates", "score %")


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return [
        (
            row.model,
            f"{row.weights / 1e6:.2f}",
            f"{row.first:.1e}",
            f"{row.last:.1e}",
            f"{row.update_ms:.1f}",
            str(row.updates),
            f"{row.score:.2f} {row.metric}",
        )
        for row in rows
    ]
