"""The peak memory of one call."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from undivided.memory import KEEP, set_allocator

GIVE_BACK = (64 * 2**10, 128 * 2**10)
MOST_HOLES = 4096  # an allocator that took malloc's place never says that it mapped

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(function: Callable[[], Any], device: str) -> float:
    """Bytes in use at the highest moment of function(), over what was in use before; NaN where nothing can say.

    On a GPU torch's own counter. On a CPU the resident set: Linux resets its high-water mark on request. For this one
    call the allocator gives back all that is freed, and the holes in its heap are filled (it would use them again and
    keep them), so that the peak is of what is in use, and what earlier calls freed cannot hide a new tensor.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before: float = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    try:
        set_allocator(*GIVE_BACK)
        ctypes.CDLL(None).malloc_trim(0)
        with _heap_filled():
            CLEAR.write_text("5")
            before = _resident("VmRSS")
            function()
            return max(0.0, _resident("VmHWM") - before)
    except (OSError, AttributeError, ValueError):
        return float("nan")
    finally:
        set_allocator(*KEEP)


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo (mallinfo(3)); hblks is the number of blocks that are mappings of their own."""

    _fields_ = [(name, ctypes.c_int) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")]
    _fields_ += [(name, ctypes.c_int) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


@contextmanager
def _heap_filled() -> Iterator[None]:
    """Free chunks of the heap down to the mmap threshold of `GIVE_BACK` taken, untouched: they take no memory."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.mallinfo.restype = [ctypes.c_void_p], _MallocInfo
    taken = []
    size = KEEP[0]
    while size >= GIVE_BACK[0] and len(taken) < MOST_HOLES:
        mappings = libc.mallinfo().hblks
        taken.append(libc.malloc(size))
        if libc.mallinfo().hblks > mappings:  # no hole was as large
            libc.free(taken.pop())
            size //= 2
    try:
        yield
    finally:
        for block in taken:
            libc.free(block)


def _resident(name: str) -> float:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024.0 * int(line.split()[1])
    raise ValueError(f"{STATUS} has no {name}")
