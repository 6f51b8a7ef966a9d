"""A step of decoding that is recorded once, as a CUDA graph, and then replayed.

On a GPU a step is many small kernels, each launched from Python; a graph is one launch. What is recorded is fixed: the
same kernels on the same addresses with the same numbers. So a step reads where it stands from tensors, which it changes
itself, and Python only counts along.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..nn import Cache
from .blocks import Stack

Run = Callable[[], Tensor]


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    """The stream of all recordings: torch keeps memory for the products of every stream that there was."""
    return torch.cuda.Stream(device)


def record_graph(run: Run) -> Run:
    """Records what `run` does on the current device, without doing it. The function returned does it, and gives the
    same tensor with new values at each call."""
    graph = torch.cuda.CUDAGraph()
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    stream = _stream(torch.cuda.current_device())
    # Autocast keeps weights that it has cast until its context ends. A graph must not read them: it casts its own.
    with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
        # Other threads may go on with what a recording forbids, such as taking memory.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


RECORDERS = {"cuda": record_graph}  # by the kind of device


class Captured:
    """The steps of one decoding of at most `longest` symbols by `stack`.

    Once the caches are filled, those of one symbol a row are replayed; but for the first, and the first after a change
    of the number of rows, which compile what a recording must find compiled. Steps of several symbols run as they are.

    Raises:
        ValueError: the device is no GPU, the model is in training mode, or there are not so many positions.
    """

    def __init__(self, stack: Stack, longest: int, device: torch.device) -> None:
        if device.type not in RECORDERS:
            raise ValueError(f"cuda_graph=True cannot record on device {device}; allowed: {', '.join(RECORDERS)}")
        if stack.training:
            raise ValueError("cuda_graph=True cannot record a model in training mode; call its eval() first")
        stack.positions.reserve(longest, device)
        self.stack = stack
        self.forget()

    def forget(self) -> None:
        """The rows have changed in number: the next steps are of another shape."""
        self.replay: Run | None = None
        self.ids: Tensor | None = None  # what a replay reads
        self.held: list[Tensor] = []  # what it reads too and the stack may let go of: a table that grows is another
        self.kind: tuple[torch.Size, torch.dtype] | None = None  # of the ids that a recording takes
        self.growth: list[int] = []  # how many tokens a step adds to each cache

    def step(self, run: Callable[[Tensor], Tensor], ids: Tensor, caches: list[Cache]) -> Tensor:
        """What run(ids) returns, (batch, vocabulary); it takes the newest symbols, int (batch, n), to the caches.

        Raises:
            ValueError: there is no room in the caches.
        """
        if (ids.shape, ids.dtype) != self.kind:
            return self._as_it_is(run, ids, caches)
        for cache, count in zip(caches, self.growth, strict=True):
            cache.check_room(count)
        if self.replay is None:
            self.replay, self.ids = self._record(run, ids, caches)
        assert self.ids is not None
        self.ids.copy_(ids)
        out = self.replay().clone()  # the next replay writes to the same place
        for cache, count in zip(caches, self.growth, strict=True):
            cache.length += count
        return out

    def _as_it_is(self, run: Callable[[Tensor], Tensor], ids: Tensor, caches: list[Cache]) -> Tensor:
        before = [cache.length for cache in caches]
        out = run(ids)
        # A step that finds a cache empty also makes it, and fills that of the memory: it is not like the others.
        if self.replay is None and ids.shape[1] == 1 and all(before):
            self.kind = ids.shape, ids.dtype
            self.growth = [cache.length - length for cache, length in zip(caches, before, strict=True)]
        return out

    def _record(self, run: Callable[[Tensor], Tensor], ids: Tensor, caches: list[Cache]) -> tuple[Run, Tensor]:
        """(the replay, the ids that it reads). Only Python runs here, and what it has counted is taken back."""
        own, before = ids.clone(), [cache.length for cache in caches]
        self.held = [tensor.detach() for tensor in (*self.stack.parameters(), *self.stack.buffers())]
        try:
            with torch.cuda.device_of(ids):
                return RECORDERS[ids.device.type](lambda: run(own)), own
        finally:
            for cache, length in zip(caches, before, strict=True):
                cache.length = length
