"""The processes that train one model together: who they are, and how they agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ..environment import torchrun_restarts

Value = TypeVar("Value")

# The others wait while rank 0 scores the model, however long that takes; torchrun ends them where one has died.
PATIENCE = timedelta(hours=24)

_TRAININGS = itertools.count()  # of this process


@dataclass(frozen=True)
class World:
    """This process is `rank` of `size`. `joined` says whether it is in a process group, be it alone there.

    All ranks call `from_main` and `gathered` together, with plain data.
    """

    rank: int = 0
    size: int = 1
    joined: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the rank that scores, writes and speaks."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Every size-th of a batch's rows: of rows in the order of their length, all ranks have like ones."""
        return rows[self.rank :: self.size]

    def from_main(self, value: Value) -> Value:
        """The value that rank 0 has."""
        if not self.joined:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def gathered(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order."""
        if not self.joined:
            return [value]
        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value)
        return held

    def wait(self) -> None:
        """Until all ranks are here."""
        self.gathered(None)


ALONE = World()


def under_torchrun() -> bool:
    return torchrun_restarts() is not None


@contextmanager
def join(device: str) -> Iterator[World]:
    """The world of torchrun's processes, over gloo and on GPUs also nccl; elsewhere this process alone.

    On GPUs, `cuda` is then the one of this process.

    Raises:
        ValueError: `device` names one GPU for all of them, or there are more processes than GPUs.
    """
    if not under_torchrun():
        yield ALONE
        return
    gpu = device.startswith("cuda")
    if gpu:
        local = dist.get_node_local_rank()
        if device != "cuda":
            raise ValueError(f"device={device!r}: under torchrun each process has a GPU of its own; use --device cuda")
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} of this machine has no GPU: torch sees {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
    # The objects go over gloo, also between GPUs, so that they are sent without waiting for what a GPU does.
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    store, rank, size = next(rendezvous("env://"))
    # torchrun's store outlives its processes, and a training: none may find the addresses of those before it.
    store = dist.PrefixStore(f"undivided-{torchrun_restarts()}-{next(_TRAININGS)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    yield World(rank, size, True)
    dist.destroy_process_group()  # not where an error came up here: the others may wait for this one
