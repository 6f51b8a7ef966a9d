"""The training loop."""

import dataclasses
import io
import math
import re
import statistics
import sys
import types
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn import functional

from trainer_runs import make, pairs, run, without_time
from undivided.training.batches import Examples
from undivided.training.checkpoint import load_training
from undivided.training.log import Display, read_log


def test_training_learns_logs_and_keeps_the_best(tmp_path: Path) -> None:
    trainer = make(tmp_path, steps=150, lr=1e-2)
    result = run(trainer)
    records = read_log(tmp_path / "log.jsonl")
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    scores = [record["wer"] for record in records if record["kind"] == "dev"]
    assert result.steps == 150 and not result.interrupted and len(losses) == 50 and len(scores) == 4
    assert losses[-1] < 0.9 * losses[0]
    kept = torch.load(io.BytesIO((tmp_path / "best.safetensors").read_bytes()), weights_only=True)
    assert result.best["wer"] == min(scores) == kept["about"]["dev"]["wer"]
    assert float(kept["weights"]["out.weight"].abs().sum()) == min(scores)


def test_a_score_is_shown_with_the_mean_loss_since_the_last_line_of_the_log(tmp_path: Path) -> None:
    shown = []
    for name, every in (("each", 1), ("seldom", 7)):
        printed = io.StringIO()
        make(tmp_path / name, steps=8, log_every=every).run(Display("", "wer", Console(file=printed)))
        shown.append(re.findall(r"update (\d), .* loss ([\d.]+),", printed.getvalue()))
    losses = [record["loss"] for record in read_log(tmp_path / "each" / "log.jsonl") if record["kind"] == "train"]
    assert shown[0] == [(str(step), f"{losses[step - 1]:.3f}") for step in (2, 4, 6, 8)]
    means = [statistics.fmean(losses[:step]) for step in (2, 4, 6)]
    assert shown[1] == [(str(2 * n), f"{mean:.3f}") for n, mean in enumerate((*means, losses[7]), start=1)]


def test_accumulated_batches_have_the_gradient_of_one_large_batch(tmp_path: Path) -> None:
    trainer = make(tmp_path, accumulate=3, batch_size=8, clip=0.0, steps=1)
    trainer.model.dropout = 0.0
    taken = [trainer.batches.examples.batch(rows) for rows in trainer.batches.order(0)[:3]]
    assert len({batch.tokens for batch in taken}) > 1  # so a mean of means would be wrong
    total = torch.zeros(())
    for one in taken:
        logits = trainer.model(one.src, one.tgt, src_lengths=one.src_lengths, tgt_lengths=one.tgt_lengths)
        total = total + functional.cross_entropy(logits.mT, one.targets, ignore_index=0, reduction="sum")
    (total / sum(int(one.tgt_lengths.sum()) for one in taken)).backward()
    wanted = [weight.grad.clone() for weight in trainer.model.parameters()]
    loss = float(total.detach()) / sum(one.tokens for one in taken)
    trainer.optimizer.zero_grad()
    seen: list[torch.Tensor] = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (seen.extend(w.grad.clone() for w in trainer.model.parameters()), step())  # type: ignore
    trainer.update(1e-3)
    torch.testing.assert_close(seen, wanted)
    assert float(trainer.loss_sum) == pytest.approx(loss) and trainer.loss_count == 1
    assert trainer.batches.position() == {"epoch": 0, "index": 3}


