"""The choice of a backend: order, refusals and their texts."""

import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

import undivided
from undivided import rules
from undivided.dispatch import AttentionCall, Backend, BackendRefused, NormCall, choose, report
from undivided.ops.attention_decode_table import ATTENTION_DECODE
from undivided.ops.attention_table import ATTENTION
from undivided.ops.feed_forward_table import FEED_FORWARD
from undivided.ops.norm_table import LAYER_NORM, RMS_NORM
from undivided.ops.rotary_table import ROTARY

CALL = NormCall("cpu", "float32", 4, 8)


def refuses(call):
    return f"dtype {call.dtype} is not float64; cast"


def small_is_slow(call):
    return f"{call.rows} rows are few" if call.rows < 100 else None


def test_auto_takes_the_first_row_without_objection():
    table = (
        Backend("triton", "x", (refuses,)),
        Backend("cpu", "y", auto_rules=(small_is_slow,)),
        Backend("reference", "z"),
    )
    assert choose(table, CALL).name == "reference"
    assert choose(table, CALL, "cpu").name == "cpu"
    assert [name for name, _ in report(table, CALL)] == ["triton", "cpu", "reference"]
    assert dict(report(table, CALL))["cpu"] == "can run it, when asked for by name: 4 rows are few"
    assert choose(table, CALL._replace(rows=100)).name == "cpu"


def test_a_named_backend_is_obeyed_or_raises_with_every_objection():
    table = (Backend("triton", "x", (refuses,)), Backend("cpu", "y", (refuses,)))
    with pytest.raises(BackendRefused, match="(?s)triton.*float32 is not float64.*cpu.*float32 is not float64"):
        choose(table, CALL, "triton")
    with pytest.raises(BackendRefused, match="no kernel for this op; there are: triton, cpu"):
        choose(table, CALL, "sdpa")
    with pytest.raises(ValueError, match="backend='fast' is unknown; allowed: auto, cuda"):
        choose(table, CALL, "fast")


def test_reference_on_a_gpu_warns_with_the_report():
    call = AttentionCall("cuda", "float64", 1, 4, 4, 1, 1, 8, 8)
    table = (Backend("triton", "x", (refuses,)), Backend("reference", "z"))
    with pytest.warns(UserWarning, match="slow reference"):
        choose(table, call)
    with warnings.catch_warnings():  # torch.compile cannot trace a warning
        warnings.simplefilter("error")
        torch.compile(lambda x: x + len(choose(table, call).name), fullgraph=True, backend="eager")(torch.ones(1))


# On a Hopper with everything installed, in bfloat16 unless said otherwise.
@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        (dict(), "sdpa"),  # short
        (dict(needs_grad=True), "sdpa"),
        (dict(seqlen_k=8193, needs_grad=True), "cuda"),
        (dict(head_dim=64, head_dim_v=64), "sdpa"),
        (dict(head_dim=64, head_dim_v=64, seqlen_k=1025), "cuda"),
        (dict(head_dim=64, head_dim_v=64, window=(None, 0)), "cuda"),
        (dict(head_dim=64, head_dim_v=64, key_lengths=True), "cuda"),
        (dict(window=(None, 0), needs_grad=True), "cuda"),
        (dict(window=(None, 0), seqlen_q=7, needs_grad=True), "cuda"),
        (dict(key_lengths=True, needs_grad=True), "cuda"),
        (dict(mask=True), "triton"),
        (dict(bias="dense"), "triton"),
        (dict(bias="relative", needs_grad=True), "cuda"),
        (dict(dropout=True), "triton"),
        (dict(return_lse=True, needs_grad=True), "cuda"),
        (dict(head_dim=256, head_dim_v=256), "sdpa"),
        (dict(head_dim=96, head_dim_v=32), "sdpa"),
        (dict(head_dim=96, head_dim_v=32, nheads_kv=2), "triton"),  # torch stores the scores
        (dict(dtype="float32"), "sdpa"),
        (dict(dtype="float32", nheads_kv=2), "triton"),  # the same
        (dict(dtype="float32", head_dim=33, head_dim_v=33), "triton"),  # the same
        (dict(dtype="float64"), "sdpa"),
    ],
    ids=str,
)
def test_what_auto_takes_on_a_gpu(fields, taken, monkeypatch):
    machine = {"needs_cuda_extension", "on_hopper", "needs_triton", "tensor_cores", "needs_cpu_extension"}
    table = [replace(row, rules=[rule for rule in row.rules if rule.__name__ not in machine]) for row in ATTENTION]
    sizes = dict(batch=2, seqlen_q=300, seqlen_k=300, nheads=4, nheads_kv=4, head_dim=128, head_dim_v=128)
    call = AttentionCall("cuda", **{"dtype": "bfloat16", **sizes, **fields})
    assert choose(table, call).name == taken
    # What auto prefers is no objection:
    assert choose(table, call._replace(dtype="bfloat16"), "triton").name == "triton"


@pytest.mark.skipif(rules.EXTENSION_MISSING is not None, reason="the compiled extension is not built")
def test_tiles_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(rules, "TILES", True)
    call = AttentionCall("cpu", "bfloat16", 2, 300, 300, 4, 4, 64, 64, needs_grad=True)
    assert choose(ATTENTION, call).name == "sdpa" and choose(ATTENTION, call, "cpu").name == "cpu"
    for ours in (dict(dtype="float32"), dict(bias="relative"), dict(window=(None, 0), seqlen_q=7), dict(packed=True)):
        assert choose(ATTENTION, call._replace(**ours)).name == "cpu"
    monkeypatch.setattr(rules, "TILES", False)
    assert choose(ATTENTION, call).name == "cpu"


def test_the_interpreter_is_not_what_auto_takes():
    for table in (ATTENTION, ATTENTION_DECODE, LAYER_NORM, RMS_NORM, FEED_FORWARD, ROTARY):
        (row,) = (row for row in table if row.name == "triton")
        assert row.auto_objections(CALL) == ["Triton's interpreter is for tests"]


def test_explain_ends_with_the_choice():
    text = undivided.explain(AttentionCall("cpu", "float64", 1, 4, 4, 1, 1, 8, 8, softcap=True))
    assert "has no softcap" in text
    assert text.splitlines()[-1].startswith("auto takes: ")


def test_import_loads_neither_triton_nor_the_extension():
    code = (
        "import sys, undivided; "
        "heavy = ('triton', 'undivided._C', 'matplotlib', 'undivided.transformer', 'undivided.distributed'); "
        "bad = [m for m in heavy if m in sys.modules]; "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
