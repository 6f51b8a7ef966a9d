"""One HTML page with every table and plot, that needs no other file and no network."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import units
from .rows import Row
from .scaling import exponent
from .table import COLUMNS, absences, blocks, cells

if TYPE_CHECKING:
    from .suite import Run

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; width: 100% }
th, td { text-align: right; padding: .15em .7em; white-space: nowrap }
th:first-child, td:first-child, td.why { text-align: left }
th { border-bottom: 2px solid #888 } tr.case td { font-weight: 600; padding-top: .7em; border-bottom: 1px solid #ccc }
tr.ours { background: #fdf1ef } tr.none { color: #777 } tr.bad { color: #b00; font-weight: 600 }
.warning { background: #fff6d5; padding: .5em 1em } img { max-width: 100% }
"""


def page(outcome: Run, pictures: Mapping[str, Path]) -> str:
    """The whole page. pictures: of an op, a PNG file, which is copied into the page."""
    parts = [f"<h1>Benchmarks on {text(outcome.ceilings.device)}</h1>", facts(outcome)]
    parts += [f'<p class="warning">{text(warning)}</p>' for warning in outcome.warnings]
    for name, rows in outcome.rows.items():
        parts.append(f"<h2>{text(name)}</h2>")
        if name in pictures:
            data = base64.b64encode(pictures[name].read_bytes()).decode()
            parts.append(f'<img alt="{text(name)}" src="data:image/png;base64,{data}">')
        parts += [growth(rows) if outcome.grows(name) else "", table(rows)]
        parts += [f"<p>{text(line)}</p>" for line in absences(rows)]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>undivided benchmarks</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def text(value: object) -> str:
    return html.escape(str(value))


def facts(outcome: Run) -> str:
    one = next((row for rows in outcome.rows.values() for row in rows if row.case != "all"), None)
    about = (
        "" if one is None else f"torch {one.torch}, {one.threads} threads, commit {one.commit or 'unknown'}, {one.date}"
    )
    ceilings = outcome.ceilings
    copies = ", ".join(f"{units.size(size)}: {units.three(rate / 1e9)}" for size, rate in ceilings.copies.items())
    matmuls = ", ".join(f"{dtype}: {units.three(rate / 1e9)}" for dtype, rate in ceilings.matmul.items())
    return (
        f"<p>{text(about)}. Ceilings of this run: copies in GB/s by bytes moved ({text(copies)}), matmul in GFLOP/s "
        f"({text(matmuls)}).</p><p>Every provider passed its error budget against the float64 reference in the same "
        "process before it was timed. Samples are interleaved; times are medians with the 20th and 80th percentile. "
        "Ratio: the best peer's median over this one's, so above 1 is faster than every peer.</p>"
    )


def table(rows: Sequence[Row]) -> str:
    lines = ["<table><tr>", *(f"<th>{name}</th>" for name in COLUMNS), "</tr>"]
    for (case, mode), group in blocks(row for row in rows if row.case != "all"):
        title = f"{case}, {mode.replace('_', ' and ')}"
        lines.append(f'<tr class="case"><td colspan="{len(COLUMNS)}">{text(title)}</td></tr>')
        for row in sorted(group, key=lambda row: row.median if row.timed else math.inf):
            kind = "ours" if row.ours else "peer"
            if not row.timed:
                kind = "bad" if row.status == "wrong" or row.status.startswith("failed") else "none"
            words = cells(row)
            wide = f' colspan="{len(COLUMNS) - 1}" class="why"' if len(words) == 2 else ""
            columns = [f"<td>{text(words[0])}</td>", *(f"<td{wide}>{text(word)}</td>" for word in words[1:])]
            lines.append(f'<tr class="{kind}">' + "".join(columns) + "</tr>")
    return "".join([*lines, "</table>"])


def growth(rows: Sequence[Row]) -> str:
    """The exponents with which the time and the memory of each series grow."""
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.timed:
            series.setdefault((row.group, row.mode, row.provider), []).append(row)
    lines = []
    for (group, mode, provider), points in series.items():
        if len({row.size for row in points}) < 3:
            continue
        time = exponent([(row.size, row.median) for row in points])
        memory = exponent([(row.size, row.memory) for row in points if row.memory > 0])
        lines.append(
            f"<tr><td>{text(provider)}</td><td>{text(group)}, {text(mode)}</td>"
            f"<td>{units.three(time)}</td><td>{units.three(memory)}</td></tr>"
        )
    if not lines:
        return ""
    head = "<tr><th>provider</th><th>series</th><th>exponent of time</th><th>of peak memory</th></tr>"
    return f"<table>{head}{''.join(lines)}</table>"
