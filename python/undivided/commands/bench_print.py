"""What `undivided bench` prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..benchmarks.compare import Comparison
    from ..benchmarks.suite import Run
    from .bench_files import Files

PIPE_WIDTH = 150  # a table in a file or a pipe is not squeezed into 80 columns


def make_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def print_run(outcome: Run, files: Files) -> None:
    from ..benchmarks import units
    from ..benchmarks.table import absences, op_table

    console = make_console()
    for name, rows in outcome.rows.items():
        console.print(op_table(name, rows))
        for line in absences(rows):
            console.print(f"  {line}", style="dim", markup=False)
    console.print(summary(outcome))
    ceilings = outcome.ceilings
    copies = ", ".join(f"{units.size(size)} {units.three(rate / 1e9)}" for size, rate in ceilings.copies.items())
    matmuls = ", ".join(f"{dtype} {units.three(rate / 1e9)}" for dtype, rate in ceilings.matmul.items())
    console.print(f"{ceilings.device}: copies in GB/s by bytes moved: {copies}; matmul in GFLOP/s: {matmuls}")
    for warning in outcome.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    for row in outcome.failed:
        text = f"{row.op}, {row.case}, {row.mode}: {row.provider} is {row.status}"
        console.print(text, style="bold red", markup=False)
    for note in files.notes:
        console.print(note, markup=False)
    for path in files.written:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def summary(outcome: Run) -> Table:
    """Ratios of ours over the best peer, by op and kind of case."""
    from ..benchmarks.summary import COLUMNS, summaries

    title = "times faster than the best peer: geometric mean of the cases (the lowest)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("op", "case", *COLUMNS):
        table.add_column(name, justify="right" if name in COLUMNS else "left")
    for cells in summaries([row for rows in outcome.rows.values() for row in rows]):
        table.add_row(*cells)
    return table


def print_comparison(found: Comparison) -> None:
    console = make_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    from ..benchmarks import units

    for name in ("case", "mode", "provider"):
        table.add_column(name)
    for name in ("old", "new", "change", "beside peers"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    colours = {"slower": "bold red", "faster": "bold green", "": None}
    for one in found.changes:
        cells = (f"{one.new.op} {one.new.case}", one.new.mode, one.new.provider)
        times = (units.seconds(one.old.median), units.seconds(one.new.median), percent(one.factor), percent(one.beside))
        table.add_row(*cells, *times, one.verdict, style=colours[one.verdict])
    console.print(table)
    if found.unmoved:
        text = (
            f"unchanged peers ({found.unmoved} rows): {percent(found.drift)} in the middle, which is the machine; "
            f"beside one another nine of ten within a factor of {found.noise:.2f}, which is the noise"
        )
    else:
        text = "no unchanged peer is in both, so noise between the runs is unknown: only the spread within each counts"
    console.print(text)
    if math.isfinite(found.worst_ratio):
        console.print(f"ratios of ours over the best peer differ by at most {100 * (found.worst_ratio - 1):.0f} %")
    counts = {word: sum(one.verdict == word for one in found.changes) for word in ("faster", "slower")}
    console.print(f"{len(found.changes)} rows: {counts['faster']} faster, {counts['slower']} slower beyond the noise")
    if found.only_old or found.only_new:
        console.print(f"not compared: {found.only_old} rows are only in the old, {found.only_new} only in the new")
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def percent(factor: float) -> str:
    return f"{100 * (factor - 1):+.0f} %"
