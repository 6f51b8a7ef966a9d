"""Trains a model on a task, starting from the weights of a checkpoint of this or another task."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ..tasks import GROUPS, TASKS, Task, task
from ..training.checkpoint import BEST
from ..training.finetuning import freeze
from ..training.log import Display
from ..training.models import SavedModel, build, load_model, options_of
from ..training.recipes import default_recipe, recipe_of
from ..training.settings import Settings, choose_device
from ..training.world import under_torchrun
from . import CommandError
from .evaluate import Evaluation, evaluate
from .train import add_settings, fresh_folder, holds_run, load_data, parse_options, settings_of, train

SUMMARY = "scores.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join((*TASKS, *GROUPS))
    parser.add_argument("task", help=f"what to train on, or a group of tasks to train on one by one: {names}")
    parser.add_argument("--from", dest="start", type=Path, metavar="CHECKPOINT", required=True, help="where to start")
    parser.add_argument("--freeze", type=int, default=0, metavar="N", help="the lowest N layers stay as they were")
    parser.add_argument(
        "--layer-rate", type=float, default=1.0, metavar="R", help="a layer learns R times as fast as the one above it"
    )
    parser.add_argument(
        "--scratch", action="store_true", help="with a group: also train each task from random weights, to compare"
    )
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    start = load_model(args.start, choose_device("cpu"))
    if args.task in GROUPS:
        return run_group(start, args)
    if args.scratch:
        raise CommandError(f"--scratch is for groups of tasks, {args.task} is one: undivided train {args.task}")
    chosen = task(args.task)
    out = fresh_folder(args.out, f"{chosen.name}-{start.kind}", args.overwrite)
    return train(chosen, tuned_settings(chosen, start, args), out, None, args.data, args.quiet, start)


def tuned_settings(chosen: Task, start: SavedModel, args: argparse.Namespace) -> Settings:
    """The recipe "finetune" of the task, else "quick", for a model like the one that is started from.

    Raises:
        ValueError: see `settings_from`, `build` and `freeze`: what cannot be is said before there are data.
    """
    recipe = recipe_of(chosen, args.recipe or default_recipe(chosen, args.device or "auto", finetuning=True))
    recipe.pop("model", None)
    changed = parse_options(args.set or [])
    others = {"start": str(args.start), "freeze": args.freeze, "layer_rate": args.layer_rate, "changed": list(changed)}
    settings = settings_of(chosen, args, recipe, start.kind, {**options_of(start.model), **changed}, **others)
    # The symbols do not matter here, but both sides may have to have as many.
    freeze(build(start.kind, chosen.shape, start.source, start.source, settings.model_options), settings.freeze)
    return settings


def run_group(start: SavedModel, args: argparse.Namespace) -> int:
    """Fine-tunes on each task of the group, scores all of them and shows the average."""
    if under_torchrun():
        raise CommandError(f"{args.task} is a group of tasks, torchrun trains one: {', '.join(GROUPS[args.task])}")
    out, settings = args.out or Path("runs") / args.task, {}
    for name in GROUPS[args.task]:
        settings[name] = {"fine-tuned": tuned_settings(task(name), start, args)}
        if args.scratch:
            settings[name]["from scratch"] = scratch_settings(task(name), settings[name]["fine-tuned"], args)
    places = {(name, way): out / name / way.replace(" ", "-") for name, ways in settings.items() for way in ways}
    check_group(out, places.values(), args.overwrite)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, ways in settings.items():
        chosen, found[name] = task(name), {}
        for way, setting in ways.items():
            place = places[name, way]
            code = train(chosen, setting, place, None, args.data, True, start if way == "fine-tuned" else None)
            if code:
                return code
            found[name][way] = scored(chosen, place, args).scores
        (out / SUMMARY).write_text(json.dumps(found, indent=2) + "\n")
    Console().print(group_table(args.task, found))
    print(f"scores: {out / SUMMARY}")
    return 0


def scratch_settings(chosen: Task, tuned: Settings, args: argparse.Namespace) -> Settings:
    """The task's own recipe, for the same model."""
    recipe = recipe_of(chosen, "quick")
    recipe.pop("model", None)
    return settings_of(chosen, args, recipe, tuned.model, dict(tuned.model_options))


def scored(chosen: Task, place: Path, args: argparse.Namespace) -> Evaluation:
    saved = load_model(place / BEST, choose_device(args.device or "auto"))
    data = load_data(chosen, args.data, Display("evaluate", chosen.metric, quiet=True))
    return evaluate(saved, data, quiet=True)


def check_group(out: Path, places: Iterable[Path], overwrite: bool) -> None:
    """Refuses a folder with a group's scores or with one of its runs, which an interrupted one leaves."""
    if overwrite:
        return
    if (out / SUMMARY).exists():
        raise CommandError(f"{out} holds scores; --overwrite replaces them")
    for place in places:
        if holds_run(place):
            raise CommandError(f"{place} holds a run; --overwrite replaces it")


def group_table(name: str, found: dict[str, dict[str, dict[str, float]]]) -> Table:
    """A row a task and one for the averages; the last column is the first published row of each task."""
    ways = list(next(iter(found.values())))
    drawn = Table(title=f"{name}, test", title_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("task")
    for column in (*ways, "published"):
        drawn.add_column(column, justify="right")
    rows = []
    for one, scores in found.items():
        metric, published = task(one).metric, task(one).published
        rows.append([scores[way][metric] for way in ways] + [published[0].scores[metric]])
        drawn.add_row(one, *(f"{value:.1f}" for value in rows[-1]))
    averages = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    drawn.add_row("average", *(f"{value:.2f}" for value in averages), style="bold green")
    return drawn
