"""All timing code. An op's file declares its cases and providers; this file gates, interleaves, times and reports.

Every provider first passes its correctness gate in the same process; one that fails is a row that says "wrong" with
its error instead of a time. Repeats are interleaved (one call of each provider, then the next round), so that a slow
moment of the machine hits everybody.
"""

from __future__ import annotations

import csv
import gc
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch

from .ceilings import Ceilings

MODES = ("forward", "backward", "forward_backward")


@dataclass(frozen=True)
class Work:
    """What a case must do at least: floating-point operations, and bytes of inputs and outputs."""

    operations: float
    bytes: float


@dataclass(frozen=True)
class Provider:
    """An implementation. `prepare(case, mode)` returns a function of no arguments that does the work once and returns
    the tensors to check, or raises NotImplementedError with a sentence when it cannot run the case."""

    name: str
    version: str
    prepare: Callable[[Any, str], Callable[[], Sequence[torch.Tensor]]]
    ours: bool = False


@dataclass
class Row:
    """One line of a result file. Times in seconds; `ratio` is the best peer's median over this median."""

    op: str
    case: str
    mode: str
    provider: str
    version: str
    device: str
    threads: int
    status: str
    error: float = float("nan")
    budget: float = float("nan")
    median: float = float("nan")
    p20: float = float("nan")
    p80: float = float("nan")
    repeats: int = 0
    of_ceiling: float = float("nan")
    ceiling: str = ""
    ratio: float = float("nan")
    noisy: bool = False
    torch: str = torch.__version__
    commit: str = ""
    date: str = ""


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    functions: dict[str, Callable[[], Any]], device: str, seconds: float, rounds: tuple[int, int] = (7, 200)
) -> dict[str, list[float]]:
    """Seconds per call: `rounds` at least and at most, ending after about `seconds` in all."""
    for function in functions.values():
        function()
        function()
    flush = torch.empty(64 * 2**20, dtype=torch.int8, device=device) if device == "cuda" else None
    times: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    end = time.perf_counter() + seconds
    try:
        for count in range(rounds[1]):
            if count >= rounds[0] and time.perf_counter() > end:
                break
            for name, function in functions.items():
                if flush is not None:
                    flush.zero_()
                synchronise(device)
                start = time.perf_counter()
                function()
                synchronise(device)
                times[name].append(time.perf_counter() - start)
    finally:
        if enabled:
            gc.enable()
    return times


def measure(
    op: str,
    case: Any,
    mode: str,
    providers: Sequence[Provider],
    gate: Callable[[Any, str, Sequence[torch.Tensor]], tuple[float, float]],
    work: Work,
    ceilings: Ceilings,
    seconds: float,
) -> list[Row]:
    """Rows for one case and mode. `gate(case, mode, outputs)` gives (error, budget); more than the budget is wrong."""
    rows, functions = [], {}
    for provider in providers:
        row = Row(op, case.name, mode, provider.name, provider.version, ceilings.device, torch.get_num_threads(), "ok")
        row.commit, row.date = commit(), date.today().isoformat()
        rows.append(row)
        try:
            function = provider.prepare(case, mode)
            row.error, row.budget = gate(case, mode, function())
        except NotImplementedError as reason:
            row.status = f"cannot: {reason}"
            continue
        if not row.error <= row.budget:
            row.status = "wrong"
            continue
        functions[provider.name] = function
    if functions:
        fill(rows, interleaved(functions, ceilings.kind, seconds), providers, work, ceilings, case)
    return rows


def fill(
    rows: list[Row], times: dict[str, list[float]], providers: Any, work: Work, ceilings: Ceilings, case: Any
) -> None:
    """Medians, spreads, fractions of the ceiling and ratios."""
    floor, name = ceilings.floor(work, case.dtype)
    for row in rows:
        taken = sorted(times.get(row.provider, ()))
        if not taken:
            continue
        row.median, row.repeats = statistics.median(taken), len(taken)
        row.p20, row.p80 = taken[int(0.2 * (len(taken) - 1))], taken[int(0.8 * (len(taken) - 1))]
        row.of_ceiling, row.ceiling = floor / row.median, name
        row.noisy = row.p80 > 1.25 * row.p20
    ours = {provider.name for provider in providers if provider.ours}
    peers = [row.median for row in rows if row.provider not in ours and row.status == "ok"]
    for row in rows:
        if peers and row.status == "ok":
            row.ratio = min(peers) / row.median


def commit() -> str:
    """The commit that is measured, or "" outside a checkout."""
    if not _COMMIT:
        try:
            command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
            _COMMIT.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        except (OSError, subprocess.CalledProcessError):
            _COMMIT.append("")
    return _COMMIT[0]


_COMMIT: list[str] = []


def write_csv(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for row in rows:
            values = asdict(row)
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})


def geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values) if values else float("nan")
