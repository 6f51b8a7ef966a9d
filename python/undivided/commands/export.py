"""Writes a checkpoint's model to a file of its own, in fewer bits: what a program ships."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..training.models import load_model, save_model
from ..training.settings import DTYPES
from . import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a run's folder, or a .safetensors file that a run wrote")
    parser.add_argument("file", type=Path, help="the .safetensors file to write")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="of the weights (default: float16)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file where there is one")


def run(args: argparse.Namespace) -> int:
    if args.file.suffix != ".safetensors":
        raise CommandError(f"{args.file} must end in .safetensors")
    if args.file.exists() and not args.overwrite:
        raise CommandError(f"{args.file} is there already; --overwrite replaces it")
    saved = load_model(args.checkpoint)
    model = saved.model.to(DTYPES[args.dtype])
    lost = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if lost:
        raise CommandError(f"{args.dtype} cannot hold the weights {', '.join(lost)}; use --dtype bfloat16 or float32")
    save_model(args.file, model, saved.kind, saved.task.name, saved.source, saved.target, saved.about)
    print(f"{args.file}: {args.file.stat().st_size / 1e6:.2f} MB; undivided evaluate {args.file}")
    return 0
