"""Trains several kinds of model on a task, with the same data, trainer and budget, and puts them side by side; or
measures one of the claims on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

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
from .compare_claims import add_claim_arguments, run_claim, write_rows
from .evaluate import evaluate
from .figures import CURE, drawable, panels
from .train import add_settings, fresh_folder, load_data, new_settings


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
    data = load_data(chosen, args.data, Display("compare", chosen.metric, quiet=args.quiet))
    rows, norms = [], []
    for kind in kinds:
        place = fresh_folder(out / kind, kind, args.overwrite)
        settings = new_settings(chosen, argparse.Namespace(**{**vars(args), "model": kind}))
        found = measured(chosen, settings, data, place, args.quiet)
        if found is None:
            return 130
        rows.append(found[0])
        norms += gradients.rows_of(kind, found[1])
    write_rows(args.csv or out / "compare.csv", [asdict(row) for row in rows])
    Console().print(table(chosen, rows))
    print(f"rows: {args.csv or out / 'compare.csv'}")
    if drawable():
        print(f"gradients: {panels(args.png or out / 'gradients.png', gradients.CLAIM.panels, norms)}")
    else:
        print(CURE)
    return 0


def chosen_kinds(chosen: Task, asked: str | None) -> list[str]:
    """The kinds of model that were asked for, or all that the task's recipe has sizes for."""
    kinds = list(chosen.recipes["quick"]["model"]) if asked is None else asked.split(",")
    for kind in kinds:
        if kind not in KINDS or chosen.shape not in KINDS[kind].models:
            fitting = ", ".join(name for name, row in KINDS.items() if chosen.shape in row.models)
            raise CommandError(f"--models {kind!r} cannot be trained on {chosen.name}; allowed: {fitting}")
    return kinds


def measured(
    chosen: Task, settings: Settings, data: PairData, place: Path, quiet: bool
) -> tuple[Row, list[float]] | None:
    """One model's row, and the gradient at every position; None where its training was interrupted."""
    # What is measured before training must not change it, so it is measured on a trainer of its own.
    with trial(chosen, settings, data) as probe:
        norms, update_ms = gradients.gradients_of(probe), 1e3 * update_seconds(probe)
    trainer = prepare(chosen, settings, data, place)
    result = trainer.run(Display(f"{chosen.name} {settings.model}", chosen.metric, quiet=quiet))
    if result.interrupted:
        print(f"interrupted at update {result.steps} of {settings.model}")
        return None
    scores = evaluate(load_model(place / BEST, settings.device), data, quiet=quiet).scores
    first, last = gradients.ends(norms)
    row = Row(
        task=chosen.name,
        model=settings.model,
        weights=sum(weight.numel() for weight in trainer.model.parameters()),
        positions=len(norms),
        first=first,
        last=last,
        update_ms=update_ms,
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
    return row, norms


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
