"""How the weights of a training lie on its processes: in one alone, a copy on each (DDP), or a part on each (FSDP2)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..transformer.blocks import DecoderBlock, EncoderBlock
from .checkpoint import LAST, SHARDS, remove_shards, save_training
from .world import World

Weights = dict[str, Tensor]


class Alone:
    """All weights in this process. What one process does with them, the other classes do on many.

    `model` holds the parameters that the optimiser changes and the state that is kept; `module` is what is called for
    the logits of a training step.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self.model, self.module, self.world = model, model, world
        self.kept: str | None = None  # the folder beside the last checkpoint, where that has one

    def accumulating(self, last: bool) -> Any:
        """Around a forward and backward: unless `last`, its gradients need not yet be those of all ranks."""
        return nullcontext()

    def local(self, value: Tensor) -> Tensor:
        """The part of a weight, or of what has its shape, that is in this process; it shares its memory."""
        return value

    @contextmanager
    def scored(self, average: Weights | None) -> Iterator[nn.Module | None]:
        """A model to score and to keep, with the averaged weights where they are given; None but on rank 0."""
        if not self.world.main or average is None:
            yield self.model if self.world.main else None
            return
        own = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(average)
        try:
            yield self.model
        finally:
            self.model.load_state_dict(own)

    def save(self, out: Path, state: dict[str, Any], optimizer: Optimizer, average: Weights | None) -> None:
        """Writes `last.pt` in `out`: `state`, and in it or beside it all tensors."""
        if self.world.main:
            tensors = {"model": self.model.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            save_training(out / LAST, {**state, **tensors})
            remove_shards(out, self.kept)
        self.kept = None

    def restore(self, out: Path, state: dict[str, Any], optimizer: Optimizer, average: Weights | None) -> None:
        """Puts the tensors of a `last.pt` into the model, `optimizer` and `average`, however they lay when saved."""
        self.kept = state.get(SHARDS)
        if self.kept is not None:
            from . import shards

            shards.load(out / self.kept, self.model, optimizer, average)
            return
        place(state["model"], self.model.state_dict())
        if average is not None:
            place(state["average"], average)
        optimizer.load_state_dict(self._placed(state["optimizer"], optimizer))

    def _placed(self, kept: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
        return kept


class Replicated(Alone):
    """A copy on each rank, whose gradients are averaged while they are computed (Li et al. 2020)."""

    def __init__(self, model: nn.Module, world: World) -> None:
        super().__init__(model, world)
        copies = nn.parallel.DistributedDataParallel(model)
        # Buffers are tables that no training changes, but each rank's grow with what it has seen.
        copies.broadcast_buffers = False
        self.module: nn.Module = copies

    def accumulating(self, last: bool) -> Any:
        return nullcontext() if last else self.module.no_sync()  # type: ignore[operator]


class Sharded(Alone):
    """A part of each weight, of its gradient and of its optimiser state on each rank (Zhao et al. 2023).

    A block's weights come together while it computes. Rank 0 also has a whole model, without the rest, to score and
    to keep; a checkpoint is a folder to which every rank writes its parts.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        from torch.distributed.fsdp import fully_shard

        # Nothing changes the logits in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.whole = copy.deepcopy(model).requires_grad_(False) if world.main else None
        for block in [one for one in model.modules() if isinstance(one, (EncoderBlock, DecoderBlock))]:
            fully_shard(block)
        fully_shard(model)
        super().__init__(model, world)

    def accumulating(self, last: bool) -> Any:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def local(self, value: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return value.to_local() if isinstance(value, DTensor) else value

    @contextmanager
    def scored(self, average: Weights | None) -> Iterator[nn.Module | None]:
        target = None if self.whole is None else self.whole.state_dict()
        for name, value in (average or self.model.state_dict()).items():
            found = value.full_tensor() if hasattr(value, "full_tensor") else value  # from all ranks to all
            if target is not None:
                target[name].copy_(found)
        yield self.whole

    def save(self, out: Path, state: dict[str, Any], optimizer: Optimizer, average: Weights | None) -> None:
        from . import shards

        # Never over the shards that last.pt names: they are valid until it names the new ones.
        before, self.kept = self.kept, shards.other_folder(self.kept)
        shards.save(out / self.kept, self.model, optimizer, average, self.world)
        if self.world.main:
            save_training(out / LAST, {**state, SHARDS: self.kept})
            remove_shards(out, before)

    def _placed(self, kept: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
        """A whole optimiser's state, cut up as its weights are; its numbers count the weights of all groups."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        cut: dict[int, dict[str, Tensor]] = {}
        for number, values in kept["state"].items():
            like = weights[number]
            cut[number] = {key: cut_like(one, like) if one.dim() else one for key, one in values.items()}
        return {**kept, "state": cut}


PARALLEL = {"ddp": Replicated, "fsdp": Sharded}


def spread(model: nn.Module, world: World, parallel: str | None) -> Alone:
    """The model on the processes of `world`, as `parallel` says; None is ddp where there are processes.

    Raises:
        ValueError: `parallel` is given, but this process has no others.
    """
    if not world.joined and parallel is not None:
        raise ValueError(
            f"parallel={parallel!r} is for processes that torchrun starts: "
            "torchrun --nproc-per-node N -m undivided train ..."
        )
    return PARALLEL[parallel or "ddp"](model, world) if world.joined else Alone(model, world)


@torch.no_grad()
def place(kept: Weights, into: Weights) -> None:
    """Copies whole weights into those of a model, which may be parts of them.

    Raises:
        ValueError: they are not the same weights.
    """
    differing = kept.keys() ^ into.keys()
    differing |= {name for name in kept.keys() & into.keys() if kept[name].shape != into[name].shape}
    if differing:
        raise ValueError(f"the checkpoint is of another model: {', '.join(sorted(differing)[:5])} differ")
    for name, value in into.items():
        value.copy_(cut_like(kept[name], value))


def cut_like(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that all ranks have, or all of it, as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
