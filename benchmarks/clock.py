"""All timing: interleaved samples of several functions.

One sample of each function, then the next round, so that a slow moment of the machine hits everybody; each round
starts with another function, so that nobody always runs behind the same neighbour. On a GPU the L2 cache is overwritten
before a sample and the time is that between two events, without the launch of the first kernel; on a CPU it is
that of a monotonic clock, after a call of the same function that is not counted: the caches then hold what its own last
call left there, and not what its neighbour did, which made the second of two equal providers look a third faster.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Functions = Mapping[str, Callable[[], Any]]

ROUNDS = (7, 200)  # at least, at most
FEWEST_ROUNDS = 3  # where a single round takes longer than all should
SHORTEST_SAMPLE = 1e-4  # seconds: shorter calls are repeated, or the clock and the loop would count
MOST_CALLS = 500
WARMED = 0.05  # seconds: a longer call on a CPU is not repeated to warm the caches, which it fills many times over
FLUSH_BYTES = 256 * 2**20  # over the L2 cache of every GPU


def interleaved(functions: Functions, device: str, seconds: float, rounds: tuple[int, int] = ROUNDS) -> dict[str, list]:
    """Seconds per call, one for each sample: rounds[0] samples at least (FEWEST_ROUNDS where a round takes longer than
    `seconds`) and rounds[1] at most, ending after about `seconds` in all."""
    calls, short = {}, set()
    for name, function in functions.items():
        once = _warm(function, device)
        calls[name] = min(MOST_CALLS, max(1, math.ceil(SHORTEST_SAMPLE / max(once, 1e-7))))
        if once < WARMED:
            short.add(name)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device == "cuda" else None
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    least = rounds[0]
    try:
        for count in range(rounds[1]):
            taken = time.perf_counter() - start
            if count == 1 and taken > seconds:
                least = min(least, FEWEST_ROUNDS)
            if count >= least and taken > seconds:
                break
            for name in names[count % len(names) :] + names[: count % len(names)]:
                times[name].append(_sample(functions[name], calls[name], flush, name in short))
    finally:
        if enabled:
            gc.enable()
    return times


def medians(functions: Functions, device: str, seconds: float) -> dict[str, float]:
    return {name: statistics.median(taken) for name, taken in interleaved(functions, device, seconds).items()}


def _warm(function: Callable[[], Any], device: str) -> float:
    """Calls it twice, and says how long the second call took."""
    function()
    return _sample(function, 1, None if device == "cpu" else torch.empty(1, device=device))


def _sample(function: Callable[[], Any], calls: int, flush: torch.Tensor | None, warm: bool = False) -> float:
    if flush is None:
        if warm:
            function()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def quantile(taken: list[float], fraction: float) -> float:
    """The sample below which `fraction` of them lie, the nearest one."""
    ordered = sorted(taken)
    return ordered[round(fraction * (len(ordered) - 1))]
