"""Times the kernels against their peers, compares two results, and writes the README's section from them."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..dispatch import BACKENDS
from . import CommandError
from .bench_files import Files
from .bench_print import print_comparison, print_run

USAGE = """\
what to do:
  bench [OP ...]             time these ops (attention, layer_norm, ...; cpu: all of them on the CPU; all: the default)
  bench compare OLD NEW      two CSV files, or folders of them: what changed by more than the noise
  bench readme [FOLDER]      write README.md's performance section from the committed results
"""

# device: (seconds of samples a case, seconds an op) in full and quick. Time on a GPU is scarce, and its events spread
# little: five samples tell what seven times as many do.
USUAL = {"cpu": ((2.0, math.inf), (0.9, math.inf)), "cuda": ((0.2, 150.0), (0.1, 12.0))}
# Of each case in a quick run on a CPU, whose inputs are small enough to stay, and the seconds after which none begins:
# with the ceilings and the plots a run then takes less than two minutes.
VISITS, LONGEST = 24, 105.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = USAGE
    parser.add_argument("words", nargs="*", metavar="WHAT", help="ops to time, or compare OLD NEW, or readme")
    parser.add_argument("--quick", action="store_true", help="fewer cases and samples: two minutes on two cores")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: by device, it is said)")
    parser.add_argument("--backend", action="append", metavar="NAME", help="of ours, only this one; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to run (default: the GPU when there is one)")
    parser.add_argument(
        "--case", action="append", default=[], metavar="TEXT",
        help="only cases with TEXT in their name; may be repeated; needs --out",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of samples for each case (default 2, quick 0.9; GPU 0.2, 0.1)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="S",
        help="begin no case of an op after S seconds of it (default: GPU 150, quick 12)",
    )
    parser.add_argument("--gate", action="store_true", help="only check everybody's results, time nothing; needs --out")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also time torch.compile, which takes long to compile (default: unless --quick)",
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    if args.words[:1] == ["compare"]:
        return compare(args.words[1:], args.json)
    if args.words[:1] == ["readme"]:
        return readme(args.words[1:])
    return time_ops(args)


def time_ops(args: argparse.Namespace) -> int:
    """Exit code 1 when a row of ours is wrong or broke."""
    from ..benchmarks import suite
    from ..benchmarks.machine import device_name
    from ..benchmarks.runner import Settings

    ops = suite.find(args.words)
    device = pick_device(args.device, args.words)
    backends = pick_backends(args.backend) or suite.default_backends(device, args.quick)
    usual, longest = USUAL[device][args.quick]
    seconds = usual if args.seconds is None else args.seconds
    budget = longest if args.budget is None else args.budget
    if not 0 < seconds <= 3600:
        raise CommandError(f"--seconds {args.seconds}: a number above 0, up to 3600, is needed")
    if not budget > 0:
        raise CommandError(f"--budget {args.budget}: a number above 0 is needed")
    if args.gate and args.out is None:
        raise CommandError("--gate: rows without times would take the place of all; say where by --out")
    if args.case and args.out is None:
        raise CommandError(
            f"--case {args.case[0]!r}: some of the cases would take the place of all; say where by --out"
        )
    compiles = not args.quick if args.compile is None else args.compile
    visits = VISITS if args.quick and device == "cpu" and not args.gate else 1
    files = Files(args.out, device_name(device), args.quick)
    files.check()  # before an hour of measuring, not after it
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        outcome = suite.run(
            ops,
            device,
            backends,
            Settings(seconds, args.quick, compiles, budget, timed=not args.gate, visits=visits, longest=LONGEST),
            progress=reporter(progress, console.is_terminal),
            finished=files.save,
            measured=files.keep,
            only=tuple(args.case),
        )
    files.report(outcome)
    if args.json:
        print_json([asdict(row) for rows in outcome.rows.values() for row in rows])
    else:
        print_run(outcome, files)
    return 1 if outcome.failed else 0


def reporter(progress: Progress, shown: bool) -> Callable[[str, int, int], None]:
    """A bar on a terminal; elsewhere a line a measurement, on stderr, so that a log shows that it goes on."""
    if not shown:
        start = time.monotonic()
        return lambda text, done, total: print(
            f"{time.monotonic() - start:.0f} s {done}/{total} {text}", file=sys.stderr, flush=True
        )
    bar = progress.add_task("", total=None)
    return lambda text, done, total: progress.update(bar, description=text, completed=done, total=total)


def print_json(value: Any) -> None:
    """JSON has no NaN: what was not measured is null."""

    def plain(one: Any) -> Any:
        if isinstance(one, dict):
            return {name: plain(inner) for name, inner in one.items()}
        if isinstance(one, list):
            return [plain(inner) for inner in one]
        return None if isinstance(one, float) and not math.isfinite(one) else one

    json.dump(plain(value), sys.stdout, indent=1, allow_nan=False)
    print()


def pick_device(asked: str | None, words: Sequence[str]) -> str:
    if "cpu" in words and asked == "cuda":
        raise CommandError("`bench cpu` runs on the CPU: leave --device cuda out, or name the ops")
    device = "cpu" if "cpu" in words else asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: torch sees no GPU here; leave it out to run on the CPU")
    return device


def pick_backends(asked: list[str] | None) -> tuple[str, ...]:
    unknown = [name for name in asked or () if name not in BACKENDS]
    if unknown:
        raise CommandError(f"--backend {unknown[0]} is unknown; allowed: {', '.join(BACKENDS)}")
    return tuple(dict.fromkeys(asked or ()))


def compare(paths: Sequence[str], as_json: bool) -> int:
    from ..benchmarks.compare import compare as compare_rows
    from ..benchmarks.compare import read_results

    if len(paths) != 2:
        raise CommandError(f"compare takes two files or folders, OLD and NEW; {len(paths)} were given")
    old, new = (read_results(Path(path)) for path in paths)
    found = compare_rows(old, new)
    if not found.changes:
        raise CommandError(f"{paths[0]} and {paths[1]} have no timed row in common")
    if as_json:
        rows: list[dict[str, Any]] = [
            dict(zip(("op", "case", "mode", "provider"), one.new.key, strict=True))
            | dict(old=one.old.median, new=one.new.median, factor=one.factor, beside=one.beside, verdict=one.verdict)
            for one in found.changes
        ]
        print_json(dict(drift=found.drift, noise=found.noise, worst_ratio=found.worst_ratio, changes=rows))
    else:
        print_comparison(found)
    return 0


def readme(words: Sequence[str]) -> int:
    from ..benchmarks.machine import checkout
    from ..benchmarks.readme import left_out, update

    root = checkout()
    if len(words) > 1:
        raise CommandError(f"readme takes at most one folder of results; {len(words)} words were given")
    if root is None:
        raise CommandError("this package was installed from a wheel: README.md is in a checkout of the sources")
    results = Path(words[0]) if words else root / "benchmarks" / "results"
    if words and not results.is_dir():
        raise CommandError(f"{results} is no folder")
    changed = update(root / "README.md", results)
    for path in left_out(results):
        print(f"left out, because git does not have it (git add it first): {path}")
    print(f"{root / 'README.md'}: {'the section was rewritten' if changed else 'nothing to change'}")
    return 0
