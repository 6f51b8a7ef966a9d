"""Checks every kernel that this machine can run against the float64 reference; exit code 1 on any failure."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from ..dispatch import Backend, BackendRefused
from ..ops.attention_decode_table import ATTENTION_DECODE
from ..ops.attention_table import ATTENTION
from ..ops.feed_forward_table import FEED_FORWARD
from ..ops.norm_table import LAYER_NORM, RMS_NORM
from ..ops.rotary_table import ROTARY
from ..testing import (
    ATTENTION_CASES,
    DECODE_CASES,
    DECODE_QUICK,
    FEED_FORWARD_CASES,
    NORM_CASES,
    QUICK,
    ROTARY_CASES,
    Verdict,
    compare,
)
from ..training.settings import choose_device
from . import CommandError

TABLES: dict[str, tuple[Backend, ...]] = {
    "attention": ATTENTION,
    "attention_decode": ATTENTION_DECODE,
    "layer_norm": LAYER_NORM,
    "rms_norm": RMS_NORM,
    "feed_forward": FEED_FORWARD,
    "rotary": ROTARY,
}


@dataclass
class Row:
    """One comparison: the worst of a case's outputs and gradients."""

    op: str
    backend: str
    case: str
    dtype: str
    worst: str
    error: float
    budget: float
    ok: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few cases of each op: under a minute on two cores")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    parser.add_argument("--integrations", action="store_true", help="check transformers' models instead of the ops")
    parser.add_argument("--op", choices=tuple(TABLES), help="only this op")
    parser.add_argument("--backend", help="only this backend")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cases (default 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))


def run(args: argparse.Namespace) -> int:
    choose_device(args.device)  # says so where it is a GPU that is not there
    if args.integrations:
        from .verify_integrations import run as run_integrations

        return run_integrations(args)
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: at least 1")
    tables = TABLES.values() if args.op is None else (TABLES[args.op],)
    names = dict.fromkeys(row.name for table in tables for row in table)
    if args.backend not in (None, *names):
        whose = "" if args.op is None else f" of {args.op}"
        raise CommandError(f"--backend {args.backend} is no backend{whose}; allowed: {', '.join(names)}")
    rows, refused = [], 0
    for row in checked(args):
        if row is None:
            refused += 1
            continue
        rows.append(row)
        if not args.json:
            print(line(row), flush=True)
    if not rows:
        raise CommandError(f"nothing to verify: --backend {args.backend} refuses all {refused} cases on {args.device}")
    failed = [row for row in rows if not row.ok]
    if args.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        print()
    else:
        print(f"{len(rows) - len(failed)} passed, {len(failed)} failed; {refused} cases that a backend refuses")
    return 1 if failed else 0


def checked(args: argparse.Namespace) -> Iterator[Row | None]:
    """The rows in the order of the tables, None for a case that a backend refuses."""
    if args.jobs == 1:
        yield from map(partial(check, device=args.device), work(args))
        return
    # Started anew, as CUDA asks, with the cores shared out.
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with multiprocessing.get_context("spawn").Pool(args.jobs, torch.set_num_threads, (threads,)) as pool:
        yield from pool.imap(partial(check, device=args.device), work(args))


Item = tuple[str, str, Any, str]


def work(args: argparse.Namespace) -> Iterator[Item]:
    """(op, backend, case, dtype) for everything that was asked for."""
    for op, table in TABLES.items():
        if args.op not in (None, op):
            continue
        for row in table:
            if args.backend not in (None, row.name):
                continue
            for case in cases(op, args.quick):
                for dtype in ("float32", "bfloat16") if args.quick else ("float32", "bfloat16", "float16"):
                    yield op, row.name, case, dtype


def cases(op: str, quick: bool) -> list:
    if op == "attention":
        return [case for case in ATTENTION_CASES if not quick or case.name in QUICK]
    if op == "attention_decode":
        return [case for case in DECODE_CASES if not quick or case.name in DECODE_QUICK]
    if op == "feed_forward":
        return list(FEED_FORWARD_CASES[:3] if quick else FEED_FORWARD_CASES)
    if op == "rotary":
        return list(ROTARY_CASES[3:5] if quick else ROTARY_CASES)
    return list(NORM_CASES[2:5] if quick else NORM_CASES)


def check(item: Item, device: str) -> Row | None:
    op, backend, case, dtype = item
    try:
        verdicts = compared(op, case, getattr(torch, dtype), backend, device)
    except BackendRefused:
        return None
    return summarise(op, backend, case.name, dtype, verdicts)


def compared(op: str, case: Any, dtype: torch.dtype, backend: str, device: str) -> list[Verdict]:
    if op.endswith("norm"):
        return compare.norm(op, case, dtype, backend, device)
    function = getattr(compare, op)
    if op == "attention":
        return with_gradients_or_without(partial(function, case, dtype, backend, device))
    return function(case, dtype, backend, device)


def with_gradients_or_without(check: Callable[..., list[Verdict]]) -> list[Verdict]:
    """A backend may have the forward alone: then that is checked. Raises BackendRefused where it has neither."""
    try:
        return check(backward=True)
    except BackendRefused:
        return check(backward=False)


def summarise(op: str, backend: str, case: str, dtype: str, verdicts: list[Verdict]) -> Row:
    """The verdict that comes nearest to its budget, or passes it."""
    worst = max(verdicts, key=lambda v: (not v.ok, v.error / max(v.budget, 1e-300)))
    return Row(op, backend, case, dtype, worst.name, worst.error, worst.budget, all(v.ok for v in verdicts))


def line(row: Row) -> str:
    verdict = "ok" if row.ok else "FAILED"
    return (
        f"{row.op:<17}{row.backend:<10}{row.case:<24}{row.dtype:<9} "
        f"{row.worst:<9} error {row.error:8.2e}  budget {row.budget:8.2e}  {verdict}"
    )
