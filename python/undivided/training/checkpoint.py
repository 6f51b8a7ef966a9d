"""Checkpoints: what a training needs to go on, and what a model needs to be used. Both appear whole or not at all."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LAST, BEST, LOG = "last.pt", "best.safetensors", "log.jsonl"
SHARDS = "shards"  # in last.pt, where its tensors are in a folder beside it: the name of that folder
FORMAT = 1


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Runs `write(temporary)` beside `path`, then renames: a kill leaves the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_training(path: Path, state: dict[str, Any]) -> None:
    """Writes the state of a training: tensors and plain values only."""
    write_atomically(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary))


def load_training(path: Path) -> dict[str, Any]:
    """Reads what `save_training` wrote; runs no code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a training checkpoint, or of another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: nothing was trained in {path.parent}, or no checkpoint written")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, IndexError, ValueError) as error:
        # What the reader raises on a file of another kind depends on the bytes that it meets first.
        raise ValueError(f"{path} is not a training checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} has format {found}, this version reads {FORMAT}")
    return state


def remove_shards(out: Path, name: str | None) -> None:
    """Removes a folder of tensors beside a `last.pt` that does not name it any more."""
    if name is not None:
        shutil.rmtree(out / name, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """The state of torch's generators, which dropout draws its seeds from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Puts back what `random_state` gave; the GPU part only where the number of GPUs is the same."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
