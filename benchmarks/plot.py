"""Plots of result files, with logarithmic axes and the ceilings drawn. matplotlib is optional."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rows import Row
from .table import blocks

CURE = "matplotlib is not installed, so no plot was drawn: pip install 'undivided[plots]'"
OURS, PEERS = ("#d62728", "#ff9896", "#8c564b", "#e377c2"), ("#1f77b4", "#7f7f7f", "#2ca02c", "#9467bd", "#17becf")
NEAR = 0.005  # of its ceiling: further away a mark would only squeeze the picture


def drawable() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw_op(op: Any, rows: Sequence[Row], path: Path) -> Path | None:
    """The picture that suits the op; None when nothing was timed."""
    one = next((row for row in rows if row.timed), None)
    if one is None:
        return None
    title = f"{op.name} on {one.device}, {one.threads} threads, torch {one.torch}, {one.date}"
    if op.grows:
        return draw_scaling(rows, title, path, op.axis)
    return draw(rows, title, path)


def draw(rows: Sequence[Row], title: str, path: Path) -> Path | None:
    """One line a case and mode: each provider's median with its range, and the time that the ceiling allows.

    None when no row has a time.
    """
    lines = [(key, [row for row in group if row.timed]) for key, group in blocks(rows)]
    lines = [(key, group) for key, group in lines if group]
    if not lines:
        return None
    figure = new_figure(9.0, 1.3 + 0.25 * len(lines))
    axes = figure.add_subplot(1, 1, 1)
    axes.set_xscale("log")
    colours = palette([row for _, group in lines for row in group])
    for height, (_, group) in enumerate(lines):
        axes.axhline(height, color="#eeeeee", linewidth=0.6, zorder=0)
        for row in group:
            axes.plot([row.p20, row.p80], [height, height], color=colours[row.provider], linewidth=1.5)
            axes.plot(row.median, height, marker_of(row), color=colours[row.provider], markersize=5)
        if max(row.of_ceiling for row in group) > NEAR:
            floor = group[0].median * group[0].of_ceiling
            axes.plot(floor, height, "|", color="black", markersize=11, markeredgewidth=1.5)
    axes.set_yticks(range(len(lines)), [f"{case}, {short(mode)}" for (case, mode), _ in lines], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("seconds, median and 20th to 80th percentile; | is what the ceiling allows")
    axes.set_title(title, fontsize=9, loc="left")
    legend(axes, colours, [row for _, group in lines for row in group])
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return path


def draw_scaling(rows: Sequence[Row], title: str, path: Path, axis: str) -> Path | None:
    """Time and peak memory against the size, a panel a mode, with the slope of each line in the legend."""
    from .scaling import exponent

    timed = [row for row in rows if row.timed]
    groups = sorted({(row.group, row.mode) for row in timed})
    if not groups:
        return None
    figure = new_figure(10.0, 3.6 * len(groups))
    colours = palette(timed)
    for line, (group, mode) in enumerate(groups):
        for column, field in enumerate(("median", "memory")):
            axes = figure.add_subplot(len(groups), 2, 2 * line + column + 1)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            own = [row for row in timed if (row.group, row.mode) == (group, mode)]
            for name in dict.fromkeys(row.provider for row in own):
                points = [(row.size, getattr(row, field)) for row in own if row.provider == name]
                points = [(x, y) for x, y in points if math.isfinite(y) and y > 0]
                if points:
                    slope = exponent(points)
                    label = name if math.isnan(slope) else f"{name}: exponent {slope:.2f}"
                    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colours[name], label=label)
            if field == "median":
                floor = sorted({(row.size, row.median * row.of_ceiling) for row in own})
                axes.plot(*zip(*floor, strict=True), color="black", linestyle=":", label="ceiling")
            axes.set_xlabel(axis)
            axes.set_ylabel("seconds" if field == "median" else "peak bytes")
            axes.set_title(f"{group}, {short(mode)}", fontsize=8, loc="left")
            axes.legend(fontsize=6)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return path


def new_figure(width: float, height: float) -> Any:
    # The object is made directly: pyplot would look for a screen and keep every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def palette(rows: Sequence[Row]) -> dict[str, str]:
    """A colour for each provider: reds are ours."""
    names = dict.fromkeys((row.provider, row.ours) for row in rows)
    own = [name for name, ours in names if ours]
    others = [name for name, ours in names if not ours]
    colours = {name: OURS[i % len(OURS)] for i, name in enumerate(own)}
    return colours | {name: PEERS[i % len(PEERS)] for i, name in enumerate(others)}


def marker_of(row: Row) -> str:
    return "D" if row.ours else "o"


def short(mode: str) -> str:
    return mode.replace("_", " and ")


def legend(axes: Any, colours: dict[str, str], rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    markers = {row.provider: marker_of(row) for row in rows}
    handles = [
        Line2D([], [], color=colour, marker=markers[name], linestyle="", label=name) for name, colour in colours.items()
    ]
    axes.legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
