"""The README's performance section, written from the committed result files."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from .compare import known_ops
from .rows import Row, read_csv
from .scaling import exponent
from .summary import COLUMNS, summaries

BEGIN = "<!-- bench:begin -->"
END = "<!-- bench:end -->"
HEADING = "## Performance"
NOTHING = "No results are committed yet; `undivided bench` measures on your machine."


def update(readme: Path, results: Path) -> bool:
    """Writes the section between the two comments, which are put at the end where a README has none.

    True when the file changed.

    Raises:
        ValueError: only one of the comments is there, or they are in the wrong order.
    """
    before = readme.read_text(encoding="utf-8")
    after = replaced(before, section(results))
    if after != before:
        readme.write_text(after, encoding="utf-8")
    return after != before


def replaced(text: str, body: str) -> str:
    if text.count(BEGIN) > 1 or text.count(END) > 1 or (BEGIN in text) != (END in text):
        raise ValueError(f"the README must have each of these once, or none of them: {BEGIN} and {END}")
    if BEGIN not in text:
        return f"{text.rstrip()}\n\n{HEADING}\n\n{BEGIN}\n{body}\n{END}\n"
    head, rest = text.split(BEGIN)
    if END not in rest:
        raise ValueError(f"{END} stands before {BEGIN} in the README")
    return f"{head}{BEGIN}\n{body}\n{END}{rest.split(END)[1]}"


def section(results: Path) -> str:
    """Markdown: a table for each device."""
    parts, known = [], tracked(results)
    for folder in sorted(path for path in results.glob("*") if path.is_dir()):
        rows = list(committed(folder, known))
        if any(row.timed and row.ours for row in rows):
            parts.append(device_part(rows, folder.name))
    return "\n\n".join(parts) or NOTHING


def committed(folder: Path, known: set[Path] | None) -> Iterator[Row]:
    """The rows of the ops' own files: of the full run where there is one, else of the quick one."""
    for op in known_ops():
        for path in (folder / f"{op}.csv", folder / f"{op}.quick.csv"):
            if path.is_file() and (known is None or path.resolve() in known):
                yield from read_csv(path)
                break


def tracked(folder: Path) -> set[Path] | None:
    """The files below `folder` that git has or will commit; None outside a repository, where all files count.

    A run in a checkout leaves files there that nobody means to publish.
    """
    try:
        command = ["git", "-C", str(folder), "ls-files", "-z"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {(folder / name).resolve() for name in names if name}


def left_out(results: Path) -> list[Path]:
    """Result files of ops that are there and that git does not have: the section does not speak of them."""
    known = tracked(results)
    files = (path for op in known_ops() for path in sorted(results.glob(f"*/{op}.*csv")))
    return [] if known is None else [path for path in files if path.resolve() not in known]


def device_part(rows: Sequence[Row], folder: str) -> str:
    timed = [row for row in rows if row.timed]
    words = {
        name: ", ".join(sorted({str(getattr(row, name)) for row in timed})) for name in ("threads", "torch", "date")
    }
    peers = ", ".join(dict.fromkeys(row.provider for row in timed if not row.ours))
    lines = [
        f"{timed[0].device}, {words['threads']} threads, torch {words['torch']}, {words['date']}. How many times "
        f"faster than the best of the peers ({peers}) in each case: geometric mean, and in brackets the lowest case. "
        "Every result passed its error budget first. All rows with their times, and plots, are in "
        f"[benchmarks/results/{folder}](benchmarks/results/{folder}); `benchmarks/README.md` says how it is measured.",
        "",
        "| op | case | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
        *(f"| {' | '.join(cells)} |" for cells in summaries(timed)),
        "",
        *growth(timed),
    ]
    return "\n".join(lines).rstrip()


def growth(rows: Sequence[Row]) -> Iterator[str]:
    """The exponents of attention's time and memory over the length, ours and torch's."""
    scaling = [row for row in rows if row.op == "scaling"]
    if not scaling:
        return
    longest = max(int(row.size) for row in scaling)
    yield f"Attention's time and peak memory up to {longest} keys grow as seqlen to the power of:"
    yield ""
    yield "| case | provider | time | memory |"
    yield "|---|---|---|---|"
    for key in dict.fromkeys((row.group, row.mode, row.provider) for row in scaling):
        own = [row for row in scaling if (row.group, row.mode, row.provider) == key]
        time = exponent([(row.size, row.median) for row in own])
        memory = exponent([(row.size, row.memory) for row in own if row.memory > 0])
        yield f"| {key[0]}, {key[1].replace('_', ' and ')} | {key[2]} | {time:.2f} | {memory:.2f} |"
