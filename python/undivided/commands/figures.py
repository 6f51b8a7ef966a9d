"""Figures of the commands. matplotlib is optional: where it is missing, the caller is told what to install."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..training.claims import Panel
from ..training.log import read_log
from . import CommandError

CURE = "matplotlib is not installed, so no figure was drawn: pip install 'undivided[plots]'"

MOST_NAMED = 64  # symbols whose names are legible beside a map


def drawable() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def save(figure: Any, path: Path) -> Path:
    """Writes the figure and gives the path that it has: a name without an ending gets .png.

    Raises:
        CommandError: the path is that of a folder.
    """
    if path.is_dir():
        raise CommandError(f"{path} is a folder, a figure needs the name of a file")
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return path


def new_figure(width: float, height: float) -> Any:
    # The object is made directly: pyplot would look for a screen and keep every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def attention_maps(path: Path, maps: Sequence[tuple[Sequence[str], Sequence[str], torch.Tensor]]) -> Path:
    """Draws one map an input.

    Args:
        maps: (inputs, outputs, weights); weights (outputs, inputs), each row sums to 1.
    """
    figure = new_figure(4.0 * len(maps), 4.0)
    for number, (inputs, outputs, weights) in enumerate(maps, start=1):
        axes = figure.add_subplot(1, len(maps), number)
        axes.imshow(weights.cpu().numpy(), cmap="magma", vmin=0.0, aspect="auto")
        if max(len(inputs), len(outputs)) <= MOST_NAMED:
            upright = all(len(one) <= 2 for one in inputs)
            axes.set_xticks(range(len(inputs)), inputs, rotation=0 if upright else 90)
            axes.set_yticks(range(len(outputs)), outputs)
        axes.set_xlabel("symbol attended to")
        axes.set_ylabel("symbol that attends")
    return save(figure, path)


def panels(path: Path, plots: Sequence[Panel], rows: Sequence[Any]) -> Path:
    """Draws the plots side by side; a value that is None, or is 0 on a logarithmic axis, is left out."""
    figure = new_figure(6.0 * len(plots), 4.0)
    for number, plot in enumerate(plots, start=1):
        axes = figure.add_subplot(1, len(plots), number)
        for line in dict.fromkeys(getattr(row, plot.line) for row in rows):
            own = [(getattr(row, plot.x), getattr(row, plot.y)) for row in rows if getattr(row, plot.line) == line]
            kept = [(x, y) for x, y in own if y is not None and not (plot.log_y and y <= 0)]
            # A few points are marked, so that one alone is seen.
            axes.plot([x for x, _ in kept], [y for _, y in kept], label=line, marker=None if len(own) > 50 else "o")
        if axes.dataLim.width > 0:  # a logarithmic axis refuses to be without a point
            if plot.log_x:
                points = sorted({getattr(row, plot.x) for row in rows})
                axes.set_xscale("log")
                axes.set_xticks(points, [str(point) for point in points])
                axes.minorticks_off()
            axes.set_yscale("log" if plot.log_y else "linear")
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        axes.legend()
    return save(figure, path)


def learning_curve(path: Path, log: Path, metric: str) -> Path:
    """Draws the training loss and the development score of one run over its minutes."""
    records = read_log(log)
    losses = [(one["seconds"] / 60, one["loss"]) for one in records if one["kind"] == "train"]
    scores = [(one["seconds"] / 60, one[metric]) for one in records if one["kind"] == "dev"]
    figure = new_figure(7.0, 4.0)
    left = figure.add_subplot(1, 1, 1)
    left.plot(*zip(*losses, strict=True), color="tab:blue", linewidth=1)
    left.set_xlabel("minutes")
    left.set_ylabel("training loss per symbol", color="tab:blue")
    left.set_ylim(bottom=0)
    right = left.twinx()
    right.plot(*zip(*scores, strict=True), color="tab:red", marker="o")
    right.set_ylabel(f"development {metric.upper()} %", color="tab:red")
    right.set_ylim(0, 100)
    return save(figure, path)
