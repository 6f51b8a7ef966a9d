"""Puts a task, a model and the trainer together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..tasks import PairData, Task
from ..tasks.frames import Frames
from .batches import Examples
from .finetuning import freeze, transfer
from .inference import answer
from .models import KINDS, SavedModel, build, save_model
from .renewed import Renewed
from .settings import Settings
from .shapes import SHAPES
from .trainer import Trainer
from .world import ALONE, World


def prepare(
    task: Task,
    settings: Settings,
    data: PairData,
    out: Path,
    state: dict[str, Any] | None = None,
    start: SavedModel | None = None,
    say: Callable[[str], None] = lambda text: None,
    world: World = ALONE,
) -> Trainer:
    """A trainer that is ready to run, on the processes of `world`.

    At the beginning, with the weights of `start` where that is given, in which case `say` is told what fitted; or,
    with the `state` of a `last.pt`, where that was written.

    Raises:
        ValueError: the settings do not fit the task or the model.
    """
    if settings.batches == "packed" and settings.model in KINDS and not KINDS[settings.model].packs:
        packing = ", ".join(name for name, kind in KINDS.items() if kind.packs)
        raise ValueError(f"model={settings.model!r} takes no packed batches; those that do: {packing}")
    if settings.batches == "packed" and isinstance(data.source, Frames):
        raise ValueError(f"batches='packed' is not for {task.name}: what hears the frames needs padding between sounds")
    torch.manual_seed(settings.seed)
    shape = SHAPES[task.shape]
    model = build(settings.model, task.shape, data.source, data.target, settings.model_options)
    if start is not None:
        say(f"from {settings.start}: {transfer(model, data.source, data.target, start)}")
    freeze(model, settings.freeze)
    chosen = data.dev[: settings.dev_words or None]
    inputs, references = [one.source for one in chosen], [one.references for one in chosen]

    def score(scored: nn.Module) -> dict[str, float]:
        return task.score(answer(scored, task, data.source, data.target, inputs), references)

    def save_best(path: Path, best: nn.Module, about: dict[str, Any]) -> None:
        threads = torch.get_num_threads() if settings.device == "cpu" else None
        about = {**about, "split": data.split, "comparable": data.comparable, "threads": threads}
        save_model(path, best, settings.model, task.name, data.source, data.target, about)

    def pairs(epoch: int) -> list[tuple[Any, Any]]:
        texts = data.train if data.renewed is None else data.renewed(epoch)
        return [(data.source.encode(source), data.target.encode(target)) for source, target in texts]

    device, shifted = settings.device, shape.shifted
    examples = Examples(pairs(0), device, shifted) if data.renewed is None else Renewed(pairs, device, shifted)
    return Trainer(settings, model, examples, score, task.metric, save_best, out, state, shape, task.better, world)
