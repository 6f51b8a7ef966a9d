"""Checks every kernel that this machine can run against the float64 reference; exit code 1 on any failure."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))


def run(args: argparse.Namespace) -> int:
    if args.integrations:
        from .verify_integrations import run as run_integrations

        return run_integrations(args)
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
    for op, table in TABLES.items():
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
    if op == "attention_decode":
        return [case for case in DECODE_CASES if not quick or case.name in DECODE_QUICK]
    if op == "feed_forward":
        return list(FEED_FORWARD_CASES[:3] if quick else FEED_FORWARD_CASES)
    if op == "rotary":
        return list(ROTARY_CASES[3:5] if quick else ROTARY_CASES)
    return list(NORM_CASES[2:5] if quick else NORM_CASES)


def bind(op: str, case: object, dtype: str, backend: str, device: str) -> Callable[[], list[Verdict]]:
    function = None if op.endswith("norm") else getattr(compare, op)
    kind = getattr(torch, dtype)
    if function is None:
        return lambda: compare.norm(op, case, kind, backend, device)  # type: ignore[arg-type]
    if op == "attention":
        return lambda: with_gradients_or_without(partial(function, case, kind, backend, device))
    return lambda: function(case, kind, backend, device)


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
