"""Every Triton kernel compiles for its GPUs; the common calls neither spill nor run out of shared memory."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def compiled(*what: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).parent / "compile_ahead.py"), *what]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def bad(rows: list[dict], spills: int = 0, timed: int | None = None) -> list[dict]:
    """spills: the bytes of stack that a thread may take; timed: on 9.0, where the fastest of timed rows may spill."""
    most = {90: spills if timed is None else timed}
    return [row for row in rows if row["stack"] > most.get(row["capability"], spills) or row["shared"] > row["limit"]]


def test_attention_neither_spills_nor_overflows():
    """head_dim 64 and 128 in bfloat16, plain and causal, forward and backward, keys split and their parts merged,
    compute capability 8.0, 9.0, 10.0."""
    rows = compiled("attention", "bfloat16", "-packed", "-with")
    assert len(rows) == 54 and not bad(rows, timed=160)


def test_attention_with_a_relative_bias_spills_a_few_bytes_at_most():
    """Forward and backward with the table's gradient at head_dim 64, where T5's are."""
    rows = compiled("attention", "head_dim 64", "with relative bias")
    assert len(rows) == 9 and not bad(rows, spills=64)


@pytest.mark.slow
def test_attention_with_any_feature_spills_a_few_bytes_at_most():
    """Each feature by itself."""
    rows = compiled("attention", "with")
    assert len(rows) == 198 and not bad(rows, spills=64, timed=600)


@pytest.mark.slow
def test_float32_attention_spills_a_few_bytes_at_most():
    """The forward none. head_dim 64 and 128, full, causal, packed and split."""
    rows = compiled("attention", "float32")
    forward = [row for row in rows if row["kernel"].startswith("forward")]
    assert len(forward) == 24 and not bad(forward)
    assert len(rows) == 60 and not bad(rows, spills=64)


@pytest.mark.slow
def test_packed_attention_spills_a_few_bytes_at_most():
    rows = compiled("attention", "bfloat16", "packed")
    assert len(rows) == 18 and not bad(rows, spills=32, timed=256)


def test_decoding_spills_a_few_bytes_at_most():
    """head_dim 64 and 128 in bfloat16, eight query heads a key head, blocks of 16: the others take more time."""
    rows = compiled("attention_decode", "bfloat16", "group 8 queries 1 blocks of 16")
    assert len(rows) == 6 and not bad(rows, spills=16)


@pytest.mark.slow
def test_decoding_spills_a_few_bytes_at_most_in_any_form():
    """One and eight query heads a key head, one and four queries, contiguous, paged and turned by rotary positions."""
    rows = compiled("attention_decode", "bfloat16")
    assert len(rows) == 72 and not bad(rows, spills=32)


def test_decoding_compiles_with_every_feature():
    rows = compiled("decode_features")
    assert len(rows) == 5 and not [row for row in rows if row["shared"] > row["limit"]]


def test_rotary_neither_spills_nor_overflows():
    rows = compiled("rotary")
    assert len(rows) == 24 and not bad(rows)


def test_attention_compiles_with_every_feature():
    rows = compiled("attention_features")
    assert len(rows) == 15
    assert not [row for row in rows if row["shared"] > row["limit"]]


def test_feed_forward_neither_spills_nor_overflows():
    """The fused products and the passes, every activation, gated or not, compute capability 8.0, 9.0 and 10.0."""
    rows = compiled("feed_forward")
    assert len(rows) == 4 * 2 * 4 * 3 and not bad(rows)
    rows = compiled("feed_forward_others")
    assert len(rows) == 4 * 2 * 2 and not bad(rows)


def test_norms_neither_spill_nor_overflow():
    """Both ops in bfloat16 with every feature, 512 to 20000 columns, compute capability 8.0, 9.0 and 10.0. 8 bytes: RMS
    norm backward at 16384 columns, on 9.0."""
    for op, number in (("layer_norm", 96), ("rms_norm", 94)):
        rows = compiled(op)
        assert len(rows) == number and not bad(rows, spills=8)
