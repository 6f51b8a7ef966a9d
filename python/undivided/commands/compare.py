"""Trains several kinds of model on a task, with the same data, trainer and budget, and puts them side by side."""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
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
from ..training.gradients import input_gradients
from ..training.log import Display
from ..training.models import KINDS, load_model
from ..training.session import prepare
from ..training.settings import Settings
from ..training.trainer import Trainer
from . import CommandError
from .evaluate import evaluate
from .figures import CURE, drawable, new_figure, save
from .train import add_settings, fresh_folder, load_data, new_settings

TIMED_UPDATES = 10
END = 0.1  # the part of the positions that counts as the first or the last ones


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
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    chosen = task(args.task)
    kinds = chosen_kinds(chosen, args.models)
    out = args.out or Path("runs") / f"compare-{chosen.name}"
    data = load_data(chosen, args.data, Display("compare", chosen.metric, quiet=args.quiet))
    rows, gradients = [], {}
    for kind in kinds:
        place = fresh_folder(out / kind, kind, args.overwrite)
        settings = new_settings(chosen, argparse.Namespace(**{**vars(args), "model": kind}))
        row, gradients[kind] = measured(chosen, settings, data, place, args.quiet)
        if row is None:
            return 130
        rows.append(row)
    write(args.csv or out / "compare.csv", rows)
    Console().print(table(chosen, rows))
    print(f"rows: {args.csv or out / 'compare.csv'}")
    if drawable():
        print(f"gradients: {draw(args.png or out / 'gradients.png', gradients)}")
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
) -> tuple[Row | None, list[float]]:
    """One model's row, None where its training was interrupted, and the gradient at every position."""
    # What is measured before training must not change it, so it is measured on a trainer of its own.
    with tempfile.TemporaryDirectory() as folder:
        probe = prepare(chosen, settings, data, Path(folder))
        gradients, update_ms = gradients_of(probe), time_updates(probe)
        probe.log.close()
    trainer = prepare(chosen, settings, data, place)
    result = trainer.run(Display(f"{chosen.name} {settings.model}", chosen.metric, quiet=quiet))
    if result.interrupted:
        print(f"interrupted at update {result.steps} of {settings.model}")
        return None, gradients
    scores = evaluate(load_model(place / BEST, settings.device), data, quiet=quiet).scores
    tenth = max(1, int(END * len(gradients)))
    row = Row(
        task=chosen.name,
        model=settings.model,
        weights=sum(weight.numel() for weight in trainer.model.parameters()),
        positions=len(gradients),
        first=statistics.fmean(gradients[:tenth]),
        last=statistics.fmean(gradients[-tenth:]),
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
    return row, gradients


def gradients_of(probe: Trainer) -> list[float]:
    """The gradient at every position of the longest inputs, before the first update and without dropout."""
    examples = probe.batches.examples
    longest = examples.src_lengths.argsort(descending=True, stable=True)[: probe.settings.batch_size]
    probe.model.eval()
    with torch.backends.cudnn.flags(enabled=False):  # whose recurrent cells have no backward without dropout
        return input_gradients(probe.model, probe.shape, examples.batch(longest)).tolist()


def time_updates(probe: Trainer) -> float:
    """Median milliseconds of an update over the first batches, after two that are not counted."""
    seconds = []
    for _ in range(TIMED_UPDATES + 2):
        started = time.perf_counter()
        probe.update(probe.settings.lr)
        if probe.settings.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[2:])


def write(path: Path, rows: Sequence[Row]) -> None:
    """The rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def table(chosen: Task, rows: Sequence[Row]) -> Table:
    """One line a model, in the order of training."""
    title = f"{chosen.summary}; gradients at the first and last tenth of {rows[0].positions} positions, before training"
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("model")
    for column in ("M weights", "first", "last", "ms/update", "updates", f"{chosen.metric} %"):
        drawn.add_column(column, justify="right")
    for row in rows:
        drawn.add_row(
            row.model,
            f"{row.weights / 1e6:.2f}",
            f"{row.first:.1e}",
            f"{row.last:.1e}",
            f"{row.update_ms:.1f}",
            str(row.updates),
            f"{row.score:.2f}",
        )
    return drawn


def draw(path: Path, gradients: Mapping[str, Sequence[float]]) -> Path:
    """The gradient at each position, before training, on a logarithmic axis: what is 0 is not drawn."""
    figure = new_figure(7.0, 4.0)
    axes = figure.add_subplot(1, 1, 1)
    for kind, values in gradients.items():
        axes.plot([value if value > 0 else float("nan") for value in values], label=kind, linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("source position")
    axes.set_ylabel("norm of the loss's gradient, before training")
    axes.legend()
    return save(figure, path)
