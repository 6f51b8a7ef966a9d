"""Copying weights between a model here and one of the transformers library, by a table of names."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

# Ours, the name of a weight or of the module that has it: theirs. Several of theirs are stacked in ours along the first
# dimension; None is one that they do not have: zeros in ours. {n} is the number of a block.
Names = dict[str, tuple[str | None, ...]]


def their_names(key: str, names: Names) -> list[str | None]:
    """The weights of theirs that make up our weight `key`."""
    number = re.search(r"(?<=\.blocks\.)\d+", key)
    pattern = key if number is None else f"{key[: number.start()]}{{n}}{key[number.end() :]}"
    module, _, leaf = pattern.rpartition(".")
    found = names[pattern] if pattern in names else [f"{name}.{leaf}" for name in names[module]]
    return [name and name.replace("{n}", number[0] if number else "") for name in found]


@torch.no_grad()
def copy_weights(
    ours: nn.Module, theirs: dict[str, Tensor], names: Names, computed: tuple[str, ...], to_ours: bool
) -> None:
    """Every weight, in one direction or the other, in place.

    Args:
        theirs: the state_dict of their model.
        computed: those of theirs which are made here, not kept.

    Raises:
        ValueError: a weight is missing or has another shape, or theirs has weights that have no place in ours.
    """
    used = set()
    for key, mine in ours.state_dict().items():
        parts = their_names(key, names)
        for name, part in zip(parts, mine.chunk(len(parts)), strict=True):
            if name is not None:
                if name not in theirs:
                    raise ValueError(f"{name} is missing: our {key} is made of it")
                _copy(name, theirs[name], part, to_ours)
                used.add(theirs[name].data_ptr())
            elif to_ours:
                part.zero_()
    # A name of a tied weight is another name of one that was copied.
    left = [name for name, value in theirs.items() if value.data_ptr() not in used and name not in computed]
    if left:
        raise ValueError(f"there are weights that have no place in our model: {', '.join(left)}")


def _copy(name: str, theirs: Tensor, ours: Tensor, to_ours: bool) -> None:
    if theirs.shape != ours.shape:
        raise ValueError(f"{name} has shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
    target, source = (ours, theirs) if to_ours else (theirs, ours)
    target.copy_(source)
