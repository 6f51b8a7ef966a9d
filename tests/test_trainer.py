"""Batches, schedule, checkpoints and the loop, with a stand-in model so that failures here are the trainer's own."""

import dataclasses
import io
import math
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from undivided.training import trainer as trainer_module
from undivided.training.batches import Batches, Examples
from undivided.training.checkpoint import load_training, save_training, write_atomically
from undivided.training.log import Display, MetricsLog, read_log
from undivided.training.loss import token_loss
from undivided.training.schedule import Budget, Schedule
from undivided.training.settings import Settings, choose_device, choose_dtype
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


def test_an_epoch_has_every_pair_once_in_batches_of_like_length() -> None:
    examples = Examples(pairs(1000), "cpu")
    batches = Batches(examples, 16, seed=3)
    order = batches.order(0)
    assert sorted(torch.cat(order).tolist()) == list(range(1000)) and len(order) == len(batches) == 63
    taken = [examples.batch(rows) for rows in order]
    real = sum(int(batch.src_lengths.sum()) for batch in taken)
    assert real / sum(batch.src.numel() for batch in taken) > 0.9
    assert [rows.tolist() for rows in batches.order(1)] != [rows.tolist() for rows in order]


def test_targets_are_the_inputs_moved_by_one() -> None:
    batch = Examples([([3, 4], [5, 6, 7]), ([3], [8])], "cpu").batch(torch.tensor([0, 1]))
    assert batch.src.tolist() == [[3, 4], [3, 0]] and batch.src_lengths.tolist() == [2, 1]
    assert batch.tgt[0].tolist() == [1, 5, 6, 7] and batch.targets[0].tolist() == [5, 6, 7, 2]
    assert batch.targets[1].tolist() == [8, 2, 0, 0] and batch.tgt_lengths.tolist() == [4, 2] and batch.tokens == 6


def test_labels_are_targets_as_they_are_and_words_may_have_several_numbers() -> None:
    rows = [([(3, 7), (4, 8)], [5, 6]), ([(3, 9)], [8])]
    batch = Examples(rows, "cpu", shifted=False).batch(torch.tensor([1, 0]))
    assert batch.src.tolist() == [[[3, 9], [0, 0]], [[3, 7], [4, 8]]] and batch.src_lengths.tolist() == [1, 2]
    assert batch.targets.tolist() == [[8, 0], [5, 6]] and batch.tgt_lengths.tolist() == [1, 2] and batch.tokens == 3


def test_the_order_depends_on_seed_and_epoch_and_can_be_taken_up_anywhere() -> None:
    examples = Examples(pairs(), "cpu")
    whole = Batches(examples, 32, seed=5)
    taken = [next(whole).src for _ in range(25)]
    first = Batches(examples, 32, seed=5)
    for _ in range(13):
        next(first)
    second = Batches(examples, 32, seed=5)
    second.restore(first.position())
    assert all(torch.equal(next(second).src, wanted) for wanted in taken[13:])
    assert Batches(examples, 32, seed=6).order(0)[0].tolist() != Batches(examples, 32, seed=5).order(0)[0].tolist()
    with pytest.raises(ValueError, match="batch 99 of an epoch of 10"):
        second.restore({"epoch": 0, "index": 99})


def test_empty_data_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        Examples([], "cpu")
    with pytest.raises(ValueError, match="source 1 is empty"):
        Examples([([3], [4]), ([], [4])], "cpu")


def test_the_rate_warms_up_and_falls_to_the_floor() -> None:
    schedule = Schedule(peak=2.0, warmup=0.1, floor=0.25)
    assert schedule.rate(0.05) == pytest.approx(1.0) and schedule.rate(0.1) == pytest.approx(2.0)
    assert schedule.rate(0.55) == pytest.approx(2.0 * (0.25 + 0.75 * 0.5)) and schedule.rate(1.0) == pytest.approx(0.5)
    assert schedule.rate(0.0) > 0
    assert Schedule(1.0, warmup=0.0).rate(0.0) == 1.0
    with pytest.raises(ValueError, match="warmup=1"):
        Schedule(1.0, warmup=1.0)
    with pytest.raises(ValueError, match="lr=0"):
        Schedule(0.0)


