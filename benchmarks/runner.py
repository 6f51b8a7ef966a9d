"""Measures one case: everybody passes the gate, or has a line that says why not; then all are timed together, once or
in several visits."""

from __future__ import annotations

import math
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch

from .ceilings import Ceilings
from .clock import Broke, Pace, interleaved, quantile
from .gate import budget_of
from .machine import commit
from .memory import peak_memory
from .op import OVERHEAD, Absent, Apart, Op, Provider, Runnable
from .rows import Row

NOISY = 1.25  # p80 over p20: more, and the machine was not at rest
FEWEST_VISITS = 12  # of several to a case, however long one takes
SURE = 0.02  # of a ratio: who is in more doubt is visited again
BYTES = "bytes alone"  # the name of Op.bytes_alone among the samples
VISIT = 0.01, (1, 200)  # seconds of samples in one of several visits; rounds at least and at most


@dataclass(frozen=True)
class Settings:
    """`seconds` for one case: of samples, or in several visits of all that they take. compiles: whether providers that
    go through torch.compile run. visits: a run comes to every case so many times, or as often as `seconds` allow, and
    up to as many times more where a ratio is in doubt; no visit begins when the run has lasted for `longest` seconds.

    budget: after so many seconds of one op its other cases are not begun. timed: False leaves it at the gate, which
    also fills the caches of compilers.
    """

    seconds: float = 2.0
    quick: bool = False
    compiles: bool = True
    budget: float = math.inf
    timed: bool = True
    visits: int = 1
    longest: float = math.inf


@dataclass(frozen=True)
class Job:
    """One case of an op in one mode, by whom, and how."""

    op: Op
    case: Any
    mode: str
    providers: Sequence[Provider | Absent]
    ceilings: Ceilings
    settings: Settings

    @property
    def device(self) -> str:
        return self.ceilings.kind

    @property
    def name(self) -> str:
        return f"{self.op.name}: {self.case.name}, {self.mode}"

    @property
    def there(self) -> list[Provider]:
        return [one for one in self.providers if isinstance(one, Provider)]

    def row(self, provider: Provider) -> Row:
        """All that is known before anything ran."""
        op, case = self.op, self.case
        row = Row(
            op.name, case.name, self.mode, provider.name, provider.version, "ok", case.dtype, case.group, case.size
        )
        row.ours, row.quick, row.threads = provider.ours, self.settings.quick, torch.get_num_threads()
        row.device, row.commit, row.date = self.ceilings.device, commit(), date.today().isoformat()
        return row

    def build(self, provider: Provider) -> Runnable:
        return self.op.build(provider.make(self.case, self.device), self.case, self.mode, self.device)

    def bytes_alone(self) -> Runnable | None:
        return self.op.bytes_alone(self.case, self.mode, self.device)


class Measurement:
    """One job: `rows`, one for each provider in their order, from the samples of all visits so far.

    Made, everybody has passed the gate or has a line that says why not; a visit times all of them together. What moves
    a ratio on a CPU is often where the inputs lie in memory and what else the machine does, and stays for the whole of
    a visit: a later visit has inputs of its own.
    """

    def __init__(self, job: Job) -> None:
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # or the limit of recompilations of one function is soon reached
        self.job = job
        self.rows: list[Row] = []
        self.ready: dict[str, tuple[Provider, Runnable]] = {}
        self.bytes_alone = job.bytes_alone()
        self.times: dict[str, list[float]] = {}
        self.paces: dict[str, Pace] = {}
        self.shortest = math.inf  # seconds of a visit
        self.visits = 0
        for provider in job.there:
            row = job.row(provider)
            self.rows.append(row)
            work = admit(job, provider, row)
            if work is not None and job.settings.timed:
                try:
                    row.memory = peak_memory(work, job.device)
                    self.ready[provider.name] = provider, work
                except Exception as error:
                    row.status = broken(error)

    def due(self, visit: int) -> bool:
        """Whether visit number `visit` of a run is one to this case: all of them, or as many as there is time for; of
        those beyond, all until its ratio is sure."""
        visits, seconds = self.job.settings.visits, self.job.settings.seconds
        if visit > visits:
            return self.doubt() > SURE
        share = min(1.0, max(FEWEST_VISITS, seconds / self.shortest) / visits)
        return int(visit * share) > int((visit - 1) * share)

    def visit(self) -> None:
        """Who breaks while it is timed has a line that says so, and no time."""
        start = time.perf_counter()
        if self.times:
            self.build_again()
        for name, taken in self.samples().items():
            self.times.setdefault(name, []).extend(taken)
        self.shortest = min(self.shortest, time.perf_counter() - start)
        self.visits += 1
        fill(self.rows, self.times, self.job)

    def doubt(self) -> float:
        """How far a ratio of ours may be off, as a fraction: the middle half of its rounds is so wide, and visits are
        independent of one another."""
        peer = best_peer(self.rows)
        if peer is None or not self.visits:
            return 0.0
        wide = [width(self.times[peer], self.times[row.provider]) for row in self.rows if row.timed and row.ours]
        return max(wide, default=0.0) / math.sqrt(self.visits)

    def samples(self) -> dict[str, list[float]]:
        job, settings = self.job, self.job.settings
        seconds, rounds = (settings.seconds, None) if settings.visits == 1 else VISIT
        queued = job.op.queued and not job.case.group.startswith(OVERHEAD)
        while self.ready:
            work = {name: work for name, (_, work) in self.ready.items()}
            if self.bytes_alone is not None:
                work[BYTES] = self.bytes_alone
            try:
                return interleaved(work, job.device, seconds, rounds, queued, self.paces)
            except Broke as broke:
                if broke.name == BYTES:
                    self.bytes_alone = None
                else:
                    self.drop(broke.name, broken(broke.__cause__))
        return {}

    def build_again(self) -> None:
        """Same work, other memory; what goes through torch.compile would be compiled anew and stays."""
        self.bytes_alone = self.job.bytes_alone()
        for name, (provider, _) in list(self.ready.items()):
            if not provider.compiles:
                self.ready[name] = provider, self.job.build(provider)

    def drop(self, name: str, status: str) -> None:
        del self.ready[name]
        self.times.pop(name, None)
        (row,) = (row for row in self.rows if row.provider == name)
        row.status = status
        row.median = row.p20 = row.p80 = row.of_ceiling = row.ratio = math.nan
        row.repeats, row.ceiling, row.noisy = 0, "", False


