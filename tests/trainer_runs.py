"""Runs of the trainer with a stand-in model, so that failures are the trainer's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from undivided.training.batches import Examples
from undivided.training.log import Display
from undivided.training.settings import Settings
from undivided.training.trainer import Result, Trainer

VOCABULARY = 9


class Standin(nn.Module):
    """Predicts each target from the one before and the sum of the source; dropout makes it depend on the generator."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout
        self.src, self.tgt = nn.Embedding(VOCABULARY, 8), nn.Embedding(VOCABULARY, 8)
        self.out = nn.Linear(8, VOCABULARY)
        self.before_step: Callable[[int], None] = lambda step: None
        self.calls = 0

    def forward(self, src: torch.Tensor, tgt: torch.Tensor, **lengths: torch.Tensor) -> torch.Tensor:
        assert lengths.keys() == {"src_lengths", "tgt_lengths"}
        if self.training:
            self.calls += 1
            self.before_step(self.calls)
        mixed = self.tgt(tgt) + self.src(src).sum(1, keepdim=True)
        return self.out(functional.dropout(mixed, self.dropout, self.training))


def pairs(count: int = 300) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(7)
    sizes = torch.randint(1, 9, (count, 2), generator=generator).tolist()
    return [
        tuple(torch.randint(3, VOCABULARY, (size,), generator=generator).tolist() for size in both) for both in sizes
    ]


def make(out: Path, state: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    settings = Settings(**{"task": "g2p", "steps": 40, "batch_size": 16, "log_every": 3, "evaluations": 4, **changes})
    torch.manual_seed(settings.seed)
    model = Standin()

    def score(scored: nn.Module) -> dict[str, float]:
        assert not scored.training
        return {"wer": float(scored.out.weight.abs().sum())}

    def save_best(path: Path, saved: nn.Module, about: dict[str, Any]) -> None:
        torch.save({"weights": saved.state_dict(), "about": about}, path)

    return Trainer(settings, model, Examples(pairs(), "cpu"), score, "wer", save_best, out, state)


def run(trainer: Trainer) -> Result:
    return trainer.run(Display("test", "wer", quiet=True))


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
