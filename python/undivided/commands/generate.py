"""Runs a checkpoint on your own input, and draws what its cross-attention looked at."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..tasks import LEFT_TO_RIGHT, N_TO_1, N_TO_M, N_TO_N, TASKS, Task, task
from ..training.inference import answer, cross_attention, probabilities
from ..training.maps import attends, self_attention
from ..training.models import SavedModel, load_model
from ..training.settings import choose_device
from . import CommandError
from .figures import CURE, attention_maps, drawable
from .train import numbers

DRAWN = 4  # maps in one figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[CHECKPOINT] TEXT",
        help="words to pronounce, sentences to tag, reviews to judge, as the checkpoint's task has it; the first may "
        "be a run's folder or a .safetensors file (default: the checkpoint that comes with the package, else the "
        "newest run in ./runs)",
    )
    parser.add_argument("--task", help="the task whose checkpoint is taken where none is given")
    parser.add_argument(
        "--png",
        type=Path,
        help="where the attention maps go (default: attention.png for a task that writes a sequence; for others, what "
        "the symbols of the input look at is drawn only where this is given)",
    )
    parser.add_argument("--no-png", action="store_true", help="draw nothing")
    parser.add_argument("--beams", type=int, help="hypotheses in the search for a sequence (default: the task's own)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    path, texts = split_arguments(args.words, None if args.task is None else task(args.task))
    saved = load_model(path, choose_device(args.device))
    if args.task is not None and saved.task.name != args.task:
        raise CommandError(f"{path} is of task {saved.task.name}, {args.task} was asked for")
    print(f"model: {path}")
    writes = hasattr(saved.model, "cross_attention")
    png = None if args.no_png else args.png or (Path("attention.png") if writes else None)
    generate(saved, texts, png, args.beams)
    return 0


def generate(saved: SavedModel, texts: list[str], png: Path | None, beams: int | None = None) -> None:
    """Prints the answer to every text; with `png`, draws the attention maps of the first four where there are any."""
    inputs = [saved.task.symbols(text) for text in texts]
    beams = saved.task.beams if beams is None else beams
    answers = answer(saved.model, saved.task, saved.source, saved.target, inputs, beams=beams)
    width = max(map(len, texts))
    for text, symbols, answered in zip(texts, inputs, answers, strict=True):
        if saved.task.shape in (N_TO_N, LEFT_TO_RIGHT):
            print(" ".join(f"{symbol}/{label}" for symbol, label in zip(symbols, answered, strict=True)))
        elif saved.task.shape == N_TO_1:
            print(f"{answered[0]} {100 * probabilities(saved, symbols)[answered[0]]:.0f} %  {text}")
        else:
            print(f"{text:<{width}}  {' '.join(answered)}")
    if png is not None and not attends(saved):
        print(f"no map is drawn: model {saved.kind} has no attention")
    elif png is not None:
        draw_maps(saved, inputs[:DRAWN], answers, png)


def draw_maps(saved: SavedModel, inputs: list[tuple[str, ...]], answers: list[tuple[str, ...]], png: Path) -> None:
    """One map an input: what each symbol of its answer looked at or, where none is written, each symbol of itself."""
    if not drawable():
        print(CURE)
        return
    maps = []
    for symbols, answered in zip(inputs, answers, strict=False):
        source = saved.source.pieces(symbols)
        if saved.task.shape == N_TO_M:
            maps.append((source, (*saved.target.pieces(answered), "end"), cross_attention(saved, symbols, answered)))
        else:
            maps.append((source, source, self_attention(saved, symbols)))
    print(f"attention map: {attention_maps(png, maps)}")


def split_arguments(given: list[str], wanted: Task | None = None) -> tuple[Path, list[str]]:
    """(checkpoint, texts): the first word is a checkpoint when it is a path that exists or looks like one."""
    first = Path(given[0])
    # os.path.isdir says no of a text that is empty or too long for a path, where Path.is_dir does not.
    if first.suffix == ".safetensors" or os.path.isdir(given[0]) or ("/" in given[0] and " " not in given[0]):
        if len(given) == 1:
            raise CommandError(f"{given[0]} is a checkpoint; give texts after it")
        return first, given[1:]
    return default_checkpoint(wanted), given


def default_checkpoint(wanted: Task | None = None) -> Path:
    """The checkpoint in the package, else the newest run in ./runs; of the task wanted, or of any."""
    names = list(TASKS) if wanted is None else [wanted.name]
    for name in names:
        if (shipped := shipped_checkpoint(name)) is not None:
            return shipped
    for name in names:
        kind = f"{name}-transformer"
        found = numbers(Path("runs"), kind)
        if found:
            return Path("runs") / f"{kind}-{max(found)}"
    raise CommandError(
        f"there is no checkpoint: train one (undivided train {names[0]}), or give its path before the text"
    )


def shipped_checkpoint(task: str) -> Path | None:
    """The trained model that comes with the package, where there is one."""
    path = Path(__file__).parent.parent / "tasks" / "checkpoints" / f"{task}.safetensors"
    return path if path.is_file() else None
