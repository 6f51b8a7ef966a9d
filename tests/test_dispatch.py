"""The choice of a backend: order, refusals and their texts."""

import subprocess
import sys

import pytest

import undivided
from undivided.dispatch import AttentionCall, Backend, BackendRefused, NormCall, choose, report

CALL = NormCall("cpu", "float32", 4, 8)


def refuses(call):
    return f"dtype {call.dtype} is not float64; cast"


def test_auto_takes_the_first_row_without_objection():
    table = (
        Backend("triton", "x", (refuses,)),
        Backend("cpu", "y", auto=False, note="unproven"),
        Backend("reference", "z"),
    )
    assert choose(table, CALL).name == "reference"
    assert choose(table, CALL, "cpu").name == "cpu"
    assert [name for name, _ in report(table, CALL)] == ["triton", "cpu", "reference"]
    assert "unproven" in dict(report(table, CALL))["cpu"]


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
