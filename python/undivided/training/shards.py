"""The tensors of a sharded training, in a folder to which every rank writes its parts."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim import Optimizer

from .checkpoint import remove_shards
from .world import World

FOLDERS = ("shards-0", "shards-1")  # of which one is whole at any time


def other_folder(name: str | None) -> str:
    return FOLDERS[1] if name == FOLDERS[0] else FOLDERS[0]


def named(model: nn.Module, optimizer: Optimizer, average: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """All tensors by names that do not depend on how they are cut up; they share the memory of what is given."""
    found = {f"model.{name}": value for name, value in model.state_dict().items()}
    found |= {f"average.{name}": value for name, value in (average or {}).items()}
    for name, weight in model.named_parameters():
        found |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state.get(weight, {}).items()}
    return found


def save(folder: Path, model: nn.Module, optimizer: Optimizer, average: dict[str, Tensor] | None, world: World) -> None:
    """Writes the folder anew. All ranks call it together, and it is whole when it returns."""
    if world.main:
        remove_shards(folder.parent, folder.name)
        folder.mkdir(parents=True)
    world.wait()
    dcp.save(named(model, optimizer, average), checkpoint_id=folder)


def load(folder: Path, model: nn.Module, optimizer: Optimizer, average: dict[str, Tensor] | None) -> None:
    """Reads the folder into a model, optimiser and average that may be cut up otherwise, or not at all.

    Each rank reads what it needs. The folder's index is a pickle: load only what you or one you trust has written.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: it is of another model.
    """
    if not (folder / ".metadata").is_file():
        raise FileNotFoundError(f"{folder} is not there or not whole, and the checkpoint beside it needs it")
    kept = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    for name, weight in model.named_parameters():
        if f"optimizer.{name}.step" in kept:
            optimizer.state[weight] = {
                "step": torch.zeros((), device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
    wanted = named(model, optimizer, average)
    differing = wanted.keys() ^ kept.keys()
    differing |= {name for name in wanted.keys() & kept.keys() if kept[name].size != wanted[name].shape}  # type: ignore[union-attr]
    if differing:
        raise ValueError(f"{folder} is of another model: {', '.join(sorted(differing)[:5])} differ")
    dcp.load(wanted, checkpoint_id=folder, no_dist=not torch.distributed.is_initialized())
