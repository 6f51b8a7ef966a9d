"""What layer norm and residual sums are for: the loss after so many updates, by depth, with and without them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...tasks import N_TO_M, Task
from ...transformer.blocks import EncoderBlock, Residual
from ..recipes import settings_for
from ..settings import Settings
from .claim import Claim, Panel, Setup, losses, trial, update_seconds

DEPTHS = (2, 6, 12, 24)
# One rate for all would suit some of them better than others; the best of these counts.
RATES = (1e-2, 1e-3, 1e-4)
LAST = 0.1  # the part of the updates whose mean loss is taken
MOST_UPDATES, FEWEST_UPDATES = 2000, 20


class NoNorm(nn.Module):
    """A sublayer with its residual sum and without a norm."""

    def __init__(self, whole: Residual) -> None:
        super().__init__()
        self.dropout = whole.dropout

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return x + self.dropout(sublayer(x))


class NoSum(nn.Module):
    """A sublayer behind its norm, without the residual sum."""

    def __init__(self, whole: Residual) -> None:
        super().__init__()
        self.norm, self.dropout = whole.norm, whole.dropout

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return self.dropout(sublayer(self.norm(x)))


class Neither(NoNorm):
    """A sublayer alone."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        return self.dropout(sublayer(x))


def change(model: nn.Module, part: Callable[[Residual], nn.Module], last_norm: bool) -> None:
    """Every sublayer of the encoder's blocks in another arrangement; without `last_norm` the stack ends without one."""
    encoder = model.encoder
    assert isinstance(encoder, nn.Module)
    for block in encoder.modules():
        if isinstance(block, EncoderBlock):
            block.residuals = nn.ModuleList(part(one) for one in block.residuals)  # type: ignore[arg-type]
    if not last_norm:
        encoder.norm = nn.Identity()


# (the config's norm, what is done with the model)
VARIANTS: Mapping[str, tuple[str, Callable[[nn.Module], None]]] = {
    "norm before, residual sum": ("pre-layer", lambda model: None),
    "norm after the sum": ("post-layer", lambda model: None),
    "no norm": ("pre-layer", partial(change, part=NoNorm, last_norm=False)),
    "no residual sum": ("pre-layer", partial(change, part=NoSum, last_norm=True)),
    "neither": ("pre-layer", partial(change, part=Neither, last_norm=False)),
}


@dataclass(frozen=True)
class Row:
    """`loss`: mean over the last tenth of the updates; None where it was not finite."""

    variant: str
    layers: int
    lr: float
    updates: int
    first_loss: float
    loss: float | None


def suits(task: Task) -> str | None:
    return None if task.shape != N_TO_M else f"it needs a task with an encoder alone, {task.name} is {task.shape}"


def settings_of(setup: Setup, variant: str, layers: int, lr: float, updates: int) -> Settings:
    options = {"encoder_layers": layers, "norm": VARIANTS[variant][0], "dropout": 0.0}
    given: dict[str, Any] = {"steps": updates, "lr": lr, "warmup": 0.1, "seed": setup.seed, "ema": None}
    return settings_for(setup.task, "transformer", "quick", setup.device, options=options, **given)


def measure(setup: Setup) -> list[Row]:
    """The same number of updates for all, as many as the budget allows."""
    depths, rates = (DEPTHS[::2], RATES[:1]) if setup.quick else (DEPTHS, RATES)
    updates = 2 if setup.quick else affordable(setup, depths, len(VARIANTS) * len(rates))
    rows = []
    for variant, (_, rebuild) in VARIANTS.items():
        for layers in depths:
            setup.say(f"{variant}, {layers} layers, {updates} updates")
            for lr in rates:
                settings = settings_of(setup, variant, layers, lr, updates)
                with trial(setup.task, settings, setup.data) as trainer:
                    rebuild(trainer.model)
                    found = list(losses(trainer, updates))
                last = statistics.fmean(found[-max(1, int(LAST * updates)) :])
                kept = round(last, 4) if math.isfinite(last) else None
                rows.append(Row(variant, layers, lr, updates, round(found[0], 4), kept))
    return rows


def affordable(setup: Setup, depths: Sequence[int], trainings: int) -> int:
    """How many updates of `trainings` models of each depth fit into the budget."""
    seconds = 0.0
    for layers in depths:
        settings = settings_of(setup, next(iter(VARIANTS)), layers, RATES[-1], 1)
        with trial(setup.task, settings, setup.data) as probe:
            seconds += update_seconds(probe, 3)
    return max(FEWEST_UPDATES, min(MOST_UPDATES, int(60 * setup.minutes / (trainings * seconds))))


def best(rows: Sequence[Row], variant: str, layers: int) -> Row | None:
    """The learning rate with the lowest loss; None where no loss was finite."""
    own = [row for row in rows if row.variant == variant and row.layers == layers and row.loss is not None]
    return min(own, key=lambda row: row.loss or 0.0, default=None)


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for variant, layers in dict.fromkeys((row.variant, row.layers) for row in rows):
        row = best(rows, variant, layers)
        own = next(one for one in rows if (one.variant, one.layers) == (variant, layers))
        figures = ("-", "not finite") if row is None else (f"{row.lr:g}", f"{row.loss:.3f}")
        found.append((variant, str(layers), f"{own.first_loss:.3g}", *figures, str(own.updates)))
    return found


def drawn(rows: Sequence[Row]) -> list[Row]:
    """What is drawn: the best learning rate of each."""
    pairs = dict.fromkeys((row.variant, row.layers) for row in rows)
    return [row for pair in pairs if (row := best(rows, *pair)) is not None]


CLAIM = Claim(
    name="depth",
    summary="training loss by depth, with and without layer norm and residual sums, the best of three learning rates",
    row=Row,
    measure=measure,
    columns=("variant", "layers", "first loss", "lr", "loss", "updates"),
    lines=lines,
    panels=(Panel("layers", "loss", "variant", "layers", "training loss at the end"),),
    suits=suits,
    drawn=drawn,
)
