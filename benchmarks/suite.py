"""All ops, by the names that the command line takes, and a run over some of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import undivided
from undivided.memory import KEEP, set_allocator

from .attention import ATTENTION
from .attention_decode import ATTENTION_DECODE
from .ceilings import Ceilings, drift, measure_ceilings
from .feed_forward import FEED_FORWARD
from .generation import GENERATION
from .huggingface import HUGGINGFACE
from .layer_norm import LAYER_NORM, RMS_NORM
from .layers import LAYERS
from .machine import busy
from .op import Op
from .rotary import ROTARY
from .rows import Row
from .runner import Job, Measurement, Settings, absent_rows, measure, one_line, unmeasured
from .scaling import SCALING
from .training_step import TRAINING_STEP

ALL = (
    ATTENTION,
    ATTENTION_DECODE,
    LAYER_NORM,
    RMS_NORM,
    FEED_FORWARD,
    ROTARY,
    LAYERS,
    TRAINING_STEP,
    GENERATION,
    HUGGINGFACE,
    SCALING,
)
PUBLIC = {"attention_decode"}  # ops of the package that not every version has


def available() -> dict[str, Op]:
    return {op.name: op for op in ALL if op.name not in PUBLIC or hasattr(undivided, op.name)}


OPS = available()
GROUPS = ("cpu", "all")  # every op: on the CPU, or where torch would run it
DRIFT = 1.15  # ceilings measured before and after a run may differ by this factor before we say so


@dataclass
class Run:
    """The rows of each op, what was measured on, and what a reader must know before believing them."""

    ceilings: Ceilings
    rows: dict[str, list[Row]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)  # cases for which there was no time
    lost: str = ""  # why nothing more can be measured

    def grows(self, name: str) -> bool:
        return OPS[name].grows

    @property
    def failed(self) -> list[Row]:
        """Our own rows that are wrong or broke."""
        return [
            row
            for rows in self.rows.values()
            for row in rows
            if row.ours and (row.status == "wrong" or row.status.startswith("failed"))
        ]


def find(names: Sequence[str]) -> list[Op]:
    """The ops called `names`.

    Raises:
        ValueError: a name is unknown; the text lists those that are allowed.
    """
    missing = [op.name for op in ALL if op.name in names and op.name not in OPS]
    if missing:
        raise ValueError(f"this version of the package has no undivided.{missing[0]}, so there is nothing to time")
    unknown = [name for name in names if name not in OPS and name not in GROUPS]
    if unknown:
        allowed = ", ".join((*OPS, *GROUPS, "compare", "readme"))
        raise ValueError(f"no benchmark is called {unknown[0]!r}; allowed: {allowed}")
    if any(name in GROUPS for name in names) or not names:
        return list(OPS.values())
    return [OPS[name] for name in dict.fromkeys(names)]


def default_backends(device: str, quick: bool) -> tuple[str, ...]:
    """`auto` is a row of its own: it is what a user gets."""
    own = ("cuda", "triton") if device == "cuda" else ("cpu",)
    return own if quick else (*own, "auto")


def run(
    ops: Sequence[Op],
    device: str,
    backends: Sequence[str],
    settings: Settings,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
    finished: Callable[[Op, list[Row]], None] = lambda op, rows: None,
    measured: Callable[[Op, list[Row]], None] = lambda op, rows: None,
    only: Sequence[str] = (),
) -> Run:
    """Measures all cases, or those with one of `only` in their name; `finished` gets the rows of each op as soon as it
    is done, with several visits after the last one, `measured` what there is of them after each case.

    Raises: ValueError where no case has one.
    """
    cases = {op.name: op.cases(settings.quick, device) for op in ops}

    def chosen(case: Any) -> bool:
        return not only or any(text in case.name for text in only)

    plan = {op.name: [(case, mode) for case in cases[op.name] if chosen(case) for mode in op.modes(case)] for op in ops}
    if not any(plan.values()):
        names = ", ".join(case.name for op in ops for case in cases[op.name])
        raise ValueError(f"no case has {' or '.join(map(repr, only))} in its name; there are: {names}")
    begun = time.monotonic()
    reason = busy()
    set_allocator(*KEEP)  # or a result of some MiB would cost page faults in one call and none in the next
    outcome = Run(measure_ceilings(device), warnings=[] if reason is None else [reason])
    done, total = 0, sum(len(pairs) for pairs in plan.values())
    visited: list[Measurement] = []
    for op in ops:
        rows = absent_rows(op, op.providers(device, backends), outcome.ceilings)
        gc.collect()
        gc.freeze()  # the modules of all peers: each collection before a measurement would walk through them
        start = time.monotonic()
        for case, mode in plan[op.name]:
            job = Job(op, case, mode, op.providers(device, backends), outcome.ceilings, settings)
            if time.monotonic() - start > settings.budget:
                outcome.late.append(job.name)
                rows += unmeasured(job, f"not begun: {settings.budget:.0f} seconds of this op were over")
            elif outcome.lost:
                rows += unmeasured(job, f"not begun: {outcome.lost}")
            else:
                progress(job.name, done, total)
                rows += measured_or_why(outcome, visited, job)
            done += 1
            measured(op, rows)
        outcome.rows[op.name] = rows
        if settings.visits == 1:
            finished(op, rows)
    gc.freeze()  # the inputs of all cases as well
    for visit in range(2, 2 * settings.visits):
        for one in visited:
            if one.due(visit) and time.monotonic() - begun < settings.longest:
                progress(f"{one.job.name}, visit {visit}", done, total)
                one.visit()
    if settings.visits > 1:
        for op in ops:
            finished(op, outcome.rows[op.name])
    gc.unfreeze()
    progress("ceilings again", done, total)
    outcome.warnings += list(remarks(outcome, outcome.ceilings if outcome.lost else measure_ceilings(device)))
    return outcome


def measured_or_why(outcome: Run, visited: list[Measurement], job: Job) -> list[Row]:
    """The rows of a case, which joins `visited` where it will be visited again. On a GPU nothing that goes wrong in
    one ends the run: too little was had of the machine."""
    if job.device == "cpu":
        found = measure(job)
        if job.settings.visits > 1:  # or the tensors of all cases would stay
            visited.append(found)
        return found.rows
    try:
        rows = measure(job).rows
    except Exception as error:
        rows = unmeasured(job, f"{type(error).__name__}: {one_line(error)}")
        outcome.warnings.append(f"{job.name} was not measured: {one_line(error)}")
    try:
        torch.cuda.synchronize()
    except Exception as error:  # an illegal access stays with the process
        outcome.lost = f"the GPU answers no more after {job.name}: {one_line(error)}"
    return rows


def remarks(outcome: Run, after: Ceilings) -> Iterator[str]:
    if outcome.lost:
        yield outcome.lost
    if outcome.late:
        yield f"{len(outcome.late)} cases were not begun in the time that was given, from {outcome.late[0]}"
    factor = drift(outcome.ceilings, after)
    if factor > DRIFT:
        yield f"the ceilings moved by a factor of {factor:.2f} during the run: the machine was not at rest"
    timed = [row for rows in outcome.rows.values() for row in rows if row.timed]
    noisy = sum(row.noisy for row in timed)
    if noisy:
        yield f"{noisy} of {len(timed)} rows are noisy (p80 more than 1.25 times p20), marked ~"


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