def measure(job: Job) -> Measurement:
    """The measurement after its first visit."""
    measurement = Measurement(job)
    measurement.visit()
    return measurement


def unmeasured(job: Job, why: str) -> list[Row]:
    """One row for each provider of a case that was not begun."""
    rows = [job.row(one) for one in job.there]
    for row in rows:
        row.status = f"cannot: {why}"
    return rows


def broken(error: BaseException | None) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "cannot: out of memory"
    return f"failed: {type(error).__name__}: {one_line(error)}"


def admit(job: Job, provider: Provider, row: Row) -> Runnable | None:
    """What to time, once its results are within their budget; otherwise None, and row.status says why."""
    from undivided import BackendRefused

    if provider.slow and job.settings.quick:
        row.status = "cannot: too slow for a quick run"
        return None
    if provider.compiles and not job.settings.compiles:
        row.status = "cannot: compiling is left out of this run"
        return None
    op, case, mode = job.op, job.case, job.mode
    try:
        work = job.build(provider)
        with warnings.catch_warnings():  # torch warns of each kernel that it does not take
            warnings.simplefilter("ignore")
            outputs = work.check() if isinstance(work, Apart) else work()
        outputs = outputs if op.checked is None else op.checked(case, mode, outputs)
        row.error, row.budget = budget_of(outputs, *op.expected(case, mode, job.device))
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


def fill(rows: list[Row], times: dict[str, list[float]], job: Job) -> None:
    """Medians, spreads, fractions of the ceiling and ratios."""
    case, ceilings = job.case, job.ceilings
    work = job.op.work(case, job.mode)
    floor, name = ceilings.floor(work, case.dtype)
    if times.get(BYTES):
        floor, name = statistics.median(times[BYTES]), "bytes"
    for row in rows:
        row.operations, row.bytes, row.items = work.operations, work.bytes, work.items
        row.copy, row.matmul, row.ratio = ceilings.copy(work.bytes), ceilings.matmul[case.dtype], math.nan
        taken = times.get(row.provider)
        if taken:
            row.median, row.repeats = statistics.median(taken), len(taken)
            row.p20, row.p80 = quantile(taken, 0.2), quantile(taken, 0.8)
            row.of_ceiling, row.ceiling = floor / row.median, name
            row.noisy = row.p80 > NOISY * row.p20
    best = best_peer(rows)
    if best is None:
        return
    for row in rows:
        if row.timed:
            row.ratio = paired_ratio(times[best], times[row.provider])


def best_peer(rows: Sequence[Row]) -> str | None:
    peers = [row for row in rows if row.timed and not row.ours]
    return min(peers, key=lambda row: row.median).provider if peers else None


def log_ratios(peer: Sequence[float], own: Sequence[float]) -> list[float]:
    """Of the rounds, in order of size. Fewer samples are those of the first rounds."""
    return sorted(math.log(theirs / ours) for theirs, ours in zip(peer, own, strict=False))


def width(peer: Sequence[float], own: Sequence[float]) -> float:
    """From the first to the last quarter of peer / own, in logarithms."""
    ratios = log_ratios(peer, own)
    return quantile(ratios, 0.75) - quantile(ratios, 0.25)


def paired_ratio(peer: Sequence[float], own: Sequence[float]) -> float:
    """The mean of the middle half of peer / own over the rounds, in logarithms: what slows the machine for a while
    slows both samples of a round, and drops out, whereas it may move one of two medians and not the other; and of a
    dozen rounds it strays less than their median."""
    ratios = log_ratios(peer, own)
    outer = len(ratios) // 4
    return math.exp(statistics.fmean(ratios[outer : len(ratios) - outer]))


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