def test_the_rate_may_fall_with_the_inverse_square_root() -> None:
    schedule = Settings("g2p", steps=1, lr=2.0, warmup=0.04, floor=0.3, lr_decay="inverse-sqrt").schedule
    assert schedule.rate(0.02) == pytest.approx(1.0) and schedule.rate(0.04) == pytest.approx(2.0)
    assert schedule.rate(0.16) == pytest.approx(1.0) and schedule.rate(1.0) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="warmup=0 must be above 0"):
        Settings("g2p", steps=1, warmup=0, lr_decay="inverse-sqrt")
    with pytest.raises(ValueError, match="lr_decay='linear' is unknown; allowed: cosine, inverse-sqrt"):
        Settings("g2p", steps=1, lr_decay="linear")


def test_a_budget_is_steps_or_minutes() -> None:
    assert Budget(steps=10).fraction(5, 1e9) == 0.5 and Budget(minutes=2).fraction(10**9, 30) == 0.25
    assert Budget(minutes=1).fraction(0, 90) == 1.0
    for steps, minutes in ((None, None), (1, 1.0), (0, None), (None, -1.0)):
        with pytest.raises(ValueError, match=f"given steps={steps}, minutes={minutes}"):
            Budget(steps, minutes)


def test_padding_adds_nothing_to_the_loss() -> None:
    batch = Examples([([3, 4], [5, 6, 7]), ([3], [8])], "cpu").batch(torch.tensor([0, 1]))
    logits = torch.randn(2, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    expected = -sum(
        logits[row, column].log_softmax(-1)[symbol]
        for row, column, symbol in ((0, 0, 5), (0, 1, 6), (0, 2, 7), (0, 3, 2), (1, 0, 8), (1, 1, 2))
    )
    assert torch.allclose(token_loss(logits, batch), expected / 6)
    logits[1, 2:] = 1e9
    logits.requires_grad_()
    loss = token_loss(logits, batch, label_smoothing=0.1)
    loss.backward()
    assert float(loss.detach()) < 10 and bool((logits.grad[1, 2:] == 0).all())


def test_label_smoothing_spreads_its_part_over_all_symbols() -> None:
    batch = Examples([([3, 4], [5, 6, 7]), ([3], [8])], "cpu").batch(torch.tensor([0, 1]))
    logits = torch.randn(2, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    log_p, inside = logits.log_softmax(-1), batch.targets > 0
    right = log_p.gather(-1, batch.targets[..., None])[..., 0][inside].mean()
    wanted = -(0.7 * right + 0.3 * log_p.mean(-1)[inside].mean())
    torch.testing.assert_close(token_loss(logits, batch, label_smoothing=0.3), wanted)


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


def test_a_checkpoint_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Before there were accumulation, patience and rates a layer, a checkpoint said nothing of them."""
    whole = make(tmp_path / "whole")
    run(whole)
    broken = make(tmp_path / "broken", checkpoint_seconds=0.0)
    broken.model.before_step = lambda step: signal.raise_signal(signal.SIGINT) if step == 17 else None
    run(broken)
    state = load_training(tmp_path / "broken" / "last.pt")
    for name in ("accumulate", "lr_decay", "patience", "tensorboard", "start", "freeze", "layer_rate"):
        del state["settings"][name]
    del state["unimproved"]
    for group in state["optimizer"]["param_groups"]:
        del group["part"]
    assert Settings.from_dict(state["settings"]) == broken.settings
    resumed = make(tmp_path / "broken", state)
    assert run(resumed).steps == 40
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


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


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_killed_run_goes_on_with_the_losses_of_an_unbroken_one(tmp_path: Path, ema: float | None) -> None:
    whole = make(tmp_path / "whole", ema=ema)
    run(whole)

    broken = make(tmp_path / "broken", ema=ema, checkpoint_seconds=0.0)

    def kill(step: int) -> None:
        if step == 24:  # in the second epoch, between two lines of the log
            raise MemoryError("killed")

    broken.model.before_step = kill
    with pytest.raises(MemoryError):
        run(broken)
    broken.log.write(kind="train", step=999)  # what a run wrote after its last checkpoint must go
    state = load_training(tmp_path / "broken" / "last.pt")
    assert state["step"] == 23
    resumed = make(tmp_path / "broken", state, ema=ema)
    assert run(resumed).steps == 40

    logs = [without_time(read_log(tmp_path / name / "log.jsonl")) for name in ("whole", "broken")]
    assert logs[0] == logs[1] and len(logs[0]) == 13 + 4
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert whole.best == resumed.best


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_minutes_restore_the_time_that_was_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(trainer_module, "time", clock)
    first = make(tmp_path, steps=None, minutes=1.0, checkpoint_seconds=0.0)

    def tick(step: int) -> None:
        clock.now += 1.0
        if step == 31:
            raise MemoryError("killed")

    first.model.before_step = tick
    with pytest.raises(MemoryError):
        run(first)
    clock.now += 1e6  # time between two runs is nobody's
    state = load_training(tmp_path / "last.pt")
    assert state["spent"] == 30.0
    second = make(tmp_path, state, steps=None, minutes=1.0)
    second.model.before_step = lambda step: setattr(clock, "now", clock.now + 1.0)
    result = run(second)
    assert result.steps == 60 and result.seconds == 60.0
    rates = {record["step"]: record["lr"] for record in read_log(tmp_path / "log.jsonl") if record["kind"] == "train"}
    assert rates[33] == pytest.approx(first.settings.schedule.rate(32 / 60))
    scored = [record["step"] for record in read_log(tmp_path / "log.jsonl") if record["kind"] == "dev"]
    assert scored == [15, 30, 45, 60]  # by the minute


def test_an_interrupt_finishes_the_update_and_writes_a_checkpoint(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    trainer = make(tmp_path)
    trainer.model.before_step = lambda step: signal.raise_signal(signal.SIGINT) if step == 7 else None
    result = run(trainer)
    assert result.interrupted and result.steps == 7 and load_training(tmp_path / "last.pt")["step"] == 7
    assert signal.getsignal(signal.SIGINT) is before
    resumed = make(tmp_path, load_training(tmp_path / "last.pt"))
    assert run(resumed).steps == 40


@pytest.fixture
def interruptible():
    """A process started in the background ignores SIGINT: what is tested is a process in the foreground."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_is_not_swallowed(tmp_path: Path, interruptible: None) -> None:
    trainer = make(tmp_path)

    def twice(step: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer.model.before_step = twice
    with pytest.raises(KeyboardInterrupt):
        run(trainer)


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


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_training(path, {"step": 1})

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, fail)
    assert load_training(path)["step"] == 1 and os.listdir(tmp_path) == ["last.pt"]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing was trained"):
        load_training(tmp_path / "last.pt")
    (tmp_path / "last.pt").write_text("hello")
    with pytest.raises(ValueError, match="is not a training checkpoint"):
        load_training(tmp_path / "last.pt")
    torch.save({"format": 0}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="has format 0, this version reads 1"):
        load_training(tmp_path / "last.pt")


def test_a_log_with_half_a_line_is_read_up_to_it(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "log.jsonl")
    log.write(step=1)
    log.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"batch_tokens": 0}, "batch_tokens=0 must be at least 1"),
        ({"checkpoint_steps": 0}, "checkpoint_steps=0 must be at least 1"),
        ({"batches": "loose"}, "batches='loose' is unknown; allowed: padded, packed"),
        ({"parallel": "pipeline"}, "parallel='pipeline' is unknown; allowed: ddp, fsdp"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"dtype": "int8"}, "dtype='int8' is unknown; allowed: float32"),
        ({"dtype": "float16"}, "loss scaling"),
        ({"clip": -1.0}, "clip=-1.0"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Settings(**{"task": "g2p", "steps": 1, **changes})


def test_settings_survive_a_checkpoint_and_unknown_ones_are_refused() -> None:
    settings = Settings("g2p", minutes=2.0, model_options={"d_model": 64})
    assert Settings.from_dict(settings.to_dict()) == settings
    with pytest.raises(ValueError, match="unknown settings colour"):
        Settings.from_dict({**settings.to_dict(), "colour": 1})


def test_device_and_dtype_follow_the_machine() -> None:
    assert choose_device("cpu") == "cpu" and choose_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_dtype("auto", "cpu") == "float32" and choose_dtype("auto", "cuda:0") == "bfloat16"
    assert choose_dtype("float32", "cuda") == "float32"
    with pytest.raises(ValueError, match="device='abacus' is unknown"):
        choose_device("abacus")
    with pytest.raises(ValueError, match="is not there"):
        choose_device(f"cuda:{torch.cuda.device_count()}")
