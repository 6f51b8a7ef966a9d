"""What a training says: JSON lines for programs, a live bar for people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


class MetricsLog:
    """One JSON object a line. A resumed training cuts the file back to where its checkpoint was written."""

    def __init__(self, path: Path, position: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")
        if position < os.path.getsize(path):
            self._file.truncate(position)

    def write(self, **record: Any) -> None:
        """Appends one line, and hands it to the system at once so that a kill loses no more than the line begun."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Bytes written so far."""
        return os.path.getsize(self.path)

    def close(self) -> None:
        self._file.close()


class NoLog:
    """What the ranks have that write nothing."""

    def write(self, **record: Any) -> None:
        pass

    def position(self) -> int:
        return 0

    def close(self) -> None:
        pass


class TensorBoardLog(MetricsLog):
    """The same lines, and their numbers for TensorBoard in the folder `tensorboard` beside the file.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, path: Path, position: int = 0, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(f"tensorboard is not installed ({error}): pip install tensorboard") from error
        super().__init__(path, position)
        # What a run wrote after the checkpoint that it goes on from is hidden by purge_step.
        self._writer = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, **record: Any) -> None:
        super().write(**record)
        for name, value in record.items():
            if name not in ("kind", "step"):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        super().close()
        self._writer.close()


def open_log(path: Path, position: int, tensorboard: bool, step: int) -> MetricsLog:
    """The log of a run that is at update `step`, its file at `position`."""
    return TensorBoardLog(path, position, step) if tensorboard else MetricsLog(path, position)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log. A last line that a kill cut short is left out."""
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class LastingConsole(Console):
    """A console on stderr. A training goes on without a word where nobody reads it any more."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        """Called by rich instead of an error; its own would end the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # what it holds goes nowhere when Python ends


class Display:
    """A bar with the spent budget, loss, speed and development score; plain lines where there is no terminal."""

    def __init__(self, title: str, metric: str, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or LastingConsole()
        self.metric, self.live, self.quiet = metric.upper(), self.console.is_terminal and not quiet, quiet
        self._score = ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
        )
        self._progress = Progress(*columns, console=self.console, disable=not self.live)
        self._bar = self._progress.add_task(title, total=1.0, state="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, fraction: float, step: int, loss: float, speed: float) -> None:
        """Refreshes the bar."""
        if self.live:
            state = f"update {step}, loss {loss:.3f}, {speed:.1f}/s{self._score}"
            self._progress.update(self._bar, completed=fraction, state=state)

    def score(self, step: int, seconds: float, loss: float, scores: dict[str, float]) -> None:
        """Shows a development score, in the bar or as a line."""
        value = scores[self.metric.lower()]
        self._score = f", dev {self.metric} {value:.1f} %"
        if not self.live and not self.quiet:
            self.say(f"update {step}, {seconds:.0f} s, loss {loss:.3f}, dev {self.metric} {value:.2f} %")

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
