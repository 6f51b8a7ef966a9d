"""Trainings on 2 and 4 gloo processes, started once, against the same ones in one process."""

from __future__ import annotations

import io
import multiprocessing
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import small_trainings
from small_trainings import BROKEN_AT, CASES, ON_FOUR, assert_same_log, go_on, make, records, run


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the processes left their runs."""
    folder = tmp_path_factory.mktemp("ranks")
    # A server that has imported everything once is forked for each process.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_trainings", "torch.distributed.fsdp", "torch.distributed.checkpoint"])
    processes = [context.Process(target=small_trainings.work, args=(rank, folder)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the folder of a case's run in this process."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def trained(name: str) -> Path:
        run(make(name, folder / name, parallel=None))
        return folder / name

    return trained


def best(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO((out / "best.safetensors").read_bytes()), weights_only=True)


def assert_same(got: Path, wanted: Path, tolerance: float = 1e-5) -> None:
    """The log, and the weights that were kept."""
    assert len(records(got)) == small_trainings.UPDATES + 2
    assert_same_log(got, wanted, tolerance)
    torch.testing.assert_close(best(got), best(wanted), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("size", "name"), [(2, name) for name in CASES] + [(4, name) for name in ON_FOUR], ids=lambda value: str(value)
)
def test_processes_train_as_one_does(ranks: Path, alone: Any, size: int, name: str) -> None:
    assert_same(ranks / str(size) / name, alone(name))


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_broken_run_goes_on_to_the_bit(ranks: Path, alone: Any, name: str) -> None:
    """With dropout, so that the generator of each rank must be restored."""
    whole, broken = ranks / "dropout" / name, ranks / "dropout, broken" / name
    assert_same(broken, whole, 0.0)
    assert records(whole) != records(alone(name))


@pytest.mark.parametrize(
    ("origin", "parallel"), [("from parts", "fsdp"), ("from parts", "ddp"), ("from whole", "fsdp")]
)
def test_a_run_goes_on_with_other_processes(ranks: Path, alone: Any, origin: str, parallel: str) -> None:
    """Parts that four processes wrote are read by two, whose weights lie otherwise."""
    assert_same(ranks / origin / parallel, alone(parallel))


def test_a_run_of_parts_goes_on_in_one_process(ranks: Path, alone: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(ranks / "parts", out)
    go_on("fsdp", out, parallel=None)
    assert_same(out, alone("fsdp"))
    assert not list(out.glob("shards*"))  # last.pt has all of it now


def test_only_the_last_parts_are_kept(ranks: Path) -> None:
    for out, step in ((ranks / "parts", BROKEN_AT), (ranks / "4" / "fsdp", small_trainings.UPDATES)):
        state = torch.load(out / "last.pt", weights_only=True)
        assert state["step"] == step and "model" not in state
        assert [path.name for path in out.glob("shards*")] == [state["shards"]]
        files = [path.name for path in (out / state["shards"]).iterdir()]
        assert len(files) == 4 + 1 and ".metadata" in files  # a file of each rank


def test_parts_of_another_model_or_lost_ones_are_named(ranks: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(ranks / "parts", out)
    with pytest.raises(ValueError, match=r"shards-\d is of another model: average\.decoder"):
        go_on("ddp, one label", out, parallel=None)
    for path in out.glob("shards*"):
        shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match=r"shards-\d is not there or not whole"):
        go_on("fsdp", out, parallel=None)


def test_parallel_needs_processes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parallel='fsdp' is for processes that torchrun starts: torchrun --nproc"):
        make("fsdp", tmp_path)
    with pytest.raises(ValueError, match="parallel='pipeline' is unknown; allowed: ddp, fsdp"):
        make("fsdp", tmp_path, parallel="pipeline")
