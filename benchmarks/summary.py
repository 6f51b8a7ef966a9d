"""Ratios summed up: one line for each op and kind of case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .rows import Row
from .units import geometric_mean

COLUMNS = ("forward", "backward", "forward and backward")
# mode: (its column, what is added to the name of the case)
MODES = {
    "forward": ("forward", ""),
    "backward": ("backward", ""),
    "forward_backward": ("forward and backward", ""),
    "step": ("forward and backward", ""),
    "first_token": ("forward", ", first token"),
    "tokens": ("forward", ", all tokens"),
}
# A provider that is no backend but another way to use what `auto` takes: what is added to the name of the case.
WAYS = {"undivided packed": ", packed", "undivided padded": ", padding kept"}


def summaries(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """(op, group, a figure for each of COLUMNS): of `auto` where it was measured, for it is what a user gets, and of
    other ways to use it on lines of their own."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if (
            row.op != "scaling"
            and row.timed
            and row.ours
            and math.isfinite(row.ratio)
            and (row.provider in WAYS or row.provider == chosen(rows, row.op))
        ):
            column, extra = MODES.get(row.mode, (COLUMNS[0], ""))
            key = row.op, f"{row.group}{extra}{WAYS.get(row.provider, '')}"
            cells.setdefault(key, {}).setdefault(column, []).append(row.ratio)
    for (op, group), ratios in cells.items():
        yield (op, group, *(figure(ratios.get(name, [])) for name in COLUMNS))


def chosen(rows: Sequence[Row], op: str) -> str:
    own = dict.fromkeys(row.provider for row in rows if row.op == op and row.ours and row.provider not in WAYS)
    return next((name for name in own if name.endswith(" auto")), next(iter(own), ""))


def figure(ratios: Sequence[float]) -> str:
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}" if ratios else ""
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})"
