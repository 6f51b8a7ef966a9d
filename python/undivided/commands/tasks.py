"""The tasks, and what was measured with them: a table of scores and one for each claim, from the result files."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ..benchmarks.machine import checkout
from ..benchmarks.readme import tracked
from ..tasks import GROUPS, TASKS, Task
from . import CommandError
from .claims_page import claims_page
from .result_rows import newest, read_rows
from .sections import read_sections, write_sections

PUBLISHED = 5  # rows beside ours, the best ones; `undivided evaluate` prints all
NOTHING = "No scores are committed yet; `undivided evaluate` prints those of a run."


@dataclass(frozen=True)
class Line:
    """A trained model in the table, or the average over the tasks of a group of models trained alike."""

    name: str
    scores: Mapping[str, float]
    minutes: float
    weights: int
    threads: str
    seed: str
    command: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--names", action="store_true", help="print the names alone, without the members of groups")
    what.add_argument("--table", action="store_true", help="print the committed scores as Markdown")
    what.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        help=f"write what is committed between the marks there: {' or '.join(SECTIONS)}",
    )


def run(args: argparse.Namespace) -> int:
    if args.names:
        print("\n".join(single_tasks()))
    elif args.table:
        print(scores_table(committed_results()))
    elif args.into is not None:
        write_results(args.into, committed_results())
    else:
        Console().print(overview())
    return 0


def write_results(path: Path, results: Path) -> None:
    """Writes the sections that the file has marks for.

    Raises:
        CommandError: it has none.
    """
    text = read_sections(path)
    names = [name for name in SECTIONS if f"<!-- {name}:begin -->" in text] or list(SECTIONS)[:1]
    write_sections(path, {name: SECTIONS[name](results) for name in names})


def single_tasks() -> list[str]:
    """The names of the tasks that are in no group."""
    grouped = {name for names in GROUPS.values() for name in names}
    return [name for name in TASKS if name not in grouped]


def overview() -> Table:
    drawn = Table(box=box.SIMPLE_HEAD)
    for column in ("task", "from", "what", "recipes"):
        drawn.add_column(column)
    for name in single_tasks():
        one = TASKS[name]
        drawn.add_row(name, one.shape, one.summary, ", ".join(one.recipes))
    for name, members in GROUPS.items():
        one = TASKS[members[0]]
        drawn.add_row(name, one.shape, f"{', '.join(members)}: {one.summary}, and so on", ", ".join(one.recipes))
    return drawn


def committed_results() -> Path:
    root = checkout()
    if root is None:
        raise CommandError("the result files are in a checkout of the project, this is an installed package")
    return root / "benchmarks" / "results"


def scores_table(results: Path) -> str:
    """Markdown: a table for each device of the result files that git has or will commit."""
    parts, known = [], tracked(results)
    for folder in sorted(path for path in results.glob("*") if path.is_dir()):
        lines = []
        for name in (*single_tasks(), *GROUPS):
            path = folder / f"{name}.csv"
            if path.is_file() and (known is None or path.resolve() in known):
                rows = [row for row in newest(read_rows(path)) if row["part"] == "test"]
                lines += group_lines(name, rows) if name in GROUPS else task_lines(name, rows)
        if lines:
            parts.append("\n".join([f"On `{folder.name}`:", "", *markdown(lines)]))
    return "\n\n".join(parts) or NOTHING


def task_lines(name: str, rows: Sequence[dict[str, str]]) -> list[Line]:
    """The best first."""
    lines = [line_of(name, [row], row.get("command", "")) for row in rows if row["task"] == name]
    return sorted(lines, key=lambda line: rank(TASKS[name], line.scores))


def group_lines(name: str, rows: Sequence[dict[str, str]]) -> list[Line]:
    """An average for each way of training that has every task of the group; the best first."""
    members = GROUPS[name]
    ways: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        way = row.get("command", "").replace(row["task"], name)
        ways.setdefault(way, {})[row["task"]] = row
    lines = [
        # Only a fine-tuning has a command for the group.
        line_of(name, list(own.values()), way if " finetune " in way else f"{own[members[0]]['command']}, and so on")
        for way, own in ways.items()
        if own.keys() == set(members)
    ]
    return sorted(lines, key=lambda line: rank(TASKS[members[0]], line.scores))


def line_of(name: str, rows: Sequence[dict[str, str]], command: str) -> Line:
    one = first_task(name)
    return Line(
        name=name if len(rows) == 1 else f"{name}, average of {len(rows)}",
        scores={
            column: sum(float(row[column]) for row in rows) / len(rows)
            for column in one.columns
            if all(row.get(column) for row in rows)
        },
        minutes=sum(float(row["train_seconds"]) for row in rows) / 60,
        weights=max(int(row["weights"]) for row in rows),
        threads=", ".join(dict.fromkeys(row["train_threads"] or row["train_device"] for row in rows)),
        seed=", ".join(dict.fromkeys(row["seed"] for row in rows)),
        command=command,
    )


def first_task(name: str) -> Task:
    name = name.partition(",")[0]
    return TASKS[GROUPS[name][0] if name in GROUPS else name]


def rank(one: Task, scores: Mapping[str, float]) -> float:
    score = scores.get(one.metric, -math.inf if one.higher_is_better else math.inf)
    return -score if one.higher_is_better else score


def markdown(lines: Sequence[Line]) -> Iterator[str]:
    yield "| task | score % | published | minutes | weights | threads | seed | command |"
    yield "|---|---|---|---|---|---|---|---|"
    shown: set[str] = set()
    for line in lines:
        one = first_task(line.name)
        order = [one.metric, *(column for column in line.scores if column != one.metric)]
        scores = ", ".join(f"{line.scores[column]:.2f} {metric_name(column)}" for column in order)
        figures = (f"{line.minutes:.1f}", f"{line.weights / 1e6:.2f} M", line.threads, line.seed)
        command = f"`{line.command}`" if line.command else ""
        beside = "" if line.name in shown else published(line.name)  # once for a task
        shown.add(line.name)
        yield f"| {' | '.join((line.name, scores, beside, *figures, command))} |"


def metric_name(column: str) -> str:
    return column if len(column) > 4 else column.upper()


def published(name: str) -> str:
    """Figures that others published, the best by the task's metric first; the average for a group."""
    one = first_task(name)
    members = GROUPS.get(name.partition(",")[0])
    if members is not None:
        figures = [TASKS[member].published[0] for member in members]
        average = sum(row.scores[one.metric] for row in figures) / len(figures)
        return f"{average:.2f} {figures[0].system}"
    rows = sorted(one.published, key=lambda row: rank(one, row.scores))
    return "; ".join(f"{figure(one, row.scores)} {row.system}" for row in rows[:PUBLISHED])


def figure(one: Task, scores: Mapping[str, float]) -> str:
    """A published score: the task's metric, else the first with its name."""
    if one.metric in scores:
        return f"{scores[one.metric]:.2f}"
    name, score = next(iter(scores.items()))
    return f"{score:.2f} {metric_name(name)}"


SECTIONS: Mapping[str, Callable[[Path], str]] = {"tasks": scores_table, "claims": claims_page}
