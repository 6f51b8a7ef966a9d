"""What --overwrite replaces, and when: what was trained is kept until something else takes its place."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from task_files import standing_in, write_all
from undivided.cli import main

SMALL = ["--set", "d_model=16", "--set", "nheads=2", "--set", "d_ff=16", "--set", "encoder_layers=1"]
SMALL += ["--steps", "2", "--evaluations", "1", "--dev-words", "5", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("data")
    with standing_in(out, write_all):
        yield out


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for all tests that leave it as it is."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "digits", "--out", str(out), *SMALL]) == 0
    return out


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options", [["--lr", "-1"], ["--set", "nheads=3"], ["--tensorboard"]], ids=lambda options: " ".join(options)
)
@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_run_stays_where_no_other_can_start(run, command, options, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where it is not installed
    before = files(run)
    start = ["--from", str(run)] if command == "finetune" else []
    assert main([command, "digits", *start, "--out", str(run), "--overwrite", *SMALL, *options]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert files(run) == before and {"last.pt", "best.safetensors", "log.jsonl"} <= before.keys()


def test_an_overwritten_run_leaves_nothing_behind(folder, tmp_path):
    assert main(["train", "digits", "--out", str(tmp_path), *SMALL, "--log-every", "1"]) == 0
    (tmp_path / "shards-0").mkdir()
    before = files(tmp_path)
    assert main(["train", "digits", "--out", str(tmp_path), *SMALL]) == 2
    assert files(tmp_path) == before
    assert main(["train", "digits", "--out", str(tmp_path), *SMALL, "--overwrite"]) == 0
    after = files(tmp_path)
    assert after.keys() == before.keys() and not (tmp_path / "shards-0").exists()
    assert len(after["log.jsonl"].splitlines()) == 1  # the score alone: the losses were those of the old run


def test_processes_started_anew_do_not_go_on_with_the_run_that_they_overwrite(folder, tmp_path, monkeypatch, capsys):
    assert main(["train", "digits", "--out", str(tmp_path), *SMALL]) == 0
    monkeypatch.setattr("undivided.commands.train.torchrun_restarts", lambda: 1)
    command = ["train", "digits", "--out", str(tmp_path), "--overwrite", *SMALL]
    assert main([*command, "--steps", "3"]) == 0
    assert "3 updates" in capsys.readouterr().out
    (tmp_path / "best.safetensors").unlink()  # a run that is gone on with is not scored again
    assert main([*command, "--steps", "3"]) == 0
    assert "3 updates" in capsys.readouterr().out and not (tmp_path / "best.safetensors").exists()
