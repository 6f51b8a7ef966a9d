"""What is measured on, and which version: names for the rows, and folders for the files."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from .rows import slug

HERE = Path(__file__).resolve().parent


def device_name(kind: str) -> str:
    """The name of the GPU or of the processor."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def commit() -> str:
    """The commit that is measured, with a + when files differ from it, other than results; "" outside a checkout."""
    if checkout() is None:
        return ""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":/!benchmarks/results")
        return f"{head}+" if changed else head
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=True).stdout.strip()


def checkout() -> Path | None:
    """The root of the source tree that this package runs from; None when it was installed from a wheel."""
    root = HERE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "csrc").is_dir() else None


def results_folder(device: str) -> Path:
    """Where results go unless the user says otherwise: benchmarks/results/<device> of a checkout, else a folder of
    the working directory."""
    root = checkout()
    base = Path.cwd() / "benchmarks-results" if root is None else root / "benchmarks" / "results"
    return base / slug(device)


def busy() -> str | None:
    """A sentence when other programs use the processor now; None when it is quiet, or cannot be known."""
    if not hasattr(os, "getloadavg"):
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < 0.5 * cores:
        return None
    return f"the load was {load:.1f} on {cores} cores before the run: times are of a machine that others use too"
