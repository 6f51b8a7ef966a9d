"""Every Triton kernel compiles for its GPUs; the common calls neither spill nor run out of shared memory."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def compiled(what: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).parent / "compile_ahead.py"), what]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_attention_neither_spills_nor_overflows():
    """head_dim 64 and 128 in bfloat16, plain and causal, forward and backward, compute capability 8.0, 9.0, 10.0."""
    rows = compiled("attention")
    assert len(rows) == 36
    bad = [row for row in rows if row["stack"] or row["shared"] > row["limit"]]
    assert not bad


def test_attention_compiles_with_every_feature():
    rows = compiled("attention_features")
    assert len(rows) == 15
    assert not [row for row in rows if row["shared"] > row["limit"]]


def test_feed_forward_neither_spills_nor_overflows():
    """The fused products and the passes, every activation, gated or not, compute capability 8.0, 9.0 and 10.0."""
    rows = compiled("feed_forward")
    assert len(rows) == 4 * 2 * (4 * 3 + 2)
    bad = [row for row in rows if row["stack"] or row["shared"] > row["limit"]]
    assert not bad


def test_norms_neither_spill_nor_overflow():
    """Both ops in bfloat16 with every feature, 512 to 20000 columns, compute capability 8.0, 9.0 and 10.0."""
    rows = compiled("norms")
    assert len(rows) == 132
    assert not [row for row in rows if row["stack"] or row["shared"] > row["limit"]]
