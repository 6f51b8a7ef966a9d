"""Runs a checkpoint on your own words, and draws what its cross-attention looked at."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..tasks import TASKS
from ..training.inference import answer, cross_attention
from ..training.models import SavedModel, load_model
from ..training.settings import choose_device
from . import CommandError
from .figures import CURE, attention_maps, drawable
from .train import numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[CHECKPOINT] WORD",
        help="words to pronounce; the first may be a run's folder or a .safetensors file "
        "(default: the checkpoint that comes with the package, else the newest run in ./runs)",
    )
    parser.add_argument("--png", type=Path, default=Path("attention.png"), help="the figure (default: attention.png)")
    parser.add_argument("--no-png", action="store_true", help="draw nothing")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    path, words = split_arguments(args.words)
    saved = load_model(path, choose_device(args.device))
    print(f"model: {path}")
    generate(saved, words, None if args.no_png else args.png)
    return 0


def generate(saved: SavedModel, words: list[str], png: Path | None) -> None:
    """Prints the answer to every word and, with `png`, draws the attention maps of the first four."""
    inputs = {word: saved.task.symbols(word) for word in words}
    answers = answer(saved.model, saved.source, saved.target, inputs, saved.task.longest_output)
    width = max(map(len, words))
    for word, symbols in answers.items():
        print(f"{word:<{width}}  {' '.join(symbols)}")
    if png is None:
        return
    if not drawable():
        print(CURE)
        return
    maps = []
    for word in list(inputs)[:4]:
        weights = cross_attention(saved, inputs[word], answers[word])
        maps.append((inputs[word], (*answers[word], "end"), weights))
    print(f"attention map: {attention_maps(png, maps)}")


def split_arguments(given: list[str]) -> tuple[Path, list[str]]:
    """(checkpoint, words): the first word is a checkpoint when it is a path that exists or looks like a file."""
    first = Path(given[0])
    if first.suffix == ".safetensors" or first.is_dir() or "/" in given[0]:
        if len(given) == 1:
            raise CommandError(f"{given[0]} is a checkpoint; give words after it")
        return first, given[1:]
    return default_checkpoint(), given


def default_checkpoint() -> Path:
    """The checkpoint in the package, else the newest run in ./runs."""
    for name in TASKS:
        if (shipped := shipped_checkpoint(name)) is not None:
            return shipped
    for name in TASKS:
        kind = f"{name}-transformer"
        found = numbers(Path("runs"), kind)
        if found:
            return Path("runs") / f"{kind}-{max(found)}"
    raise CommandError("there is no checkpoint: train one (undivided train g2p), or give its path before the words")


def shipped_checkpoint(task: str) -> Path | None:
    """The trained model that comes with the package, where there is one."""
    path = Path(__file__).parent.parent / "tasks" / "checkpoints" / f"{task}.safetensors"
    return path if path.is_file() else None
