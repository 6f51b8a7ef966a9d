"""Trains a model on a task."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from ..environment import torchrun_restarts
from ..tasks import TASKS, Task, task
from ..training.checkpoint import BEST, LAST, SHARDS, load_training
from ..training.log import Display
from ..training.models import KINDS, SavedModel
from ..training.parallel import PARALLEL
from ..training.recipes import default_recipe, recipe_of, settings_from
from ..training.schedule import SCHEDULES
from ..training.session import prepare
from ..training.settings import BATCHES, Settings, choose_device
from ..training.trainer import Result
from ..training.world import join, under_torchrun
from . import CommandError

# Options that are settings of the same name: (name, type, help).
NUMBERS: tuple[tuple[str, type, str], ...] = (
    ("batches", str, f"{' or '.join(BATCHES)}: with padding, or all rows end to end"),
    ("batch_size", int, "pairs a batch"),
    ("batch_tokens", int, "symbols a batch, source, target and padding together, instead of --batch-size"),
    ("accumulate", int, "batches an update"),
    ("lr", float, "largest learning rate"),
    ("lr_decay", str, f"how the learning rate falls: {' or '.join(SCHEDULES)}"),
    ("warmup", float, "part of the budget in which the learning rate rises"),
    ("floor", float, "the learning rate at the end, as a part of the largest"),
    ("weight_decay", float, "AdamW's decay of the matrices"),
    ("label_smoothing", float, "probability mass spread over all symbols"),
    ("clip", float, "largest norm of the gradient, 0 for none"),
    ("ema", float, "decay of averaged weights, which then are scored and kept"),
    ("seed", int, "seed of the weights, the order and dropout"),
    ("evaluations", int, "how many development scores over the budget"),
    ("dev_words", int, "development examples a score, 0 for all"),
    ("patience", int, "stop after so many development scores in a row without a better one"),
    ("log_every", int, "updates a line of the log"),
    ("checkpoint_seconds", float, "seconds between two checkpoints"),
    ("checkpoint_steps", int, "updates between two checkpoints"),
    ("parallel", str, f"{' or '.join(PARALLEL)}, for processes that torchrun starts: all weights on each, or a part"),
)
FROM_RESUME = ("model", "steps", "minutes", "set", "device", "dtype", *(name for name, _, _ in NUMBERS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help=f"what to train on: {', '.join(TASKS)}")
    parser.add_argument("--model", help=f"the kind of model (default: transformer): {', '.join(KINDS)}")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, or with the newest one")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options of everything that trains."""
    parser.add_argument("--recipe", help="quick or full (default: full on a GPU, quick on a CPU)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="wall-clock budget; the schedule follows it")
    budget.add_argument("--steps", type=int, help="budget in updates; such a run is exactly reproducible")
    parser.add_argument("--data", metavar="DIR", help="a folder with the data (default: the variable UNDIVIDED_DATA)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the run goes (default: the next free runs/...)")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that --out already holds")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a field of the model's config; repeatable")
    parser.add_argument("--device", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--dtype", help="auto (default: bfloat16 on a GPU, float32 on a CPU), float32 or bfloat16")
    for name, kind, text in NUMBERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--tensorboard", action="store_true", help="also write the log for TensorBoard")
    parser.add_argument("--quiet", action="store_true", help="print nothing but the last line")


def run(args: argparse.Namespace) -> int:
    chosen = task(args.task)
    kind = args.model or "transformer"
    if args.resume and args.recipe:
        raise CommandError("--recipe cannot change a run that is resumed; leave it out, or start a new run")
    if args.resume and args.overwrite:
        raise CommandError("--resume goes on with a run and --overwrite replaces it; leave one of them out")
    if args.resume:
        out = args.out or newest(Path("runs"), f"{chosen.name}-{kind}")
        state = load_training(out / LAST)
        settings = resumed_settings(state, args)
    else:
        out = fresh_folder(args.out, f"{chosen.name}-{kind}", args.overwrite)
        state, settings = None, new_settings(chosen, args)
    return train(chosen, settings, out, state, args.data, args.quiet)


def train(
    chosen: Task,
    settings: Settings,
    out: Path,
    state: dict[str, Any] | None,
    data: str | None,
    quiet: bool = False,
    start: SavedModel | None = None,
) -> int:
    """Runs one training to its end, from the weights of `start` where that is given; 130 where it was interrupted.

    A run that `out` holds is removed once the new one is ready to start. Under torchrun all of its processes call this;
    those that it has started anew go on from the last checkpoint.
    """
    if torchrun_restarts() and state is None and (out / LAST).exists():
        found = load_training(out / LAST)
        if Settings.from_dict(found["settings"]) == settings:  # else it is of a run that is not overwritten yet
            state, start = found, None
    with join(settings.device) as world:
        display = Display(f"{chosen.name} {settings.model}", chosen.metric, quiet=quiet or not world.main)
        pairs = load_data(chosen, data, display)
        trainer = prepare(chosen, settings, pairs, out, state, start, display.say, world)
        if state is None and world.main:
            remove_run(out)
        weights = sum(weight.numel() for weight in trainer.model.parameters()) / 1e6
        processes = f" of {world.size} processes" if world.joined else ""
        display.say(
            f"{chosen.name}: {len(pairs.train)} pairs of {pairs.split}; {settings.model} with {weights:.2f} M weights "
            f"on {settings.device}{processes}, {settings.dtype}; {out}"
        )
        if state is not None:
            display.say(f"resumed at update {trainer.step}, {trainer.spent:.0f} s")
        result = trainer.run(display)
    if world.main:
        print(summary(chosen, result, out))
    return 130 if result.interrupted else 0


def summary(chosen: Task, result: Result, out: Path) -> str:
    """The last line, with the command that comes next."""
    if result.interrupted:
        return f"interrupted at update {result.steps}; undivided train {chosen.name} --resume --out {out}"
    return (
        f"{result.steps} updates in {result.seconds:.0f} s; best dev {chosen.metric.upper()} "
        f"{result.best[chosen.metric]:.2f} %; undivided evaluate {out / BEST}"
    )


def load_data(chosen: Task, data: str | None, display: Display) -> Any:
    """The task's data; what it warns about is a line, not a Python warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = chosen.load(data)
    for one in caught:
        display.say(f"note: {one.message}")
    return pairs


def new_settings(chosen: Task, args: argparse.Namespace) -> Settings:
    """The recipe asked for or, without one, that for the device; changed by what the user gave."""
    kind = args.model or "transformer"
    recipe = recipe_of(chosen, args.recipe or default_recipe(chosen, choose_device(args.device or "auto")))
    options = {**recipe.pop("model", {}).get(kind, {}), **parse_options(args.set or [])}
    return settings_of(chosen, args, recipe, kind, options)


def settings_of(
    chosen: Task, args: argparse.Namespace, recipe: dict[str, Any], kind: str, options: dict[str, Any], **others: Any
) -> Settings:
    """The recipe's settings, changed by what the user gave; `options` are of the model's config."""
    given = {name: value for name in FROM_RESUME if (value := getattr(args, name, None)) is not None}
    for name in ("set", "model", "device", "dtype"):
        given.pop(name, None)
    given |= {"device": args.device or "auto", "dtype": args.dtype or "auto", "tensorboard": args.tensorboard}
    return settings_from(chosen, recipe, kind, options, **given, **others)


def resumed_settings(state: dict[str, Any], args: argparse.Namespace) -> Settings:
    """The checkpoint's settings; only the device and the processes may differ, since the machine may.

    Raises:
        CommandError: an option was given that the checkpoint decides otherwise.
    """
    settings = Settings.from_dict(state["settings"])
    if settings.task != args.task:
        raise CommandError(f"the run is of task {settings.task}, {args.task} was asked for")
    for name in FROM_RESUME:
        given = getattr(args, name)
        if given is None or name in ("device", "parallel"):
            continue
        if name == "set":
            options = parse_options(given)
            same = all(settings.model_options.get(key) == value for key, value in options.items())
        else:
            same = given == getattr(settings, name)
        if not same:
            option = "--" + name.replace("_", "-")
            raise CommandError(
                f"{option} {given} differs from the run that is resumed; leave it out, or start a new run"
            )
    device = choose_device(args.device) if args.device else settings.device
    tensorboard = args.tensorboard or settings.tensorboard
    parallel = args.parallel or (settings.parallel if under_torchrun() else None)
    return dataclasses.replace(settings, device=choose_device(device), tensorboard=tensorboard, parallel=parallel)


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` words to values: whole numbers, numbers, true and false are read, the rest is text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise CommandError(f"--set {pair!r} is not KEY=VALUE")
        options[key] = parse_value(text)
    return options


def parse_value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def fresh_folder(out: Path | None, name: str, overwrite: bool) -> Path:
    """Where a new run goes; nothing is written or removed yet."""
    if out is None and under_torchrun():
        raise CommandError("--out is needed under torchrun: processes that it starts anew must find their run")
    if out is not None and torchrun_restarts():
        return out  # the run there is this one
    if out is None:
        return Path("runs") / f"{name}-{max([*numbers(Path('runs'), name), 0]) + 1}"
    if holds_run(out) and not overwrite:
        raise CommandError(f"{out} holds a run; undivided train --resume goes on with it, --overwrite replaces it")
    return out


def holds_run(out: Path) -> bool:
    return (out / LAST).exists() or (out / BEST).exists()


def remove_run(out: Path) -> None:
    """Removes the files of a run but for its log, which the one that takes its place has begun anew."""
    if not holds_run(out):
        return
    for path in out.iterdir():
        if path.name in (LAST, BEST):
            path.unlink()
        elif path.name.startswith(SHARDS):
            shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path, name: str) -> Path:
    """The newest of the runs that were started without --out."""
    found = numbers(folder, name)
    if not found:
        raise CommandError(f"there is no run {folder / name}-N to resume; name one with --out")
    return folder / f"{name}-{max(found)}"


def numbers(folder: Path, name: str) -> list[int]:
    if not folder.is_dir():
        return []
    matches = (re.fullmatch(re.escape(name) + r"-(\d+)", path.name) for path in folder.iterdir())
    return [int(match[1]) for match in matches if match]
