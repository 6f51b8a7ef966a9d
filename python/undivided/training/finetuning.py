"""Starting from a trained model: which of its weights fit, which layers stay, how fast the others learn."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..tasks import Vocabulary
from .models import SavedModel

# A block of a transformer, or a layer of recurrent cells.
_LAYER = re.compile(r"\.blocks\.(\d+)\.|_l(\d+)(?:_reverse)?$")
# What has a row for every symbol of a vocabulary: of the source in an encoder, else of the target.
_TABLE = re.compile(r"\.embedding\.(words\.)?weight$|^classes\.")


@dataclass(frozen=True)
class Transfer:
    """What a model took from another: names of its tensors, and counts of its symbols."""

    taken: tuple[str, ...]
    new: tuple[str, ...]
    source_symbols: tuple[int, int]  # (known before, all)
    target_symbols: tuple[int, int]

    def __str__(self) -> str:
        lines = (
            f"{len(self.taken)} of {len(self.taken) + len(self.new)} tensors, {self.source_symbols[0]} of "
            f"{self.source_symbols[1]} source and {self.target_symbols[0]} of {self.target_symbols[1]} target symbols"
        )
        return lines + (f"; new: {', '.join(self.new)}" if self.new else "")


@torch.no_grad()
def transfer(model: nn.Module, source: Vocabulary, target: Vocabulary, saved: SavedModel) -> Transfer:
    """Copies what fits from `saved` into `model`, whose vocabularies are `source` and `target`.

    Rows of embeddings and of outputs belong to symbols and follow them; a symbol that `saved` did not know keeps its
    random row. Other tensors are copied where there is one of the same name; what `saved` has not, stays random.

    Raises:
        ValueError: a tensor has another shape, or no layer of the encoder is in both: kind or sizes differ.
    """
    theirs, taken, new = saved.model.state_dict(), [], []
    rows = {"source": common(source, saved.source), "target": common(target, saved.target)}
    for name, mine in model.state_dict().items():
        given, is_table = theirs.get(name), _TABLE.search(name) is not None
        if given is None:
            new.append(name)
            continue
        if (given.shape[1:] if is_table else given.shape) != (mine.shape[1:] if is_table else mine.shape):
            raise ValueError(f"{name} has shape {tuple(mine.shape)}, in the checkpoint it has {tuple(given.shape)}")
        if is_table:
            here, there = rows["source" if name.startswith("encoder.") else "target"]
            mine[here] = given[there].to(mine)
        else:
            mine.copy_(given)
        taken.append(name)
    if not any(name.startswith("encoder.") and _LAYER.search(name) for name in taken):
        raise ValueError(
            f"no layer of the {saved.kind} of task {saved.task.name} fits this model: kind or sizes differ"
        )
    known = {
        "source_symbols": (len(rows["source"][0]), len(source)),
        "target_symbols": (len(rows["target"][0]), len(target)),
    }
    return Transfer(tuple(taken), tuple(new), **known)


def common(mine: Vocabulary, theirs: Vocabulary) -> tuple[Tensor, Tensor]:
    """Ids of the symbols that both have: (here, there), int64."""
    there = {symbol: number for number, symbol in enumerate(theirs.all_symbols)}
    pairs = [(number, there[symbol]) for number, symbol in enumerate(mine.all_symbols) if symbol in there]
    here, found = torch.tensor(pairs, dtype=torch.int64).unbind(1)  # the special symbols are always there
    return here, found


def layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters in layers, the lowest first.

    The encoder's embedding; each block of the encoder, the last with the norm behind it; each block of the decoder;
    and on top what makes the output, to which the decoder's embedding belongs, since it is the same table.
    """
    found: dict[tuple[int, int], list[nn.Parameter]] = {}
    named = dict(model.named_parameters())
    highest = max((number_of(name) for name in named if name.startswith("encoder.")), default=0)
    for name, parameter in named.items():
        number = number_of(name)
        if name.startswith("encoder."):
            low = ".embedding" in name or ".positions" in name
            key = (0, number if number else (0 if low else highest))
        else:
            key = (1, number) if number else (2, 0)
        found.setdefault(key, []).append(parameter)
    return [found[key] for key in sorted(found)]


def number_of(name: str) -> int:
    """1 for the first block of a stack, and so on; 0 for what is in no block."""
    match = _LAYER.search(name)
    return 0 if match is None else 1 + int(match[1] if match[1] is not None else match[2])


def freeze(model: nn.Module, count: int) -> None:
    """The lowest `count` layers learn nothing.

    Raises:
        ValueError: no layer would be left to learn.
    """
    stack = layers(model)
    if count >= len(stack):
        raise ValueError(f"freeze={count} leaves nothing to learn; this model has {len(stack)} layers")
    for layer in stack[:count]:
        for parameter in layer:
            parameter.requires_grad_(False)


def rates(model: nn.Module, layer_rate: float) -> list[tuple[float, list[nn.Parameter]]]:
    """(part of the learning rate, parameters): 1 on top, and `layer_rate` times as much with each layer down."""
    if layer_rate == 1:
        return [(1.0, list(model.parameters()))]
    stack = layers(model)
    return [(layer_rate ** (len(stack) - 1 - number), layer) for number, layer in enumerate(stack)]
