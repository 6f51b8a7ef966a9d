"""Result files of tasks: a row a scored checkpoint, with what is needed to train it again."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..training.checkpoint import write_atomically
from ..training.models import SavedModel
from ..training.recipes import command_of
from ..training.settings import Settings
from . import CommandError

# What every result file has, whatever the task's metrics.
KEYS = ("task", "model", "split", "part", "weights", "updates", "train_seconds", "seed")


def result_row(
    saved: SavedModel, scores: Mapping[str, float], beams: int, split: str, part: str, limit: int | None
) -> dict[str, Any]:
    """What was scored on what, and how the model was trained; a score of some examples alone is of another part."""
    settings = saved.about.get("settings", {})
    known = {one.name for one in fields(Settings)}
    return {
        "task": saved.task.name,
        "model": saved.kind,
        "split": split,
        "part": part if limit is None else f"{part}, first {limit}",
        **{name: round(value, 3) for name, value in scores.items()},
        **({"beams": beams} if beams > 1 else {}),
        "weights": sum(weight.numel() for weight in saved.model.parameters()),
        "updates": saved.about.get("step"),
        "train_seconds": saved.about.get("seconds"),
        "minutes": settings.get("minutes"),
        "seed": settings.get("seed"),
        "train_device": settings.get("device"),
        "train_threads": saved.about.get("threads"),
        "train_dtype": settings.get("dtype"),
        "version": __version__,
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        # What another version has settings for cannot be said in this one's options.
        "command": command_of(Settings.from_dict(settings)) if settings and settings.keys() <= known else "",
    }


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Appends to a result file, which is begun where there is none; rows without a column that others have are empty
    there.

    Raises:
        CommandError: it is no result file.
    """
    rows = rows_so_far(path)
    columns = [*row, *(name for name in (rows[0] if rows else ()) if name not in row)]
    write_rows(path, [dict.fromkeys(columns, "") | one for one in (*rows, row)])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A file of these rows, which have the columns of the first; where writing fails, what was there stays."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path.resolve(), write)  # a link stays one


def rows_so_far(path: Path) -> list[dict[str, str]]:
    """Those of `read_rows`, none where the file is empty or not there."""
    return read_rows(path) if path.exists() and path.stat().st_size > 0 else []


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a result file.

    Raises:
        CommandError: it is none: a column is missing, or a row has more cells than there are columns.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if missing := [name for name in KEYS if name not in columns]:
            raise CommandError(f"{path} has the columns {', '.join(columns)}; a result has also {', '.join(missing)}")
        rows = []
        for row in reader:
            if None in row:
                raise CommandError(f"{path}, line {reader.line_num}: more cells than the {len(columns)} columns")
            rows.append(row)
        return rows


def newest(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Without those of a checkpoint that was scored again later."""
    return list({tuple(row[name] for name in KEYS): row for row in rows}.values())
