"""The words of a benchmark: what an op, a provider and a case's work are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

OVERHEAD = "call overhead"  # the group of the cases that are so small that a call costs what it costs before any work

Function = Callable[..., Any]  # of a case's tensors, by name; what an op's `build` takes
Runnable = Callable[[], Sequence[Tensor]]  # does the work once, returns what is checked


class Case(Protocol):
    """One row of an op's table: a frozen dataclass with the op's sizes and these."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def size(self) -> float:
        """Where the case stands on the axis of the op's plot (seqlen, columns, d_model)."""
        ...

    @property
    def group(self) -> str:
        """What the cases that are summed up in one line of the README share: the kind of call and the dtype."""
        ...


@dataclass(frozen=True)
class Work:
    """What a case must do at least: floating-point operations, and bytes of inputs and outputs.

    items: what is counted a second besides (tokens), 0 where nothing is.
    """

    operations: float
    bytes: float
    items: float = 0.0


@dataclass(frozen=True)
class Provider:
    """An implementation. `make(case, device)` gives the function that the op's `build` turns into work, or raises
    NotImplementedError with a sentence when it cannot run the case.

    backend: of our own implementations, the name of the backend; None for everybody else's.
    compiles: it goes through torch.compile, whose compiling costs more than the timing does.
    slow: left out of quick runs, because it would take most of their time.
    """

    name: str
    version: str
    make: Callable[[Any, str], Function]
    backend: str | None = None
    compiles: bool = False
    slow: bool = False

    @property
    def ours(self) -> bool:
        return self.backend is not None


@dataclass(frozen=True)
class Absent:
    """A provider that is not on this machine, and the reason: a line of the table, not an error."""

    name: str
    reason: str


@dataclass(frozen=True)
class Apart:
    """Work that does not return what must be checked: `run` is timed, `check` returns it, from the same object."""

    run: Runnable
    check: Runnable

    def __call__(self) -> Sequence[Tensor]:
        return self.run()


@dataclass(frozen=True)
class Op:
    """A table of cases and how to run, check and count them.

    cases(quick, device): the rows; a GPU needs larger ones. modes(case): forward, backward, forward_backward, or the
    op's own words.
    providers(device, backends): everybody; `backends` are the names of ours.
    build(function, case, mode, device): the work as a function of no arguments.
    expected(case, mode, device): what it must return, in float64, and what plain PyTorch returns in the case's dtype.
    work(case, mode): operations and bytes. axis: what Case.size is.
    checked(case, mode, outputs): the part of the outputs that `expected` speaks of; None takes them as they are.
    grows: its cases are a series of sizes, and the growth is what is asked about.
    bytes_alone(case, mode, device): what reads and writes the case's matrices by torch's plainest ops and does nothing
    else, with outputs allocated as anybody's are; None where there is no such thing. Timed beside the providers, its
    time is the case's ceiling, nearer than a copy of other memory.
    queued: on a GPU its time is that of kernels; otherwise that of launches counts, as in a whole step of a model.
    Cases of the group OVERHEAD are never queued.
    """

    name: str
    cases: Callable[[bool, str], Sequence[Any]]
    modes: Callable[[Any], Sequence[str]]
    providers: Callable[[str, Sequence[str]], Sequence[Provider | Absent]]
    build: Callable[[Function, Any, str, str], Runnable]
    expected: Callable[[Any, str, str], tuple[Sequence[Tensor], Sequence[Tensor]]]
    work: Callable[[Any, str], Work]
    axis: str = "size"
    grows: bool = False
    queued: bool = False
    checked: Callable[[Any, str, Sequence[Tensor]], Sequence[Tensor]] | None = None
    bytes_alone: Callable[[Any, str, str], Runnable | None] = lambda case, mode, device: None
