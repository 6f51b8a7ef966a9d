"""Measures one case: everybody passes the gate, or has a line that says why not; then all are timed together."""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch

from .ceilings import Ceilings
from .clock import Broke, interleaved, quantile
from .gate import budget_of
from .machine import commit
from .memory import peak_memory
from .op import OVERHEAD, Absent, Apart, Op, Provider, Runnable
from .rows import Row

NOISY = 1.25  # p80 over p20: more, and the machine was not at rest


@dataclass(frozen=True)
class Settings:
    """`seconds` for the samples of one case. compiles: whether providers that go through torch.compile run.

    budget: after so many seconds of one op its other cases are not begun. timed: False leaves it at the gate, which
    also fills the caches of compilers.
    """

    seconds: float = 2.0
    quick: bool = False
    compiles: bool = True
    budget: float = math.inf
    timed: bool = True


def measure(
    op: Op, case: Any, mode: str, providers: Sequence[Provider | Absent], ceilings: Ceilings, settings: Settings
) -> list[Row]:
    """One row for each provider, in their order."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # or the limit of recompilations of one function is soon reached
    rows, ready = [], {}
    for provider in providers:
        if isinstance(provider, Absent):
            continue
        row = row_of(op, case, mode, provider, ceilings, settings)
        rows.append(row)
        work = admit(op, case, mode, provider, ceilings.kind, settings, row)
        if work is not None and settings.timed:
            ready[provider.name] = work
            try:
                row.memory = peak_memory(work, ceilings.kind)
            except Exception as error:
                row.status = broken(error)
                del ready[provider.name]
    fill(rows, times_of(rows, ready, op, case, ceilings.kind, settings), op, case, mode, ceilings)
    return rows


def row_of(op: Op, case: Any, mode: str, provider: Provider, ceilings: Ceilings, settings: Settings) -> Row:
    """All that is known before anything ran."""
    row = Row(op.name, case.name, mode, provider.name, provider.version, "ok", case.dtype, case.group, case.size)
    row.ours, row.quick, row.threads = provider.ours, settings.quick, torch.get_num_threads()
    row.device, row.commit, row.date = ceilings.device, commit(), date.today().isoformat()
    return row


def unmeasured(
    op: Op,
    case: Any,
    mode: str,
    providers: Sequence[Provider | Absent],
    ceilings: Ceilings,
    settings: Settings,
    why: str,
) -> list[Row]:
    """One row for each provider of a case that was not begun."""
    rows = [row_of(op, case, mode, one, ceilings, settings) for one in providers if isinstance(one, Provider)]
    for row in rows:
        row.status = f"cannot: {why}"
    return rows


def times_of(
    rows: list[Row], ready: dict[str, Runnable], op: Op, case: Any, device: str, settings: Settings
) -> dict[str, list[float]]:
    """The samples of those that passed the gate; who breaks while it is timed has a line that says so."""
    queued = op.queued and not case.group.startswith(OVERHEAD)
    while ready:
        try:
            return interleaved(ready, device, settings.seconds, queued=queued)
        except Broke as broke:
            del ready[broke.name]
            (row,) = (row for row in rows if row.provider == broke.name)
            row.status = broken(broke.__cause__)
    return {}


def broken(error: BaseException | None) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "cannot: out of memory"
    return f"failed: {type(error).__name__}: {one_line(error)}"


def admit(
    op: Op, case: Any, mode: str, provider: Provider, device: str, settings: Settings, row: Row
) -> Runnable | None:
    """What to time, once its results are within their budget; otherwise None, and row.status says why."""
    from undivided import BackendRefused

    if provider.slow and settings.quick:
        row.status = "cannot: too slow for a quick run"
        return None
    if provider.compiles and not settings.compiles:
        row.status = "cannot: compiling is left out of this run"
        return None
    try:
        work = op.build(provider.make(case, device), case, mode, device)
        with warnings.catch_warnings():  # torch warns of each kernel that it does not take
            warnings.simplefilter("ignore")
            outputs = work.check() if isinstance(work, Apart) else work()
        outputs = outputs if op.checked is None else op.checked(case, mode, outputs)
        row.error, row.budget = budget_of(outputs, *op.expected(case, mode, device))
    except NotImplementedError as reason:
        row.status = f"cannot: {one_line(reason)}"
    except BackendRefused as refusal:
        row.status = f"cannot: {objection(refusal, provider)}"
    except Exception as error:  # a broken peer must not end the others' run; one of ours makes the run fail
        row.status = broken(error)
    else:
        if row.error <= row.budget:
            return work
        row.status = "wrong"
    return None


def fill(rows: list[Row], times: dict[str, list[float]], op: Op, case: Any, mode: str, ceilings: Ceilings) -> None:
    """Medians, spreads, fractions of the ceiling and ratios."""
    work = op.work(case, mode)
    floor, name = ceilings.floor(work, case.dtype)
    for row in rows:
        row.operations, row.bytes, row.items = work.operations, work.bytes, work.items
        row.copy, row.matmul = ceilings.copy(work.bytes), ceilings.matmul[case.dtype]
        taken = times.get(row.provider)
        if taken:
            row.median, row.repeats = statistics.median(taken), len(taken)
            row.p20, row.p80 = quantile(taken, 0.2), quantile(taken, 0.8)
            row.of_ceiling, row.ceiling = floor / row.median, name
            row.noisy = row.p80 > NOISY * row.p20
    peers = [row for row in rows if row.timed and not row.ours]
    if not peers:
        return
    best = times[min(peers, key=lambda row: row.median).provider]
    for row in rows:
        if row.timed:
            row.ratio = paired_ratio(best, times[row.provider])


def paired_ratio(peer: Sequence[float], own: Sequence[float]) -> float:
    """The median over the rounds of peer / own: what slows the machine for a while slows both samples of a round, and
    drops out, whereas it may move one of two medians and not the other. Fewer samples are those of the
    first rounds."""
    return statistics.median(theirs / ours for theirs, ours in zip(peer, own, strict=False))


def absent_rows(op: Op, providers: Sequence[Provider | Absent], ceilings: Ceilings) -> list[Row]:
    """One line for each provider that is not on this machine, whatever the case."""
    return [
        Row(op.name, "all", "all", one.name, "", f"absent: {one.reason}", device=ceilings.device)
        for one in providers
        if isinstance(one, Absent)
    ]


def objection(refusal: Exception, provider: Provider) -> str:
    """What the backend itself says, out of a refusal that lists all of them."""
    lines = [line.strip() for line in str(refusal).splitlines()]
    own = [
        line.removeprefix(provider.backend or "").strip() for line in lines if line.split()[:1] == [provider.backend]
    ]
    return own[0] if own else lines[0]


def one_line(error: object, longest: int = 160) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= longest else text[: longest - 3] + "..."
