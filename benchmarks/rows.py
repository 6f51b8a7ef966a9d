"""One line of a result file, and the files: written and read back."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

NAN = float("nan")


@dataclass
class Row:
    """Times in seconds, memory in bytes. `ratio` is the best peer's time over this one, the middle of the rounds.

    `status` is "ok", "wrong" (outside its error budget: it has no time), "cannot: why", "failed: error", or
    "absent: why" for a provider that is not on the machine at all. `copy` and `matmul` are the ceilings of the run,
    bytes and operations a second. `memory` is the peak over what was there before the call.
    """

    op: str
    case: str
    mode: str
    provider: str
    version: str
    status: str
    dtype: str = ""
    group: str = ""
    size: float = NAN
    ours: bool = False
    error: float = NAN
    budget: float = NAN
    median: float = NAN
    p20: float = NAN
    p80: float = NAN
    repeats: int = 0
    operations: float = NAN
    bytes: float = NAN
    items: float = NAN
    memory: float = NAN
    copy: float = NAN
    matmul: float = NAN
    ceiling: str = ""
    of_ceiling: float = NAN
    ratio: float = NAN
    noisy: bool = False
    quick: bool = False
    device: str = ""
    threads: int = 0
    torch: str = torch.__version__
    commit: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.op, self.case, self.mode, self.provider

    @property
    def timed(self) -> bool:
        return self.status == "ok" and math.isfinite(self.median)


class Malformed(ValueError):
    """A result file is not what `write_csv` writes; the text gives the file, the line and what is wrong."""


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Raises OSError where the folder cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for row in rows:
            values = asdict(row)
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})


def read_csv(path: Path) -> list[Row]:
    """The rows of a result file.

    Raises:
        FileNotFoundError: it is not there.
        Malformed: a column is missing or unknown, or a value is not of its kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or is no file; `undivided bench` writes such files")
    names = [field.name for field in fields(Row)]
    with path.open(newline="", errors="replace") as file:
        reader = csv.DictReader(file)
        found = list(reader.fieldnames or ())
        if set(found) != set(names):
            missing, unknown = [n for n in names if n not in found], [n for n in found if n not in names]
            words = f"missing columns {_few(missing)}; unknown columns {_few(unknown)}"
            raise Malformed(f"{path} is no benchmark result: {words}")
        return [_parse(path, reader.line_num, values) for values in reader]


def _few(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:40] for name in names[:most]) + more if names else "none"


def _parse(path: Path, line: int, values: dict[str, Any]) -> Row:
    """One line; a short or a long one is an error too."""
    kinds = {field.name: field.type for field in fields(Row)}
    if None in values or None in values.values():
        raise Malformed(f"{path}, line {line}: {len(kinds)} values are needed")
    parsed: dict[str, Any] = {}
    for name, text in values.items():
        try:
            parsed[name] = _READERS[str(kinds[name])](text)
        except (ValueError, KeyError):
            raise Malformed(
                f"{path}, line {line}: {name} is {text!r}, a value of type {kinds[name]} is needed"
            ) from None
    return Row(**parsed)


_READERS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": {"True": True, "False": False}.__getitem__,
}


def slug(text: str) -> str:
    """A device's name as the name of a folder.

    >>> slug("NVIDIA H200 (80 GB)")
    'nvidia-h200-80-gb'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"
