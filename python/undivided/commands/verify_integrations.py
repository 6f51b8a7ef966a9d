"""`undivided verify --integrations`: transformers' models on our kernels against their eager attention, by family."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ..testing import Verdict
from . import CommandError


@dataclass
class Row:
    """One check of one family: the result that came nearest to what it may be, or passed it."""

    family: str
    check: str
    worst: str
    error: float
    budget: float
    ok: bool


def run(args: argparse.Namespace) -> int:
    if args.op is not None:
        raise CommandError(f"--integrations checks whole models: --op {args.op} has no meaning beside it")
    if args.jobs != 1:
        raise CommandError(f"--integrations runs in one process: --jobs {args.jobs} has no meaning beside it")
    rows = []
    for row in work(args.quick, args.device, args.backend or "auto"):
        rows.append(row)
        if not args.json:
            print(line(row), flush=True)
    failed = [row for row in rows if not row.ok]
    if args.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        print()
    else:
        print("\n".join(matrix(rows)))
        print(f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def work(quick: bool, device: str, backend: str) -> Iterator[Row]:
    """Everything that a family is held to; with `quick` a few families."""
    from ..integrations.huggingface import register

    register(backend)  # names the cure where transformers is missing
    import transformers

    from ..testing.huggingface import checks
    from ..testing.huggingface_models import CORE, FAMILIES

    transformers.logging.set_verbosity_error()
    for family in FAMILIES:
        if quick and family.name not in CORE:
            continue
        for name, check in checks(family, device, backend):
            yield summarise(family.name, name, check())


def summarise(family: str, name: str, verdicts: list[Verdict]) -> Row:
    worst = max(verdicts, key=lambda v: (not v.ok, v.error / max(v.budget, 1e-300)))
    return Row(family, name, worst.name, float(worst.error), float(worst.budget), all(v.ok for v in verdicts))


def line(row: Row) -> str:
    verdict = "ok" if row.ok else "FAILED"
    return f"{row.family:<18}{row.check:<24}error {row.error:8.2e}  budget {row.budget:8.2e}  {verdict:<7} {row.worst}"


def matrix(rows: list[Row]) -> list[str]:
    """A line a family, a column a check."""
    names = list(dict.fromkeys(row.check for row in rows))
    cells = {(row.family, row.check): "ok" if row.ok else "FAILED" for row in rows}
    lines = ["", " " * 18 + "".join(f"{name.split()[0]:<12}" for name in names)]
    lines.append(f"{'family':<18}" + "".join(f"{name.split()[1]:<12}" for name in names))
    for family in dict.fromkeys(row.family for row in rows):
        lines.append(f"{family:<18}" + "".join(f"{cells.get((family, name), '-'):<12}" for name in names))
    return lines
