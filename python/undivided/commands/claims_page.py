"""What was measured about the models, as Markdown: a table and a figure for each result file of `undivided compare`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..benchmarks.readme import tracked
from ..tasks import TASKS
from ..training.claims import CLAIMS
from . import CommandError, compare

NOTHING = "Nothing is committed yet; `undivided compare` measures on your machine."


@dataclass(frozen=True)
class Result:
    """What a result file says; `command` is what wrote it, without the budget."""

    path: Path
    title: str
    command: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


def claims_page(results: Path) -> str:
    """The claims in their order, then kinds of model side by side; of the files that git has or will commit."""
    known = tracked(results)
    parts = []
    for folder in sorted(path for path in results.glob("*") if path.is_dir()):
        for one in results_of(folder):
            if known is None or one.path.resolve() in known:
                place = f"results/{folder.name}/"
                parts += [f"### {one.title}", table(one.columns, one.lines)]
                figure = one.path.with_suffix(".png")
                if figure.is_file():
                    parts.append(f"![{one.title}]({place}{figure.name})")
                parts.append(f"{circumstances(one)}: [rows]({place}{one.path.name})")
    return "\n\n".join(parts) or NOTHING


def results_of(folder: Path) -> Iterator[Result]:
    """The result files of a device."""
    for claim in CLAIMS.values():
        for task in TASKS.values():
            path = folder / f"compare_{task.name}_{claim.name}.csv"
            if path.is_file():
                rows = rows_of(claim.row, path)
                lines, command = claim.lines(rows), f"undivided compare {task.name} --claim {claim.name}"
                kinds = tuple(dict.fromkeys(row.model for row in rows)) if claim.of_kinds else ()
                if kinds and kinds != tuple(task.recipes["quick"]["model"]):
                    command += f" --models {','.join(kinds)}"
                yield Result(path, f"{task.name}: {claim.summary}", command, claim.columns, lines)
    for task in TASKS.values():
        path = folder / f"compare_{task.name}.csv"
        if path.is_file():
            rows = rows_of(compare.Row, path)
            title = f"{task.name}: {compare.title(task, rows)}"
            yield Result(path, title, f"undivided compare {task.name}", compare.COLUMNS, compare.lines(rows))


def rows_of(kind: type[Any], path: Path) -> list[Any]:
    """The rows of a file, as what was written: an empty cell is None.

    Raises:
        CommandError: a column of `kind` is missing, or there is no row.
    """
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    names, hints = [one.name for one in fields(kind)], get_type_hints(kind)
    if not found or (missing := [name for name in names if name not in found[0]]):
        raise CommandError(f"{path} has no rows" if not found else f"{path} lacks the columns {', '.join(missing)}")
    return [kind(**{name: value_of(hints[name], row[name]) for name in names}) for row in found]


def value_of(hint: Any, cell: str) -> Any:
    if hint is bool:
        return cell == "True"
    if hint is str:
        return cell
    return None if cell == "" else (int if hint is int else float)(cell)


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [columns, ["---", *["--:"] * (len(columns) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def circumstances(result: Result) -> str:
    """How, where and when the rows were measured."""
    with result.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    words = {name: ", ".join(dict.fromkeys(row[name] for row in rows)) for name in ("threads", "seed", "torch", "date")}
    minutes = rows[0].get("minutes")
    budget = f" --minutes {float(minutes):g}" if minutes else ""
    where = f"{words['threads']} threads, seed {words['seed']}, torch {words['torch']}, {words['date']}"
    return f"`{result.command}{budget}`, {where}"
