"""What is measured on, and which version: names for the rows, and folders for the files."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Collection
from functools import cache
from pathlib import Path

import torch

from .rows import slug

HERE = Path(__file__).resolve().parent


def device_name(kind: str) -> str:
    """The name of the GPU or of the processor, the latter with its generation: a virtual machine may hide the rest."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = processor_name(info.read_text()) if info.exists() else None
    return found or platform.processor() or platform.machine()


def processor_name(info: str) -> str | None:
    """The name of the first processor of a /proc/cpuinfo of x86; None where it has no name.

    >>> processor_name("vendor_id : AuthenticAMD\\ncpu family : 26\\nmodel : 2\\nmodel name : AMD EPYC")
    'AMD EPYC (Zen 5)'
    """
    first = info.strip().split("\n\n", 1)[0]
    words = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in first.splitlines() if ":" in line)
    name, family, model = words.get("model name"), words.get("cpu family", ""), words.get("model", "")
    if not name or not family.isdigit() or not model.isdigit():
        return name or None
    numbers = f"family {family} model {model}"
    of_vendor = GENERATIONS.get((words.get("vendor_id", ""), int(family)), {})
    return f"{name} ({next((found for models, found in of_vendor.items() if int(model) in models), numbers)})"


# What families and models that have AVX-512 are called (AMD's and Intel's tables of CPUID signatures).
GENERATIONS: dict[tuple[str, int], dict[Collection[int], str]] = {
    ("AuthenticAMD", 25): {(*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0)): "Zen 4"},
    ("AuthenticAMD", 26): {tuple(range(0x50)): "Zen 5"},
    ("GenuineIntel", 6): {
        (85,): "Skylake or Cascade Lake",
        (106, 108): "Ice Lake",
        (143,): "Sapphire Rapids",
        (207,): "Emerald Rapids",
        (173, 174): "Granite Rapids",
    },
}


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
