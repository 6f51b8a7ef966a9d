"""The ranks of a group as a ring: tensors go to the next rank while the same come from the one before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# A dtype travels as its place in here.
DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)


class Arrival:
    """Tensors under way. What is sent is held until it has left."""

    def __init__(self, works: list[Any], sent: list[Tensor], received: list[Tensor]) -> None:
        self.works, self.sent, self.received = works, sent, received

    def wait(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        self.sent = []
        return self.received


@dataclass(frozen=True)
class Ring:
    """This process's place: `rank` of `world` in `group` (None: all processes)."""

    group: Any
    rank: int
    world: int

    def pass_on(self, *tensors: Tensor) -> Arrival:
        """Starts to send `tensors` to the next rank and to receive those of the same shapes from the one before."""
        sent = [tensor.detach().contiguous() for tensor in tensors]
        if self.world == 1:
            return Arrival([], [], sent)
        received = [torch.empty_like(tensor) for tensor in sent]
        there, here = (self.rank + 1) % self.world, (self.rank - 1) % self.world
        # The tag says which of the tensors it is; those of one tag arrive in the order in which they were sent.
        sends = [dist.P2POp(dist.isend, t, group=self.group, tag=i, group_peer=there) for i, t in enumerate(sent)]
        gets = [dist.P2POp(dist.irecv, t, group=self.group, tag=i, group_peer=here) for i, t in enumerate(received)]
        return Arrival(dist.batch_isend_irecv(sends + gets), sent, received)

    def visits(self, *shards: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
        """(rank, its shards) of every rank, this one first; the next travel while the caller works on the last."""
        here = list(shards)
        for step in range(self.world):
            coming = self.pass_on(*here) if step + 1 < self.world else None
            yield (self.rank - step) % self.world, here
            if coming is not None:
                here = coming.wait()


def ring_of(group: Any) -> Ring:
    """The ring of a process group.

    Raises:
        RuntimeError: there are no process groups, or none is initialised.
        TypeError: `group` is no process group.
        ValueError: this process is not in the group.
    """
    if not dist.is_available():
        raise RuntimeError("this build of torch has no torch.distributed; install one that has")
    if not dist.is_initialized():
        raise RuntimeError("there is no process group; call torch.distributed.init_process_group first")
    outside: Any = dist.GroupMember.NON_GROUP_MEMBER  # what dist.new_group gives to processes that are left out
    if group is not None and group is not outside and not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group is a {type(group).__name__}; allowed: a torch.distributed process group, or None for all"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("this process is not in the group; only its members may call")
    return Ring(group, rank, dist.get_world_size(group))


def same_on_all_ranks(ring: Ring, values: dict[str, float | torch.dtype], device: torch.device) -> None:
    """Compares numbers and dtypes with the other ranks', who must give as many in the same order.

    Raises:
        ValueError: one differs; on every rank, so that none is left waiting for the others.
    """
    if ring.world == 1:
        return
    codes = [float(DTYPES.index(v)) if isinstance(v, torch.dtype) else float(v) for v in values.values()]
    mine = torch.tensor(codes, dtype=torch.float64, device=device)
    parts = [torch.empty_like(mine) for _ in range(ring.world)]
    dist.all_gather(parts, mine, group=ring.group)
    for (name, value), found in zip(values.items(), torch.stack(parts, 1).tolist(), strict=True):
        if len(set(found)) > 1:
            said = [DTYPES[int(code)] if isinstance(value, torch.dtype) else type(value)(code) for code in found]
            text = ", ".join(f"{what} on rank {rank}" for rank, what in enumerate(said))
            raise ValueError(f"{name} is {text}; it must be the same on every rank")
