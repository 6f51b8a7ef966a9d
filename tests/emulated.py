"""The kernels of csrc/cuda as an extension that runs on a CPU: `emulator/` in place of the GPU's instructions.

It shows what the kernels compute and that nobody waits for ever, with asynchronous copies and products that happen at
once or as late as they may. It does not show that the instructions do what we think, nor anything of their speed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tests" / "emulator"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DUNDIVIDED_HAS_CUDA=1")


@cache
def emulated() -> ModuleType:
    """Compiled once for each state of the sources, under build/; skips where there is no C++ compiler."""
    compiler = (os.environ.get("CXX") or "c++").split()
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 compiles the emulated kernels")
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler: {compiler[0]} is not there")
    sources = sorted([*HERE.glob("*"), *(ROOT / "csrc" / "cuda").glob("*"), *(ROOT / "csrc" / "bindings").glob("*")])
    text = b"".join(path.read_bytes() for path in sources) + " ".join((*compiler, *FLAGS)).encode()
    folder = ROOT / "build" / "emulator" / hashlib.sha256(text).hexdigest()[:16]
    target = folder / f"undivided_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        includes = [
            HERE,
            ROOT / "csrc",
            ROOT / "csrc" / "cuda",
            sysconfig.get_paths()["include"],
            pybind11.get_include(),
        ]
        mine = target.with_suffix(f".{os.getpid()}")  # another process may compile it too
        words = [*(f"-I{path}" for path in includes), *map(str, sorted(HERE.glob("*.cpp"))), "-o", str(mine)]
        done = subprocess.run([*compiler, *FLAGS, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        assert "warning" not in done.stderr, done.stderr[-4000:]
        os.replace(mine, target)
    spec = importlib.util.spec_from_file_location("undivided_emulated", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
