"""Checks every kernel that this machine can run against the float64 reference; exit code 1 on any failure."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

from ..dispatch import Backend, BackendRefused
from ..ops.attention_table import ATTENTION
from ..ops.feed_forward_table import FEED_FORWARD
from ..ops.norm_table import LAYER_NORM, RMS_NORM
from ..testing import ATTENTION_CASES, FEED_FORWARD_CASES, NORM_CASES, QUICK, Verdict, compare


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
    parser.add_argument("--op", choices=("attention", "layer_norm", "rms_norm", "feed_forward"), help="only this op")
    parser.add_argument("--backend", help="only this backend")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))


def run(args: argparse.Namespace) -> int:
    rows, refused = [], 0
    for op, backend, name, dtype, check in work(args):
        try:
            verdicts = check()
        except BackendRefused:
            refused += 1
            continue
        row = summarise(op, backend, name, dtype, verdicts)
        rows.append(row)
        if not args.json:
            print(line(row), flush=True)
    failed = [row for row in rows if not row.ok]
    if args.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        print()
    else:
        print(f"{len(rows) - len(failed)} passed, {len(failed)} failed; {refused} cases that a backend refuses")
    if not rows:
        raise ValueError(f"nothing to verify: no backend named {args.backend!r} runs on {args.device}")
    return 1 if failed else 0


def work(args: argparse.Namespace) -> Iterator[tuple[str, str, str, str, Callable[[], list[Verdict]]]]:
    """(op, backend, case, dtype, check) for everything that was asked for."""
    tables: dict[str, tuple[Backend, ...]] = {
        "attention": ATTENTION,
        "layer_norm": LAYER_NORM,
        "rms_norm": RMS_NORM,
        "feed_forward": FEED_FORWARD,
    }
    for op, table in tables.items():
        if args.op not in (None, op):
            continue
        for row in table:
            if args.backend not in (None, row.name):
                continue
            for case in cases(op, args.quick):
                for dtype in ("float32", "bfloat16") if args.quick else ("float32", "bfloat16", "float16"):
                    yield op, row.name, case.name, dtype, bind(op, case, dtype, row.name, args.device)


def cases(op: str, quick: bool) -> list:
    if op == "attention":
        return [case for case in ATTENTION_CASES if not quick or case.name in QUICK]
    if op == "feed_forward":
        return list(FEED_FORWARD_CASES[:3] if quick else FEED_FORWARD_CASES)
    return list(NORM_CASES[2:5] if quick else NORM_CASES)


def bind(op: str, case: object, dtype: str, backend: str, device: str) -> Callable[[], list[Verdict]]:
    function = getattr(compare, op) if op in ("attention", "feed_forward") else None
    kind = getattr(torch, dtype)
    if function is None:
        return lambda: compare.norm(op, case, kind, backend, device)  # type: ignore[arg-type]
    return lambda: function(case, kind, backend, device)


def summarise(op: str, backend: str, case: str, dtype: str, verdicts: list[Verdict]) -> Row:
    """The verdict that comes nearest to its budget, or passes it."""
    worst = max(verdicts, key=lambda v: (not v.ok, v.error / max(v.budget, 1e-300)))
    return Row(op, backend, case, dtype, worst.name, worst.error, worst.budget, all(v.ok for v in verdicts))


def line(row: Row) -> str:
    verdict = "ok" if row.ok else "FAILED"
    return (
        f"{row.op:<13}{row.backend:<10}{row.case:<24}{row.dtype:<9} "
        f"{row.worst:<9} error {row.error:8.2e}  budget {row.budget:8.2e}  {verdict}"
    )
