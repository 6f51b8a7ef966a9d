"""All timing: interleaved samples of several functions.

One sample of each function, then the next round, so that a slow moment of the machine hits everybody; each round
has an order of its own, so that nobody always runs behind the same neighbour: behind its twin a provider was 2 to 5 %
faster than the twin. On a GPU the L2 cache is overwritten
before a sample and the time is that between two events; what `queued` asks for is launched while the GPU is kept busy,
so that the time is that of its kernels and not of the launches. On a CPU the time is
that of a monotonic clock, after a call of the same function that is not counted: the caches then hold what its own last
call left there, and not what its neighbour did, which made the second of two equal providers look a third faster.
"""

from __future__ import annotations

import gc
import math
import random
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
WARMED = 0.01  # seconds: a longer call on a CPU is not repeated to warm the caches, which it fills many times over
FLUSH_BYTES = 256 * 2**20  # over the L2 cache of every GPU
GPU_ROUNDS = (5, 25)  # events of a GPU at rest spread by a few per cent
FAR = 5.0  # on a GPU, who takes more than this many times the least gets FEWEST_ROUNDS samples
HEAD_START = (2e-4, 1.5, 5e-3)  # seconds at least, times what launching takes, seconds at most
CYCLES = 2e9  # a second, of a GPU: more than they have makes the head start longer, which does no harm


class Broke(Exception):
    """The function called `name` raised the cause of this while it was timed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def interleaved(
    functions: Functions,
    device: str,
    seconds: float,
    rounds: tuple[int, int] | None = None,
    queued: bool = False,
    visits: int = 1,
) -> dict[str, list]:
    """Seconds per call, one for each sample: rounds[0] samples at least (FEWEST_ROUNDS where a round takes longer than
    `seconds`) and rounds[1] at most, ending after about `seconds` in all. On a GPU those that are far slower than the
    fastest are in the first FEWEST_ROUNDS rounds alone. visits: this is one of so many, which have the least number of
    samples together.

    Raises: Broke, where one of the functions raises.
    """
    rounds = rounds or (GPU_ROUNDS if device == "cuda" else ROUNDS)
    calls, short, once = {}, set(), {}
    for name, function in functions.items():
        try:
            once[name] = _warm(function, device)
        except Exception as error:
            raise Broke(name) from error
        calls[name] = min(MOST_CALLS, max(1, math.ceil(SHORTEST_SAMPLE / max(once[name], 1e-7))))
        if once[name] < WARMED:
            short.add(name)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device == "cuda" else None
    far = {name for name in once if once[name] > FAR * min(once.values())} if device == "cuda" else set()
    heads = {name: _head_start(function, calls[name]) if queued and flush is not None else 0.0
             for name, function in functions.items()}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in functions}
    names, order = list(functions), random.Random(0)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    least = math.ceil(rounds[0] / visits)
    try:
        for count in range(rounds[1]):
            taken = time.perf_counter() - start
            if count == 1 and taken > seconds:
                least = min(least, math.ceil(FEWEST_ROUNDS / visits))
            if count >= least and taken > seconds:
                break
            for name in order.sample(names, len(names)):
                if count < FEWEST_ROUNDS or name not in far:
                    times[name].append(_sample(functions[name], calls[name], flush, name in short, heads[name]))
    except Exception as error:
        raise Broke(name) from error
    finally:
        if enabled:
            gc.enable()
    return times


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


def _warm(function: Callable[[], Any], device: str) -> float:
    """Calls it twice, and says how long the second call took."""
    function()
    return _sample(function, 1, None if device == "cpu" else torch.empty(1, device=device))


def _sample(
    function: Callable[[], Any], calls: int, flush: torch.Tensor | None, warm: bool = False, head_start: float = 0.0
) -> float:
    if flush is None:
        if warm:
            function()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    if head_start and hasattr(torch.cuda, "_sleep"):
        torch.cuda._sleep(int(head_start * CYCLES))
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