def test_a_gradient_is_clipped_to_its_norm_over_all_weights(tmp_path: Path) -> None:
    trainer, seen = make(tmp_path, clip=0.01), []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (seen.extend(w.grad.clone() for w in trainer.model.parameters()), step())  # type: ignore
    trainer.update(1e-3)
    assert float(torch.cat([one.flatten() for one in seen]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_autocast_computes_in_bfloat16_and_learns_in_float32(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    trainers = []
    for dtype in ("float32", "bfloat16"):
        trainers.append(make(tmp_path / dtype, dtype=dtype, steps=20, lr=1e-2))
        trainers[-1].model.out.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        run(trainers[-1])
    assert seen == [torch.float32] * 20 + [torch.bfloat16] * 20
    half = trainers[1]
    assert {value.dtype for value in half.model.state_dict().values()} == {torch.float32}
    assert {value.dtype for one in half.optimizer.state.values() for value in one.values()} == {torch.float32}
    full, low = ([one["loss"] for one in read_log(t.out / "log.jsonl") if one["kind"] == "train"] for t in trainers)
    assert low != full and low == pytest.approx(full, rel=2e-2) and low[-1] < low[0]


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    logs = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        run(make(tmp_path / name, seed=seed, steps=9))
        logs.append(without_time(read_log(tmp_path / name / "log.jsonl")))
    assert logs[0] == logs[1] and logs[0] != logs[2]


def test_a_checkpoint_comes_after_so_many_updates(tmp_path: Path) -> None:
    trainer = make(tmp_path, evaluations=1, checkpoint_steps=7)

    def kill(step: int) -> None:
        if step == 24:
            raise MemoryError("killed")

    trainer.model.before_step = kill
    with pytest.raises(MemoryError):
        run(trainer)
    assert load_training(tmp_path / "last.pt")["step"] == 21


def test_an_update_with_nothing_to_predict_changes_no_number_to_nan(tmp_path: Path) -> None:
    """Of a text that hides nothing there is nothing to learn."""
    trainer = make(tmp_path)
    empty = Examples(pairs(), "cpu").batch(torch.arange(16))
    none = dataclasses.replace(empty, targets=torch.zeros_like(empty.targets), tokens=0, all_tokens=0)
    trainer.batches = iter([none])
    trainer.update(1e-3)
    assert float(trainer.loss_sum) == 0 and all(one.isfinite().all() for one in trainer.model.parameters())


def test_a_run_ends_early_when_nothing_gets_better(tmp_path: Path) -> None:
    values = iter([5.0, 4.0, 4.5, 4.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0])
    trainer = make(tmp_path, steps=100, evaluations=10, patience=3)
    trainer.score = lambda model: {"wer": next(values)}
    result = run(trainer)
    assert result.steps == 50 and not result.interrupted and result.best == {"wer": 4.0}
    again = run(make(tmp_path, load_training(tmp_path / "last.pt"), steps=100, evaluations=10, patience=3))
    assert again.steps == 50 and not again.interrupted
    with pytest.raises(ValueError, match="patience=0 must be at least 1"):
        make(tmp_path, patience=0)


def test_a_higher_score_is_better_where_the_task_says_so(tmp_path: Path) -> None:
    trainer = make(tmp_path, steps=40, evaluations=4)
    values = iter([50.0, 70.0, 60.0, 65.0])
    trainer.score, trainer.better = lambda model: {"wer": next(values)}, lambda a, b: a["wer"] > b["wer"]
    assert run(trainer).best == {"wer": 70.0}


def test_numbers_go_to_tensorboard_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []
    opened: list[tuple[str, int | None]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            opened.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            opened.append(("closed", None))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run(make(tmp_path, tensorboard=True))
    assert opened == [(str(tmp_path / "tensorboard"), None), ("closed", None)]
    scores = {step: value for name, value, step in written if name == "dev/wer"}
    assert scores == {one["step"]: one["wer"] for one in read_log(tmp_path / "log.jsonl") if one["kind"] == "dev"}
    assert {"train/loss", "train/lr"} <= {name for name, _, _ in written}
    make(tmp_path, load_training(tmp_path / "last.pt"), tensorboard=True)
    assert opened[-1] == (str(tmp_path / "tensorboard"), 41)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="tensorboard is not installed.*pip install tensorboard"):
        make(tmp_path / "other", tensorboard=True)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_state(tmp_path: Path) -> None:
    trainer = make(tmp_path, checkpoint_seconds=0.0)

    def spoil(step: int) -> None:
        if step == 20:
            trainer.model.out.bias.data.fill_(math.nan)

    trainer.model.before_step = spoil
    with pytest.raises(ValueError, match="the loss is nan at update 20: lower --lr"):
        run(trainer)
    assert all(value.isfinite().all() for value in load_training(tmp_path / "last.pt")["model"].values())


def test_averaged_weights_are_scored_and_the_weights_come_back(tmp_path: Path) -> None:
    trainer = make(tmp_path, ema=0.5)
    run(trainer)
    own = trainer.model.state_dict()["out.weight"]
    assert not torch.equal(own, trainer.average["out.weight"])
    assert read_log(tmp_path / "log.jsonl")[-1]["wer"] == float(trainer.average["out.weight"].abs().sum())


def test_the_average_forgets_faster_in_the_beginning(tmp_path: Path) -> None:
    trainer = make(tmp_path, ema=0.25)
    wanted = trainer.model.out.weight.detach().clone()
    for decay in (2 / 11, 3 / 12, 0.25):  # (1 + step) / (10 + step), up to ema
        trainer.update(1e-2)
        wanted = decay * wanted + (1 - decay) * trainer.model.out.weight.detach()
        torch.testing.assert_close(trainer.average["out.weight"], wanted)
