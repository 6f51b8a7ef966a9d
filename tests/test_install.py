"""Installs into empty folders: with what this machine has, and as on a machine without a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PROGRAM = """
import torch, undivided
x = torch.randn(3, 8)
y = undivided.layer_norm(x, torch.ones(8), torch.zeros(8))
torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (8,)))
print(undivided.__file__)
"""


def install(folder: Path, **environment: str) -> dict[str, str]:
    """Installs a copy of the sources into `folder`; the environment in which it is the package that is imported."""
    source = folder / "source"
    kept = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in kept.decode().split("\0"):
        path = ROOT / name
        if not name or not path.exists():
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(os.readlink(path))
        else:
            target.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    wanted = {**os.environ, **environment}
    subprocess.run([*pip, "--target", str(folder / "lib"), str(source)], check=True, env=wanted)
    return {**os.environ, "PYTHONPATH": str(folder / "lib")}


def run(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_install_runs_the_compiled_kernels(tmp_path):
    environment = install(tmp_path)
    assert str(tmp_path) in run(environment, "-c", PROGRAM)
    assert "built; runs " in run(environment, "-m", "undivided", "info")


def test_without_a_compiler_the_package_works_and_says_so(tmp_path):
    environment = install(tmp_path, CXX="no-such-compiler")
    assert str(tmp_path) in run(environment, "-c", PROGRAM)
    told = run(environment, "-m", "undivided", "info")
    assert "not built" in told and "no-such-compiler" in told and "install g++ or clang++, or set CXX" in told
