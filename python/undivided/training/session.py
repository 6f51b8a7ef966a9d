"""Puts a task, a model and the trainer together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..tasks import PairData, Task
from .batches import Examples
from .finetuning import freeze, transfer
from .inference import answer
from .models import SavedModel, build, save_model
from .settings import Settings
from .shapes import SHAPES
from .trainer import Trainer


def prepare(
    task: Task,
    settings: Settings,
    data: PairData,
    out: Path,
    state: dict[str, Any] | None = None,
    start: SavedModel | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Trainer:
    """A trainer that is ready to run.

    At the beginning, with the weights of `start` where that is given, in which case `say` is told what fitted; or,
    with the `state` of a `last.pt`, where that was written.
    """
    torch.manual_seed(settings.seed)
    shape = SHAPES[task.shape]
    model = build(settings.model, task.shape, data.source, data.target, settings.model_options)
    if start is not None:
        say(f"from {settings.start}: {transfer(model, data.source, data.target, start)}")
    freeze(model, settings.freeze)
    pairs = [(data.source.encode(source), data.target.encode(target)) for source, target in data.train]
    chosen = data.dev[: settings.dev_words or None]
    inputs, references = [one.source for one in chosen], [one.references for one in chosen]

    def score(scored: nn.Module) -> dict[str, float]:
        return task.score(answer(scored, task, data.source, data.target, inputs), references)

    def save_best(path: Path, best: nn.Module, about: dict[str, Any]) -> None:
        threads = torch.get_num_threads() if settings.device == "cpu" else None
        about = {**about, "split": data.split, "comparable": data.comparable, "threads": threads}
        save_model(path, best, settings.model, task.name, data.source, data.target, about)

    examples = Examples(pairs, settings.device, shape.shifted)
    return Trainer(settings, model, examples, score, task.metric, save_best, out, state, shape, task.better)
