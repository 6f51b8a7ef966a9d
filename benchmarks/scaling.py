"""How time and peak memory of attention grow with the length of the sequence, from 128 to 65536."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import attention
from .attention import Case
from .attention_providers import providers as attention_providers
from .gate import split, step
from .op import Absent, Function, Op, Provider, Runnable, Work

CHECKED = 64  # queries: a reference of all of them would need the seqlen x seqlen matrix that nobody should make
LONGEST = {"forward": 65536, "forward_backward": 16384}  # beyond, a sample takes minutes on two cores
LONGEST_BIAS = 4096  # the peers make T5's bias dense, with a gradient


def cases(quick: bool, device: str) -> list[Case]:
    sizes = (128, 512, 1024) if quick else tuple(2**power for power in range(7, 17))
    rows = []
    for dtype in ("bfloat16",) if quick else ("float32", "bfloat16"):
        rows += [Case(1, n, n, 2, 2, 64, dtype) for n in sizes]
        rows += [Case(1, n, n, 2, 2, 64, dtype, bias="relative") for n in sizes if n <= LONGEST_BIAS]
    return rows


def modes(case: Case) -> Sequence[str]:
    if case.bias:
        return ("forward_backward",)
    return [mode for mode, longest in LONGEST.items() if case.seqlen_q <= longest]


def checked_queries(case: Case) -> slice:
    """Some queries in the middle: they have keys far away on both sides."""
    count = min(CHECKED, case.seqlen_q)
    start = (case.seqlen_q - count) // 2
    return slice(start, start + count)


@lru_cache(maxsize=1)
def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """As attention's, but dout is 0 outside the checked queries, so that all gradients are known exactly from them.
    Kernels do not look for zeros: their time stays the same."""
    values = dict(attention.inputs(case, device))
    kept = torch.zeros_like(values["dout"])
    kept[:, checked_queries(case)] = values["dout"][:, checked_queries(case)]
    return values | {"dout": kept}


def build(function: Function, case: Case, mode: str, device: str) -> Runnable:
    return step(function, *split(inputs(case, device), ("dout",)), mode)


def checked(case: Case, mode: str, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of the output the checked queries; gradients are whole."""
    return [out[:, checked_queries(case)] for out in outputs] if mode == "forward" else outputs


@lru_cache(maxsize=2)
def expected(case: Case, mode: str, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """From the checked queries alone; the other rows of dq are 0."""
    from undivided import reference
    from undivided.testing import honest

    part = checked_queries(case)
    results = []
    for place, dtype in ((reference, torch.float64), (honest, None)):
        values = {name: value.to(dtype or value.dtype) for name, value in inputs(case, device).items()}
        values |= {name: values[name][:, part] for name in ("q", "dout")}
        own, grads = split(values, ("dout",))
        function = attention.with_words(case, device, place.attention, query_offset=part.start)
        found = [value.detach() for value in step(function, own, grads, mode)()]
        if mode != "forward":
            dq = torch.zeros(case.batch, case.seqlen_q, case.nheads, case.head_dim, dtype=found[0].dtype, device=device)
            dq[:, part] = found[0]
            found[0] = dq
        results.append(found)
    return results[0], results[1]


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    """Attention's, without those that only force one of torch's kernels; the one that makes the matrix stays, to be
    seen growing, up to half of the machine's memory."""
    found: list[Provider | Absent] = []
    for one in attention_providers(device, backends):
        if one.name == "torch sdpa math" and isinstance(one, Provider):
            found.append(Provider(one.name, one.version, within_memory(one.make)))
        elif not one.name.startswith("torch sdpa ") and one.name != "torch flex":
            found.append(one)
    return found


def within_memory(make: Any) -> Any:
    def guarded(case: Case, device: str) -> Function:
        needed = 4.0 * 4 * case.batch * case.nheads * case.seqlen_q * case.seqlen_k
        if needed > memory(device) / 2:
            raise NotImplementedError(f"its score matrices take about {needed / 2**30:.0f} GiB")
        return make(case, device)

    return guarded


def memory(device: str) -> float:
    """Bytes that are free now; infinity where nothing says it."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)


def work(case: Case, mode: str) -> Work:
    return attention.work(case, mode)


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of log y over log x by least squares, over the upper half of the sizes: small ones are all overhead.

    NaN with fewer than two points.
    """
    ordered = sorted(points)
    upper = ordered[len(ordered) // 2 :] if len(ordered) > 3 else ordered
    xs, ys = [math.log(x) for x, _ in upper], [math.log(y) for _, y in upper]
    if len(set(xs)) < 2:
        return math.nan
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - mean_x) ** 2 for x in xs)


SCALING = Op("scaling", cases, modes, providers, build, expected, work, axis="seqlen", checked=checked, grows=True)
