"""Rows as a table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from . import units
from .rows import Row

COLUMNS = ("provider", "median", "p20 to p80", "rate", "of ceiling", "ratio", "memory", "error / budget")
WIDTHS = (26, 9, 20, 14, 11, 7, 9, 17)
SHORT = 90  # of a sentence in the table; the CSV has all of it


def op_table(op: str, rows: Sequence[Row]) -> Group:
    """One block a case and mode, its providers fastest first; those without a time come last, with the reason."""
    parts: list[RenderableType] = [Text(op, style="bold underline"), line(COLUMNS, "dim")]
    for (case, mode), group in blocks(row for row in rows if row.case != "all"):
        parts.append(Text(f"{case}, {mode.replace('_', ' and ')}", style="bold"))
        for row in sorted(group, key=lambda row: row.median if row.timed else math.inf):
            parts.append(line(cells(row), style_of(row)))
    return Group(*parts, Text())


def line(words: Sequence[str], style: str) -> Text:
    """The first word to the left, numbers to the right; a reason has the rest of the line."""
    first = f"  {words[0]:<{WIDTHS[0]}}"
    if len(words) == 2:
        return Text(f"{first}  {words[1]}", style=style, no_wrap=True, overflow="ellipsis")
    rest = (f"{word:>{width}}" for word, width in zip(words[1:], WIDTHS[1:], strict=True))
    return Text("  ".join((first, *rest)), style=style, no_wrap=True, overflow="ellipsis")


def style_of(row: Row) -> str:
    if row.timed:
        return "green" if row.ours else ""
    return "bold red" if row.status == "wrong" or row.status.startswith("failed") else "dim"


def blocks(rows: Iterable[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    """Rows by case and mode, in their order."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.case, row.mode), []).append(row)
    return list(found.items())


def cells(row: Row) -> list[str]:
    """The columns of a row with a time; provider and reason of one without."""
    if not row.timed:
        text = row.status if len(row.status) <= SHORT else row.status[: SHORT - 3] + "..."
        return [row.provider, f"{text}, error / budget {budget(row)}" if row.status == "wrong" else text]
    return [
        row.provider,
        units.seconds(row.median) + ("~" if row.noisy else ""),
        f"{units.seconds(row.p20)} to {units.seconds(row.p80)}",
        units.rate(row.operations, row.bytes, row.median, row.ceiling),
        f"{row.of_ceiling:.2f} {row.ceiling}",
        f"{row.ratio:.2f}x" if math.isfinite(row.ratio) else "-",
        units.size(row.memory),
        budget(row),
    ]


def budget(row: Row) -> str:
    return f"{units.error(row.error)} / {units.error(row.budget)}"


def absences(rows: Iterable[Row]) -> list[str]:
    """One line for each provider that is not on the machine."""
    return [f"{row.provider}: {row.status.removeprefix('absent: ')}" for row in rows if row.status.startswith("absent")]
