"""Lists the datasets of the tasks, or fetches one."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..environment import cache_folder, data_folder
from ..tasks import TASKS
from ..tasks.datasets import DATASETS, Dataset, dataset
from ..tasks.find import DataDamaged, find, look_in
from . import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "fetch"), help="list all datasets, or fetch one into the cache")
    parser.add_argument("name", nargs="?", help="the dataset, or the task that uses it; with fetch")
    parser.add_argument(
        "--data", metavar="DIR", help="a folder that may hold it (default: the variable UNDIVIDED_DATA)"
    )


def run(args: argparse.Namespace) -> int:
    if args.action == "list":
        if args.name is not None:
            raise CommandError(f"list takes no name; {args.name!r} was given (undivided data fetch {args.name})")
        for row in DATASETS.values():
            print(describe(row, args.data))
        return 0
    if args.name is None:
        raise CommandError(f"fetch needs a name; there are: {', '.join(DATASETS)}")
    row = DATASETS[TASKS[args.name].dataset] if args.name in TASKS else dataset(args.name)
    for name, path in find(row, args.data).items():
        print(f"{name}: {path}")
    print(f"licence: {row.licence}")
    return 0


def describe(row: Dataset, data: str | None) -> str:
    """Lines about one dataset, with where it is now."""
    files = ", ".join(file.name for file in row.files)
    return "\n".join(
        (
            f"{row.name}  ({row.size / 1e6:.1f} MB, task {row.task})",
            f"  {row.summary}",
            f"  files    {files}",
            f"  origin   {row.origin}",
            f"  licence  {row.licence}",
            f"  here     {where(row, data)}",
        )
    )


def where(row: Dataset, data: str | None) -> str:
    named = Path(data).expanduser() if data is not None else data_folder()
    for folder in (named, cache_folder()):
        try:
            paths = look_in(folder, row) if folder is not None else None
        except DataDamaged as error:
            return str(error)
        if paths is not None:
            return str(next(iter(paths.values())).parent)
    return f"no: undivided data fetch {row.name}"
