"""Puts a task, a model and the trainer together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..tasks import PairData, Task
from .batches import Examples
from .inference import answer
from .models import build, save_model
from .settings import Settings
from .trainer import Trainer


def prepare(task: Task, settings: Settings, data: PairData, out: Path, state: dict[str, Any] | None = None) -> Trainer:
    """A trainer that is ready to run, at the start or, with the `state` of a `last.pt`, where that was written."""
    torch.manual_seed(settings.seed)
    model = build(settings.model, len(data.source), len(data.target), settings.model_options)
    pairs = [(data.source.encode(source), data.target.encode(target)) for source, target in data.train]
    references = dict(list(data.dev.items())[: settings.dev_words or None])

    def score(scored: nn.Module) -> dict[str, float]:
        words = {word: task.symbols(word) for word in references}
        return task.score(answer(scored, data.source, data.target, words, task.longest_output), references)

    def save_best(path: Path, best: nn.Module, about: dict[str, Any]) -> None:
        about = {**about, "split": data.split, "comparable": data.comparable}
        save_model(path, best, settings.model, task.name, data.source, data.target, about)

    examples = Examples(pairs, settings.device)
    return Trainer(settings, model, examples, score, task.metric, save_best, out, state)
