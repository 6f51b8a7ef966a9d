"""keep_freed_memory: what tensors free is used again, not given back to the system and faulted in anew."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

import undivided
from undivided import cli, memory
from undivided.training import run

FAULTS = """
import resource, torch, undivided

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(64 * 2**20, dtype=torch.int8)  # over what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
print(undivided.keep_freed_memory())
for _ in range(4):
    faults()  # aligned blocks fit the one before only after some
print(first, faults())
"""
SAYS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_are_used_again(monkeypatch):
    for name in SAYS:
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split()
    first, kept = map(int, done[1:])
    assert done[0] == "True" and first > 1000 and kept < first / 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "100000"),
        ("MALLOC_TRIM_THRESHOLD_", "0"),
        ("GLIBC_TUNABLES", "glibc.malloc.check=1:glibc.malloc.trim_threshold=1"),
    ],
)
def test_the_environment_comes_first(monkeypatch, name, value):
    called = []
    monkeypatch.setattr(memory, "set_allocator", lambda *sizes: called.append(sizes) or True)
    for other in SAYS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_hwcaps=-AVX2")
    assert undivided.keep_freed_memory() and called == [memory.KEEP]
    monkeypatch.setenv(name, value)
    assert not undivided.keep_freed_memory() and len(called) == 1


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # musl has no mallopt
    assert not memory.set_allocator(*memory.KEEP)


def test_commands_and_trainings_keep_theirs(monkeypatch, capsys, tmp_path):
    called = []
    for module in (cli, run):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: called.append(1))
    assert cli.main(["tasks"]) == 0 and called == [1]
    monkeypatch.setattr(run, "answer", lambda *args, **words: [])
    saved = SimpleNamespace(task=SimpleNamespace(symbols=tuple, beams=1), model=None, source=None, target=None)
    assert run.predict(saved, ["a text"]) == [] and called == [1, 1]

    def stop(device: str) -> None:
        raise InterruptedError

    monkeypatch.setattr(run, "join", stop)
    with pytest.raises(InterruptedError):
        run.train("digits", tmp_path, steps=1, device="cpu")
    assert called == [1, 1, 1]
