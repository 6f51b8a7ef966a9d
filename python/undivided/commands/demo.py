"""The whole package in a few minutes: what runs here, is it right, and does it learn."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from rich.console import Console

from ..tasks import Task, task
from ..training.checkpoint import BEST, LOG
from ..training.log import Display, read_log
from ..training.models import load_model
from ..training.settings import choose_device
from . import evaluate, generate, info, train
from .figures import CURE, drawable, learning_curve

WORDS = ["transformer", "attention", "undivided", "kernel"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=4.0, help="wall-clock budget of the training (default: 4)")
    parser.add_argument("--data", metavar="DIR", help="a folder with the data (default: the variable UNDIVIDED_DATA)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where it all goes (default: runs/demo)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--skip-verify", action="store_true", help="leave the check of the kernels out")


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    console = Console(markup=False)
    chosen = task("g2p")
    heading(console, "this machine")
    for name, value in info.lines():
        console.print(f"{name:<12} {value}", highlight=False)
    failed = 0 if args.skip_verify else verify(console)
    heading(console, f"training {chosen.name} for {args.minutes:g} minutes: {chosen.summary}")
    code = train_for(args)
    if code:
        return code
    heading(console, "its score")
    score(console, chosen, args)
    best = generate.shipped_checkpoint(chosen.name) or args.out / BEST
    heading(console, f"pronunciations by {best}")
    generate.generate(load_model(best, choose_device(args.device)), WORDS, args.out / "attention.png")
    if drawable():
        curve = learning_curve(args.out / "learning_curve.png", args.out / LOG, chosen.metric)
        console.print(f"learning curve: {curve}", highlight=False)
    else:
        console.print(CURE, highlight=False)
    console.print(f"done in {(time.monotonic() - started) / 60:.1f} minutes", highlight=False)
    return failed


def heading(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold", highlight=False)


def verify(console: Console) -> int:
    """Runs `undivided verify --quick`; its exit code."""
    heading(console, "the kernels against the float64 reference")
    module = importlib.import_module("undivided.commands.verify")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(["--quick"])))


def train_for(args: argparse.Namespace) -> int:
    """Runs `undivided train g2p`; its exit code."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    words = ["g2p", "--minutes", str(args.minutes), "--out", str(args.out), "--overwrite", "--device", args.device]
    if args.data is not None:
        words += ["--data", args.data]
    return train.run(parser.parse_args(words))


def score(console: Console, chosen: Task, args: argparse.Namespace) -> None:
    """The trained model and the one in the package, on all test words, among the published figures."""
    data = train.load_data(chosen, args.data, Display("evaluate", chosen.metric, quiet=True))
    paths = {f"trained here, {args.minutes:g} minutes": args.out / BEST}
    shipped = generate.shipped_checkpoint(chosen.name)
    if shipped is not None:
        paths["trained to the end, comes with the package"] = shipped
    rows, notes = [], {}
    for name, path in paths.items():
        found = evaluate.evaluate(load_model(path, choose_device(args.device)), data)
        rows.append((name, found.scores))
        notes.update(dict.fromkeys(f"{name}: {note}" for note in found.notes))
    if data.comparable:
        console.print(evaluate.table(chosen, rows))
    else:
        for name, scores in rows:
            console.print(f"{name}: {evaluate.score_line(scores)}", highlight=False)
    for note in notes:
        console.print(f"note: {note}", highlight=False)
    last = read_log(args.out / LOG)[-1]
    console.print(f"{last['step']} updates in {last['seconds']:.0f} s", highlight=False)
