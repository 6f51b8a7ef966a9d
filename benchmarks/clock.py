"""All timing: interleaved samples of several functions.

One sample of each function, then the next round, so that a slow moment of the machine hits everybody; each round
has an order of its own, so that nobody always runs behind the same neighbour: behind its twin a provider was 2 to 5 %
faster than the twin. On a GPU the L2 cache is overwritten
before a sample and the time is that between two events; what `queued` asks for is launched while the GPU is kept busy,
so that the time is that of its kernels and not of the launches. On a CPU the time is
that of a monotonic clock, after calls of the same function that are not counted: the caches then hold what its own last
calls left there, and not what its neighbour did, which made the second of two equal providers look a third faster.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Functions = Mapping[str, Callable[[], Any]]

ROUNDS = (7, 200)  # at least, at most
FEWEST_ROUNDS = 3  # where a single round takes longer than all should
SHORTEST_SAMPLE = 1e-4  # seconds: shorter calls are repeated, or the clock and the loop would count
MOST_CALLS = 500
WARMED = 0.01  # seconds: a longer call on a CPU is not repeated to warm the caches, which it fills many times over
# Seconds of calls that warm them. One call is too little: behind a neighbour that had filled the third-level cache of
# Zen 5, a backward of 2 MiB took 280, 140, 110 and 100 microseconds, one of 8 MiB 680, 530, 460 and 400.
WARM_UP = 0.003
FLUSH_BYTES = 256 * 2**20  # over the L2 cache of every GPU
GPU_ROUNDS = (5, 25)  # events of a GPU at rest spread by a few per cent
FAR = 5.0  # on a GPU, who takes more than this many times the least gets FEWEST_ROUNDS samples
HEAD_START = (2e-4, 1.5, 5e-3)  # seconds at least, times what launching takes, seconds at most
CYCLES = 2e9  # a second, of a GPU: more than they have makes the head start longer, which does no harm
ORDER = random.Random(0)  # of the functions in a round


class Broke(Exception):
    """The function called `name` raised the cause of this while it was timed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Pace:
    """How a function is sampled: `calls` of it in a sample, on a CPU `warm_up` before it, and on a GPU `head_start`
    seconds in which they are launched."""

    once: float = 0.0  # seconds
    calls: int = 1
    warm_up: int = 0
    head_start: float = 0.0


def interleaved(
    functions: Functions,
    device: str,
    seconds: float,
    rounds: tuple[int, int] | None = None,
    queued: bool = False,
    paces: dict[str, Pace] | None = None,
) -> dict[str, list[float]]:
    """Seconds per call, one for each sample: rounds[0] samples at least (FEWEST_ROUNDS where a round takes longer than
    `seconds`) and rounds[1] at most, ending after about `seconds` in all. On a GPU those that are far slower than the
    fastest are in the first FEWEST_ROUNDS rounds alone.

    paces: of an earlier visit to functions of the same names, or empty and then of this one.

    Raises: Broke, where one of the functions raises.
    """
    least, most = rounds or (GPU_ROUNDS if device == "cuda" else ROUNDS)
    paces = {} if paces is None else paces
    known = set(paces)
    for name in [one for one in functions if one not in known]:
        try:
            paces[name] = _pace(functions[name], device, queued)
        except Exception as error:
            raise Broke(name) from error
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device == "cuda" else None
    fastest = min((paces[name].once for name in functions), default=0.0)
    far = {name for name in functions if paces[name].once > FAR * fastest} if device == "cuda" else set()
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    try:
        for count in range(most):
            taken = time.perf_counter() - start
            if count == 1 and taken > seconds:
                least = min(least, FEWEST_ROUNDS)
            if count >= least and taken > seconds:
                break
            for name in ORDER.sample(names, len(names)):
                if count < FEWEST_ROUNDS or name not in far:
                    if count == 0 and name in known and not paces[name].warm_up:
                        functions[name]()  # its inputs are new
                    times[name].append(_sample(functions[name], paces[name], flush))
    except Exception as error:
        raise Broke(name) from error
    finally:
        if enabled:
            gc.enable()
    return times


def _pace(function: Callable[[], Any], device: str, queued: bool) -> Pace:
    """Calls it twice: the second call says how long one takes."""
    function()
    once = _sample(function, Pace(), None if device == "cpu" else torch.empty(1, device=device))
    calls = min(MOST_CALLS, max(1, math.ceil(SHORTEST_SAMPLE / max(once, 1e-7))))
    head_start = _head_start(function, calls) if queued and device == "cuda" else 0.0
    warm_up = 0 if once >= WARMED else min(MOST_CALLS, math.ceil(WARM_UP / max(once, 1e-7)))
    return Pace(once, calls, warm_up, head_start)


def _head_start(function: Callable[[], Any], calls: int) -> float:
    """Seconds for which a GPU is kept busy while `calls` calls are launched."""
    least, times, most = HEAD_START
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    launched = time.perf_counter() - start
    torch.cuda.synchronize()
    return min(most, max(least, times * launched))


def medians(functions: Functions, device: str, seconds: float) -> dict[str, float]:
    return {name: statistics.median(taken) for name, taken in interleaved(functions, device, seconds).items()}


def _sample(function: Callable[[], Any], pace: Pace, flush: torch.Tensor | None) -> float:
    """flush: on a GPU, what overwrites its cache."""
    if flush is None:
        for _ in range(pace.warm_up):
            function()
        start = time.perf_counter()
        for _ in range(pace.calls):
            function()
        return (time.perf_counter() - start) / pace.calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    if pace.head_start and hasattr(torch.cuda, "_sleep"):
        torch.cuda._sleep(int(pace.head_start * CYCLES))
    begin.record()
    for _ in range(pace.calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / pace.calls


def quantile(taken: list[float], fraction: float) -> float:
    """The sample below which `fraction` of them lie, the nearest one."""
    ordered = sorted(taken)
    return ordered[round(fraction * (len(ordered) - 1))]
