"""What --overwrite replaces, and when: what was trained is kept until something else takes its place."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from task_files import standing_in, write_all
from undivided.cli import main
from undivided.commands import compare, finetune
from undivided.tasks import GROUPS

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


def models(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["model"] for row in csv.DictReader(file)]


COMPARE = ["compare", "digits", "--steps", "2", "--evaluations", "1", "--dev-words", "5", "--device", "cpu", "--quiet"]
COMPARE += ["--batch-size", "4", "--set", "d_model=16"]


def test_a_comparison_keeps_the_rows_of_models_that_it_does_not_train_again(folder, tmp_path, capsys):
    out, path = tmp_path / "out", tmp_path / "out" / "compare.csv"
    command = [*COMPARE, "--out", str(out)]
    assert main([*command, "--models", "rnn, gru,rnn"]) == 0 and models(path) == ["rnn", "gru"]
    assert main([*command, "--models", "lstm"]) == 0 and models(path) == ["rnn", "gru", "lstm"]
    before = files(out)
    assert main([*command, "--models", "transformer,gru"]) == 2
    assert "gru holds a run; --overwrite replaces it" in capsys.readouterr().err
    assert files(out) == before  # the transformer was not trained
    shutil.rmtree(out / "rnn")
    assert main([*command, "--models", "transformer"]) == 2
    assert "has rows of other runs than those in" in capsys.readouterr().err
    assert main([*command, "--models", "gru", "--overwrite"]) == 0 and models(path) == ["lstm", "gru"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--models", "transformer,gru", "--set", "nheads=2"], "'nheads' is no field of the gru's config"),
        (["--models", "gru", "--csv", "file/rows.csv"], "file/rows.csv cannot be written: "),
        (["--models", "gru", "--png", "folder"], "folder is a folder or a device, a file is needed"),
        (["--models", "gru", "--csv", "file"], "file has rows of other runs than those in runs/compare-digits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_comparison_that_cannot_be_finished_trains_nothing(folder, options, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("a,b\n1,2\n")
    Path("folder").mkdir()
    assert main([*COMPARE, *options]) == 2
    printed = capsys.readouterr()
    assert text in printed.err and len(printed.err.strip().splitlines()) == 1 and not printed.out
    assert files(tmp_path) == {"file": b"a,b\n1,2\n"}


def test_what_was_trained_before_an_interruption_is_kept(folder, tmp_path, monkeypatch, capsys):
    prepare = compare.prepare

    def failing(chosen, settings, *others):
        if settings.model == "gru":
            raise KeyboardInterrupt
        return prepare(chosen, settings, *others)

    monkeypatch.setattr(compare, "prepare", failing)
    assert main([*COMPARE, "--models", "rnn,gru,lstm", "--out", str(tmp_path)]) == 130
    assert "rnn" in capsys.readouterr().out and models(tmp_path / "compare.csv") == ["rnn"]


def test_a_claim_replaces_its_rows_only_when_told_to(folder, tmp_path, capsys):
    path = tmp_path / "gradients.csv"
    command = ["compare", "digits", "--claim", "gradients", "--quick", "--device", "cpu", "--quiet"]
    command += ["--models", "rnn", "--out", str(tmp_path)]
    path.write_text("old\n")
    assert main(command) == 2
    assert "gradients.csv is there already; --overwrite replaces it" in capsys.readouterr().err
    assert path.read_text() == "old\n"
    assert main([*command, "--overwrite"]) == 0 and set(models(path)) == {"rnn"}
    assert main([*command, "--csv", str(path / "rows.csv")]) == 2
    printed = capsys.readouterr()
    assert "rows.csv cannot be written: " in printed.err


def test_the_runs_of_an_interrupted_group_stay_and_its_scores_are_kept(folder, tmp_path, monkeypatch, capsys):
    small = [*SMALL, "--set", "decoder_layers=1"]
    start, out = tmp_path / "start", tmp_path / "group"
    first, second, third = GROUPS["g2p_lowres"][:3]
    monkeypatch.setitem(GROUPS, "g2p_lowres", (first, second, third))
    assert main(["train", first, "--out", str(start), *small]) == 0
    command = ["finetune", "g2p_lowres", "--from", str(start), "--out", str(out), *small]
    train = finetune.train
    monkeypatch.setattr(
        finetune, "train", lambda chosen, *given: 130 if chosen.name == second else train(chosen, *given)
    )
    assert main(command) == 130
    assert json.loads((out / "scores.json").read_text()).keys() == {first}
    monkeypatch.setattr(finetune, "train", train)
    (out / "scores.json").unlink()  # as where the first task was interrupted
    (out / first).rename(out / second)
    before = files(out)
    assert main(command) == 2
    assert f"{second}/fine-tuned holds a run; --overwrite replaces it" in capsys.readouterr().err
    assert files(out) == before
    assert main([*command, "--overwrite"]) == 0
    assert list(json.loads((out / "scores.json").read_text())) == [first, second, third]
