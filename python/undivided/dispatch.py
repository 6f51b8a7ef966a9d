"""Which backend runs a call, and why.

A call is described by plain data (no tensors). A backend is a name, the module that holds its launchers (imported
only once the backend is chosen) and a tuple of rules; a rule returns None, or a sentence that says what was asked,
what is supported and what to do about it. `auto` takes the first row of a table that has no objection, so the order
of the table is the whole policy, but for the rules by which a row leaves a call to one behind it.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch

BACKENDS = ("auto", "cuda", "triton", "cpu", "sdpa", "reference")


class BackendRefused(RuntimeError):
    """No backend, or not the one asked for, runs this call. The text lists every backend's objections."""


class AttentionCall(NamedTuple):
    """What a choice of attention backend may depend on. Sizes in elements; no tensors.

    A named tuple, as the other calls: one is made for every call of an op, and a frozen dataclass takes five times as
    long to make.
    """

    device: str
    dtype: str
    batch: int
    seqlen_q: int
    seqlen_k: int
    nheads: int
    nheads_kv: int
    head_dim: int
    head_dim_v: int
    packed: bool = False
    causal: bool = False
    window: tuple[int | None, int | None] = (None, None)
    query_offset: str | None = None  # None, "int" or "tensor"
    key_lengths: bool = False
    query_lengths: bool = False
    mask: bool = False
    bias: str | None = None  # None, "dense", "relative" or "alibi"
    softcap: bool = False
    sinks: bool = False
    dropout: bool = False
    rotary: bool = False
    return_lse: bool = False
    needs_grad: bool = False
    bias_needs_grad: bool = False
    max_distance: int = 128  # of a relative bias


class DecodeCall(NamedTuple):
    """What a choice of a backend for attention over caches may depend on."""

    device: str
    dtype: str
    batch: int
    seqlen_q: int
    longest: int
    nheads: int
    nheads_kv: int
    head_dim: int
    head_dim_v: int
    paged: bool = False
    appends: bool = False
    window: tuple[int | None, int | None] = (None, None)
    bias: str | None = None  # None, "relative" or "alibi"
    softcap: bool = False
    sinks: bool = False
    rotary: bool = False
    return_lse: bool = False


class NormCall(NamedTuple):
    """What a choice of a layer norm or RMS norm backend may depend on."""

    device: str
    dtype: str
    rows: int
    columns: int
    residual: bool = False
    needs_grad: bool = False


class FeedForwardCall(NamedTuple):
    """What a choice of feed-forward backend may depend on."""

    device: str
    dtype: str
    rows: int
    d_model: int
    d_ff: int
    activation: str = "gelu"
    gated: bool = False
    needs_grad: bool = False


class RotaryCall(NamedTuple):
    """What a choice of a rotary backend may depend on."""

    device: str
    dtype: str
    batch: int
    seqlen: int
    nheads: int
    head_dim: int
    positions: bool = False
    needs_grad: bool = False
    tables_need_grad: bool = False


Call = AttentionCall | DecodeCall | NormCall | FeedForwardCall | RotaryCall
Rule = Callable[[Any], str | None]


@dataclass(frozen=True)
class Backend:
    """One row of a table: `rules` say what it cannot run, `auto_rules` what it runs only when asked for by name."""

    name: str
    module: str
    rules: tuple[Rule, ...] = field(default=())
    auto_rules: tuple[Rule, ...] = field(default=())

    def objections(self, call: Call) -> list[str]:
        return texts(self.rules, call)

    def auto_objections(self, call: Call) -> list[str]:
        return texts(self.auto_rules, call)

    def willing(self, call: Call, auto: bool) -> bool:
        """Whether no rule objects. The first objection ends it: a choice is made for every call of an op."""
        for rule in self.rules:
            if rule(call) is not None:
                return False
        if auto:
            for rule in self.auto_rules:
                if rule(call) is not None:
                    return False
        return True


def texts(rules: tuple[Rule, ...], call: Call) -> list[str]:
    """What the rules say against a call."""
    found = []
    for rule in rules:  # no comprehension: torch.compile cannot trace one that closes over a named tuple
        text = rule(call)
        if text is not None:
            found.append(text)
    return found


@cache
def module_missing(name: str) -> str | None:
    """None when the module `name` can be imported; otherwise the reason."""
    try:
        found = importlib.util.find_spec(name) is not None
    except ImportError as error:
        return str(error)
    return None if found else f"{name} is not installed"


@cache
def load(module: str) -> ModuleType:
    """The module with a backend's launchers. An error inside it is a broken kernel and is not hidden."""
    return importlib.import_module(module)


def report(table: tuple[Backend, ...], call: Call) -> list[tuple[str, str]]:
    """(backend, verdict) for every row of the table, in the order in which `auto` asks them."""
    rows = []
    for backend in table:
        objections = backend.objections(call)
        if objections:
            verdict = "; ".join(objections)
        elif reasons := backend.auto_objections(call):
            verdict = f"can run it, when asked for by name: {'; '.join(reasons)}"
        else:
            verdict = "can run it"
        rows.append((backend.name, verdict))
    return rows


def report_text(table: tuple[Backend, ...], call: Call) -> str:
    return "\n".join(f"  {name:<10} {verdict}" for name, verdict in report(table, call))


def choose(table: tuple[Backend, ...], call: Call, backend: str = "auto") -> Backend:
    """The backend that runs `call`: the first willing row for "auto", or the named one.

    Raises:
        ValueError: `backend` is no backend's name.
        BackendRefused: the named backend (or every backend) objects; the text lists all objections.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; allowed: {', '.join(BACKENDS)}")
    row = first_willing(table, call, backend)
    if row is None:
        raise refusal(table, call, backend)
    if backend == "auto" and row.name == "reference" and call.device == "cuda":
        warn_reference(table, call)
    return row


def first_willing(table: tuple[Backend, ...], call: Call, backend: str) -> Backend | None:
    """The first row that is asked for and has no objection."""
    for row in table:
        if backend in ("auto", row.name) and row.willing(call, backend == "auto"):
            return row
    return None


def warn_reference(table: tuple[Backend, ...], call: Call) -> None:
    if torch.compiler.is_compiling():  # which cannot trace a warning
        return
    text = report_text(table, call)
    warnings.warn(f"no fused backend runs this call, so the slow reference does:\n{text}", stacklevel=4)


def refusal(table: tuple[Backend, ...], call: Call, backend: str) -> BackendRefused:
    asked = "no backend runs this call" if backend == "auto" else f"backend={backend!r} does not run this call"
    names = [row.name for row in table]
    if backend not in (*names, "auto"):
        asked += f" (it has no kernel for this op; there are: {', '.join(names)})"
    return BackendRefused(f"{asked}\n{call}\n{report_text(table, call)}")
