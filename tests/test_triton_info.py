"""`undivided info --kernels`: what the kernels need of a GPU."""

import importlib.util
import os
import subprocess
import sys

import pytest

from undivided import cli
from undivided.commands import info_kernels

installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@installed
def test_one_kernel_for_one_target():
    """In a process without the interpreter, which is chosen when a kernel is defined."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "undivided", "info", "--kernels", "rotary", "forward", "head_dim 64", "sm_90"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    head, *lines = done.stdout.splitlines()
    assert head.split()[-5:] == ["registers", "spills", "shared", "memory", "limit"]
    assert len(lines) == 2 and "positions by row" not in lines[0] and "positions by row" in lines[1]
    for line in lines:
        target, registers, spills, shared, limit = line.split()[-5:]
        assert line.startswith("rotary") and target == "sm_90" and int(limit) == 232_448
        assert 8 <= int(registers) <= 255 and int(spills) == 0 and 0 <= int(shared) <= int(limit)


def test_without_triton_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(info_kernels, "TRITON_MISSING", "triton is not installed")
    assert cli.main(["info", "--kernels"]) == 2
    assert "triton is not installed, so there are no Triton kernels; pip install" in capsys.readouterr().err


@installed
def test_under_the_interpreter_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(info_kernels, "interpreting", lambda: True)
    assert cli.main(["info", "--kernels", "rotary"]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


@installed
def test_words_that_no_kernel_has(monkeypatch, capsys):
    monkeypatch.setattr(info_kernels, "interpreting", lambda: False)
    assert cli.main(["info", "--kernels", "rotary", "sm_70"]) == 2
    assert "no kernel's line holds 'rotary' and 'sm_70'" in capsys.readouterr().err


@installed
def test_every_op_with_triton_kernels_is_in_the_catalogue():
    from undivided.kernels.catalogue import CATALOGUE
    from undivided.ops.features import OPS

    assert set(CATALOGUE) == {op for op, table, _, _ in OPS if any(row.name == "triton" for row in table)}
    for entries in CATALOGUE.values():
        names = [name for name, _ in entries()]
        assert names and len(set(names)) == len(names)
