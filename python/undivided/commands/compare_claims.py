"""Measures a claim on a task: rows, a table and a figure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..tasks import Task
from ..training.claims import CLAIMS, Claim, Setup
from ..training.claims import claim as claim_of
from ..training.log import Display
from ..training.settings import choose_device
from . import CommandError
from .figures import CURE, drawable, panels
from .result_rows import write_rows
from .train import load_data
from .writable import check_writable

MINUTES = 5.0
# What a claim takes of the options of `compare`; the others belong to the training of one model.
TAKEN = {"minutes", "seed", "models", "device", "data", "out", "overwrite", "csv", "png", "quiet", "quick"}
TAKEN |= {"task", "claim", "command", "version", "debug"}


def add_claim_arguments(parser: argparse.ArgumentParser) -> None:
    names = "; ".join(f"{name}: {one.summary}" for name, one in CLAIMS.items()).replace("%", "%%")
    parser.add_argument("--claim", metavar="NAME", help=f"measure a claim instead, in --minutes altogether; {names}")
    parser.add_argument("--quick", action="store_true", help="with --claim: the smallest measurement, in seconds")


def run_claim(chosen: Task, kinds: list[str] | None, args: argparse.Namespace) -> int:
    """Measures `args.claim` on a task, for these kinds of model where it is about kinds."""
    one = claim_of(args.claim)
    if (reason := one.suits(chosen)) is not None:
        raise CommandError(f"--claim {one.name} cannot be measured on {chosen.name}: {reason}")
    if kinds and not one.of_kinds:
        raise CommandError(f"--claim {one.name} is about the transformer alone: leave out --models")
    refuse_others(args)
    out = args.out or Path("runs") / f"compare-{chosen.name}"
    path, png = args.csv or out / f"{one.name}.csv", args.png or out / f"{one.name}.png"
    if path.exists() and not args.overwrite:
        raise CommandError(f"{path} is there already; --overwrite replaces it")
    display = Display(f"{chosen.name} {one.name}", chosen.metric, quiet=args.quiet)
    setup = Setup(
        task=chosen,
        data=load_data(chosen, args.data, display),
        minutes=MINUTES if args.minutes is None else args.minutes,
        seed=args.seed or 0,
        device=choose_device(args.device or "auto"),
        quick=args.quick,
        models=tuple(kinds or ()),
        say=display.say,
    )
    if setup.minutes <= 0:
        raise CommandError(f"--minutes {setup.minutes} must be positive")
    check_writable(path, png)
    rows = one.measure(setup)
    Console().print(claim_table(one, chosen, rows))
    write_rows(path, [row_of(setup, row) for row in rows])
    print(f"rows: {path}")
    print(f"figure: {panels(png, one.panels, one.drawn(rows))}" if drawable() else CURE)
    return 0


def refuse_others(args: argparse.Namespace) -> None:
    """An option that a claim does not take must not be passed over in silence."""
    for name, value in vars(args).items():
        if name not in TAKEN and value is not None and value is not False:
            raise CommandError(f"--{name.replace('_', '-')} cannot be used with --claim, which trains by the recipe")


def row_of(setup: Setup, row: Any) -> dict[str, Any]:
    """A line of the file: what was measured, and where."""
    return {
        "task": setup.task.name,
        **asdict(row),
        "minutes": setup.minutes,
        "seed": setup.seed,
        "device": setup.device,
        "threads": torch.get_num_threads(),
        "version": __version__,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def claim_table(one: Claim, chosen: Task, rows: Sequence[Any]) -> Table:
    drawn = Table(title=f"{chosen.name}: {one.summary}", title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(one.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right")
    for cells in one.lines(rows):
        drawn.add_row(*cells)
    return drawn
