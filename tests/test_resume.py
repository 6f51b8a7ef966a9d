"""Runs that are broken off, and what they leave: checkpoints, logs and the way on from them."""

import io
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from trainer_runs import make, run, without_time
from undivided.training import trainer as trainer_module
from undivided.training.checkpoint import load_training, save_training, write_atomically
from undivided.training.log import Display, MetricsLog, read_log
from undivided.training.settings import Settings


def test_a_checkpoint_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Before there were accumulation, patience and rates a layer, a checkpoint said nothing of them."""
    whole = make(tmp_path / "whole")
    run(whole)
    broken = make(tmp_path / "broken", checkpoint_seconds=0.0)
    broken.model.before_step = lambda step: signal.raise_signal(signal.SIGINT) if step == 17 else None
    run(broken)
    state = load_training(tmp_path / "broken" / "last.pt")
    for name in ("accumulate", "lr_decay", "patience", "tensorboard", "start", "freeze", "layer_rate", "changed"):
        del state["settings"][name]
    del state["unimproved"]
    for group in state["optimizer"]["param_groups"]:
        del group["part"]
    assert Settings.from_dict(state["settings"]) == broken.settings
    resumed = make(tmp_path / "broken", state)
    assert run(resumed).steps == 40
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


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


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_training(path, {"step": 1})

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, fail)
    assert load_training(path)["step"] == 1 and os.listdir(tmp_path) == ["last.pt"]


def test_a_file_is_replaced_and_not_written_over(tmp_path: Path) -> None:
    """Who reads the old file while the new one comes, as a kill in the middle does, has all of the old one."""
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    with path.open("rb") as old:
        write_atomically(path, lambda temporary: temporary.write_bytes(b"new and longer"))
        assert old.read() == b"old"
    assert path.read_bytes() == b"new and longer" and os.listdir(tmp_path) == ["last.pt"]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing was trained"):
        load_training(tmp_path / "last.pt")
    (tmp_path / "last.pt").write_text("hello")
    with pytest.raises(ValueError, match="is not a training checkpoint"):
        load_training(tmp_path / "last.pt")
    save_training(tmp_path / "last.pt", {"weights": torch.zeros(20_000)})
    os.truncate(tmp_path / "last.pt", 20_000)
    with pytest.raises(ValueError, match=r"last.pt is not a training checkpoint \(OSError\)"):
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


def test_a_path_with_brackets_is_printed_as_it_is() -> None:
    printed = io.StringIO()
    Display("pos", "accuracy", Console(file=printed)).say("the run is in a[/b]c and in [bold]")
    assert printed.getvalue() == "the run is in a[/b]c and in [bold]\n"


def test_a_training_goes_on_where_its_output_is_read_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        assert make(tmp_path, steps=8).run(Display("test", "wer")).steps == 8
    assert load_training(tmp_path / "last.pt")["step"] == 8
