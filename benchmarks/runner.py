"""Measures one case: everybody passes the gate, or has a line that says why not; then all are timed together, once or
in several visits."""

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
    """`seconds` for the samples of one case, in all of its visits. compiles: whether providers that go through
    torch.compile run. visits: a run comes to every case so many times.

    budget: after so many seconds of one op its other cases are not begun. timed: False leaves it at the gate, which
    also fills the caches of compilers.
    """

    seconds: float = 2.0
    quick: bool = False
    compiles: bool = True
    budget: float = math.inf
    timed: bool = True
    visits: int = 1


class Measurement:
    """One case in one mode: `rows`, one for each provider in their order, from the samples of all visits so far.

    Made, everybody has passed the gate or has a line that says why not; a visit times all of them together. What moves
    a ratio on a CPU is often where the inputs lie in memory and what else the machine does, and stays for the whole of
    a visit: a later visit has inputs of its own.
    """

    def __init__(
        self,
        op: Op,
        case: Any,
        mode: str,
        providers: Sequence[Provider | Absent],
        ceilings: Ceilings,
        settings: Settings,
    ) -> None:
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # or the limit of recompilations of one function is soon reached
        self.op, self.case, self.mode, self.ceilings, self.settings = op, case, mode, ceilings, settings
        self.rows: list[Row] = []
        self.ready: dict[str, tuple[Provider, Runnable]] = {}
        self.times: dict[str, list[float]] = {}
        for provider in providers:
            if isinstance(provider, Absent):
                continue
            row = row_of(op, case, mode, provider, ceilings, settings)
            self.rows.append(row)
            work = admit(op, case, mode, provider, ceilings.kind, settings, row)
            if work is not None and settings.timed:
                try:
                    row.memory = peak_memory(work, ceilings.kind)
                    self.ready[provider.name] = provider, work
                except Exception as error:
                    row.status = broken(error)

    def visit(self) -> None:
        """Who breaks while it is timed has a line that says so, and no time."""
        if self.times:
            self.build_again()
        for name, taken in self.samples().items():
            self.times.setdefault(name, []).extend(taken)
        fill(self.rows, self.times, self.op, self.case, self.mode, self.ceilings)

    def samples(self) -> dict[str, list[float]]:
        visits = self.settings.visits
        queued = self.op.queued and not self.case.group.startswith(OVERHEAD)
        while self.ready:
            work = {name: work for name, (_, work) in self.ready.items()}
            try:
                return interleaved(
                    work, self.ceilings.kind, self.settings.seconds / visits, queued=queued, visits=visits
                )
            except Broke as broke:
                self.drop(broke.name, broken(broke.__cause__))
        return {}

    def build_again(self) -> None:
        """Same work, other memory; what goes through torch.compile would be compiled anew and stays."""
        case, mode, device = self.case, self.mode, self.ceilings.kind
        for name, (provider, _) in list(self.ready.items()):
            if not provider.compiles:
                self.ready[name] = provider, self.op.build(provider.make(case, device), case, mode, device)

    def drop(self, name: str, status: str) -> None:
        del self.ready[name]
        self.times.pop(name, None)
        (row,) = (row for row in self.rows if row.provider == name)
        row.status = status
        row.median = row.p20 = row.p80 = row.of_ceiling = row.ratio = math.nan
        row.repeats, row.ceiling, row.noisy = 0, "", False


def measure(
    op: Op, case: Any, mode: str, providers: Sequence[Provider | Absent], ceilings: Ceilings, settings: Settings
) -> Measurement:
    """The measurement after its first visit."""
    measurement = Measurement(op, case, mode, providers, ceilings, settings)
    measurement.visit()
    return measurement


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
        row.copy, row.matmul, row.ratio = ceilings.copy(work.bytes), ceilings.matmul[case.dtype], math.nan
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
