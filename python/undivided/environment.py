"""Every environment variable that the package reads, in one place."""

from __future__ import annotations

import os
from pathlib import Path


def folder(name: str) -> Path | None:
    """The folder that the variable names, where it is set.

    Raises:
        ValueError: it begins with the home of a user who is not known.
    """
    value = os.environ.get(name)
    try:
        return Path(value).expanduser() if value else None
    except RuntimeError as error:
        raise ValueError(f"{name}={value!r} begins with a home that is not there: {error}") from error


def data_folder() -> Path | None:
    """`UNDIVIDED_DATA`: a folder with the datasets of the tasks."""
    return folder("UNDIVIDED_DATA")


def cache_folder() -> Path:
    """`UNDIVIDED_CACHE`: where downloads are kept; by default `~/.cache/undivided`."""
    return folder("UNDIVIDED_CACHE") or Path.home() / ".cache" / "undivided"


def cpu_variant() -> str | None:
    """`UNDIVIDED_CPU_VARIANT`: forces one instruction-set variant of the C++ kernels."""
    return os.environ.get("UNDIVIDED_CPU_VARIANT") or None


def interpreting() -> bool:
    """`TRITON_INTERPRET`, Triton's own variable: its kernels run in Python on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def torchrun_restarts() -> int | None:
    """`TORCHELASTIC_RESTART_COUNT`, torchrun's own: how often it has started its processes anew; None outside it."""
    value = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    return None if value is None else int(value)
