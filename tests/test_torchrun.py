"""`undivided train` as torchrun starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dying_worker import KILLED_AT, write_digits
from small_trainings import assert_same_log, records
from undivided.cli import main
from undivided.commands.train import fresh_folder
from undivided.training.models import load_model
from undivided.training.world import ALONE, join

SMALL = ["--set", "d_model=16", "--set", "nheads=2", "--set", "d_ff=16", "--set", "dropout=0", "--set"]
SMALL += ["encoder_layers=1", "--steps", "12", "--evaluations", "2", "--batch-size", "8", "--log-every", "1"]
SMALL += ["--dev-words", "8", "--device", "cpu", "--ema", "0.9", "--checkpoint-steps", "3", "--quiet", "--debug"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_worker_goes_on_from_the_checkpoint(tmp_path: Path, parallel: str) -> None:
    """All processes are started anew; the run ends as one process would have, which nothing breaks."""
    out, alone = tmp_path / "run", tmp_path / "alone"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = [str(Path(__file__).with_name("dying_worker.py")), "train", "digits", "--out", str(out), *SMALL]
    command = [*torchrun, "--max-restarts", "1", *worker, "--parallel", parallel]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "12 updates in" in done.stdout and done.stdout.count("undivided evaluate") == 1  # rank 0 alone speaks
    assert "exitcode: -9" in done.stderr  # rank 1 was killed
    with pytest.MonkeyPatch.context() as patch:
        write_digits(tmp_path / "data", patch)
        assert main(["train", "digits", "--out", str(alone), *SMALL]) == 0
    assert len(records(out)) == 12 + 2 and KILLED_AT % 3  # so that an update is done anew
    assert_same_log(out, alone)
    # What several processes trained is a model in one file like any other.
    ours, theirs = (load_model(way).model.state_dict() for way in (out, alone))
    assert all((ours[name] - value).abs().max() < 1e-5 for name, value in theirs.items())


def test_torchrun_needs_a_folder_and_one_gpu_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last.pt").touch()
    monkeypatch.chdir(tmp_path)
    with join("cpu") as world:
        assert world is ALONE
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert main(["train", "digits", "--steps", "1", "--device", "cpu"]) == 2
    assert "--out is needed under torchrun" in capsys.readouterr().err
    assert main(["train", "digits", "--steps", "1", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "holds a run; undivided train --resume goes on with it" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="device='cuda:1': under torchrun each process has a GPU of its own"):
        with join("cuda:1"):
            pass
    # A process that was started anew finds the run of the one that died.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert fresh_folder(tmp_path, "digits-transformer", False) == tmp_path
