"""Small trainings that one process and several must do alike, and the processes that do them."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from undivided.tasks import N_TO_1, N_TO_M, N_TO_N, Vocabulary
from undivided.training.batches import Examples
from undivided.training.checkpoint import LAST, load_training
from undivided.training.finetuning import freeze
from undivided.training.log import Display, read_log
from undivided.training.models import build
from undivided.training.settings import Settings
from undivided.training.shapes import SHAPES
from undivided.training.trainer import Trainer
from undivided.training.world import ALONE, World

UPDATES, BROKEN_AT, PAIRS = 6, 3, 49
SOURCE, TARGET = Vocabulary("abcdef"), Vocabulary("uvwxyz")
SIZES = {
    # 3 rows of d_model 9 on 4 ranks, and 10 of d_ff on 4: parts that are not equal, and of which some are empty.
    "transformer": {"d_model": 18, "nheads": 3, "d_ff": 10, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0},
    "gru": {"d_model": 8, "layers": 1, "dropout": 0.0},
}
# Batches of 12 of 49 pairs: in every epoch there is one of a single pair, which leaves all other ranks without any.
CASES: dict[str, dict[str, Any]] = {
    "ddp": dict(parallel="ddp", accumulate=2, ema=0.9, label_smoothing=0.1, clip=0.5),
    "fsdp": dict(parallel="fsdp", accumulate=2, ema=0.9, label_smoothing=0.1, clip=0.5),
    "ddp, packed": dict(parallel="ddp", batches="packed", batch_tokens=90),
    "fsdp, packed tags": dict(parallel="fsdp", batches="packed", shape=N_TO_N),
    "ddp, one label": dict(parallel="ddp", shape=N_TO_1, weight_decay=0.1),
    "fsdp, one table": dict(parallel="fsdp", shared=True),
    "ddp, gru": dict(parallel="ddp", model="gru"),
    "fsdp, gru": dict(parallel="fsdp", model="gru"),
    "fsdp, frozen": dict(parallel="fsdp", freeze=1, layer_rate=0.5),
}
ON_FOUR = ("ddp", "fsdp", "ddp, packed", "fsdp, packed tags", "fsdp, one table")


class Broken(Exception):
    """What ends a training between two updates."""


def pairs(shape: str) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for source, target in torch.randint(1, 8, (PAIRS, 2), generator=generator).tolist():
        target = {N_TO_M: target, N_TO_N: source, N_TO_1: 1}[shape]
        made.append(tuple(torch.randint(3, 9, (size,), generator=generator).tolist() for size in (source, target)))
    return made


def make(name: str, out: Path, world: World = ALONE, state: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    given = {"model": "transformer", "steps": UPDATES, "batch_size": 12, "lr": 1e-2, **CASES[name], **changes}
    shape, shared, dropout = given.pop("shape", N_TO_M), given.pop("shared", False), given.pop("dropout", 0.0)
    settings = Settings("g2p", log_every=1, evaluations=2, **{"parallel": None, **given})
    sizes = {**SIZES[settings.model], "dropout": dropout} | ({"shared_embedding": True} if shared else {})
    torch.manual_seed(0)
    model = build(settings.model, shape, SOURCE, SOURCE if shared else TARGET, sizes)
    if settings.freeze:
        freeze(model, settings.freeze)

    def score(scored: nn.Module) -> dict[str, float]:
        assert not scored.training and world.main
        return {"wer": sum(float(value.abs().double().sum()) for value in scored.state_dict().values())}

    def keep(path: Path, kept: nn.Module, about: dict[str, Any]) -> None:
        torch.save(kept.state_dict(), path)

    examples = Examples(pairs(shape), "cpu", SHAPES[shape].shifted)
    # The last score is the best, whatever it is, so that the final weights are kept.
    better = lambda a, b: True  # noqa: E731
    return Trainer(settings, model, examples, score, "wer", keep, out, state, SHAPES[shape], better, world)


def run(trainer: Trainer, broken_at: int | None = None) -> None:
    update = trainer.update

    def breaking(rate: float) -> None:
        if trainer.step == broken_at:
            raise Broken
        update(rate)

    trainer.update = breaking  # type: ignore[method-assign]
    try:
        trainer.run(Display("test", "wer", quiet=True))
        assert broken_at is None
    except Broken:
        trainer.log.close()


def go_on(name: str, out: Path, world: World = ALONE, **changes: Any) -> None:
    world.wait()  # until rank 0 has written
    run(make(name, out, world, load_training(out / LAST), **changes))


def break_and_go_on(name: str, out: Path, world: World, **changes: Any) -> None:
    run(make(name, out, world, checkpoint_steps=1, **changes), BROKEN_AT)
    go_on(name, out, world, **changes)


def records(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key != "seconds"} for one in read_log(out / "log.jsonl")]


def assert_same_log(got: Path, wanted: Path, tolerance: float = 1e-5) -> None:
    """Losses, rates and scores at every update."""
    found, expected = records(got), records(wanted)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        kind = other.pop("kind")
        assert one.pop("kind") == kind and one == pytest.approx(other, rel=tolerance, abs=0)


def copy_for(world: World, source: Path, target: Path) -> None:
    if world.main:
        shutil.copytree(source, target)
    world.wait()


def on_four(folder: Path, world: World) -> None:
    for name in ON_FOUR:
        run(make(name, folder / "4" / name, world))
    run(make("fsdp", folder / "parts", world, checkpoint_steps=1), BROKEN_AT)


def on_two(folder: Path, world: World) -> None:
    for name in CASES:
        run(make(name, folder / "2" / name, world))
    for name in ("ddp", "fsdp"):
        run(make(name, folder / "dropout" / name, world, dropout=0.3))
        break_and_go_on(name, folder / "dropout, broken" / name, world, dropout=0.3)
    copy_for(world, folder / "parts", folder / "from parts" / "fsdp")
    go_on("fsdp", folder / "from parts" / "fsdp", world)
    copy_for(world, folder / "parts", folder / "from parts" / "ddp")
    go_on("ddp", folder / "from parts" / "ddp", world)
    run(make("ddp", folder / "whole", world, checkpoint_steps=1), BROKEN_AT)
    copy_for(world, folder / "whole", folder / "from whole" / "fsdp")
    go_on("fsdp", folder / "from whole" / "fsdp", world)


def work(rank: int, folder: Path) -> None:
    """One of four processes; two of them then are a world of their own."""
    torch.set_num_threads(1)
    for size, todo in ((4, on_four), (2, on_two)):
        if rank < size:
            store = f"file://{folder}/store-{size}"
            dist.init_process_group(
                "gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=500)
            )
            todo(folder, World(rank, size, True))
            dist.destroy_process_group()
