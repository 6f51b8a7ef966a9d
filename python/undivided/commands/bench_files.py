"""The files of a benchmark run: a CSV and a plot for each op, and one page with everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import CommandError
from .writable import try_folder

if TYPE_CHECKING:
    from ..benchmarks.op import Op
    from ..benchmarks.rows import Row
    from ..benchmarks.suite import Run


class Files:
    """Names and writes them. `written` is what there is so far, `notes` what could not be made and why."""

    def __init__(self, out: Path | None, device: str, quick: bool) -> None:
        from ..benchmarks.machine import results_folder

        self.folder = results_folder(device) if out is None else out
        self.quick = quick
        self.written: list[Path] = []
        self.notes: list[str] = []

    def check(self) -> None:
        """Raises CommandError where the folder cannot be written."""
        try:
            try_folder(self.folder)
        except OSError as error:
            raise CommandError(f"results cannot be written to {self.folder}: {error.strerror or error}") from error

    def path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}{'.quick' if self.quick else ''}.{suffix}"

    def keep(self, op: Op, rows: Sequence[Row]) -> None:
        """What there is so far of an op, for a run that is cut off; not in the place of a whole result."""
        from ..benchmarks.rows import write_csv

        write_csv(rows, self.path(op.name, "csv.partial"))

    def save(self, op: Op, rows: Sequence[Row]) -> None:
        """The CSV and the plot of one op."""
        from ..benchmarks import plot
        from ..benchmarks.rows import write_csv

        write_csv(rows, self.path(op.name, "csv"))
        self.path(op.name, "csv.partial").unlink(missing_ok=True)
        self.written.append(self.path(op.name, "csv"))
        if not plot.drawable():
            if plot.CURE not in self.notes:
                self.notes.append(plot.CURE)
        elif plot.draw_op(op, rows, self.path(op.name, "png")) is not None:
            self.written.append(self.path(op.name, "png"))

    def report(self, outcome: Run) -> None:
        """One HTML page that needs no other file."""
        from ..benchmarks.report import page

        pictures = {name: self.path(name, "png") for name in outcome.rows if self.path(name, "png") in self.written}
        path = self.path("report", "html")
        path.write_text(page(outcome, pictures), encoding="utf-8")
        self.written.append(path)
