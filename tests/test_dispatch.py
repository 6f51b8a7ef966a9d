"""The choice of a backend: order, refusals and their texts."""

import subprocess
import sys

import pytest
import torch

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
        "bad = [m for m in ('triton', 'undivided._C', 'matplotlib', 'undivided.transformer') if m in sys.modules]; "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            dict(k=torch.zeros(2, 5, 3, 8), v=torch.zeros(2, 5, 3, 8)),
            ValueError,
            "nheads 4 is not a multiple of nheads_kv 3",
        ),
        (dict(q=torch.zeros(2, 3, 4, 8, dtype=torch.int32)), TypeError, "torch.int32"),
        (dict(k=torch.zeros(2, 5, 2, 8).half()), TypeError, "k has dtype torch.float16, q has torch.float32"),
        (dict(q=torch.zeros(2, 3, 4)), ValueError, "expected 4"),
        (dict(k=torch.zeros(1, 5, 2, 8)), ValueError, "batch differs: q 2, k 1, v 2"),
        (dict(softcap=-1.0), ValueError, "softcap = -1.0"),
        (dict(dropout_p=1.0), ValueError, "dropout_p = 1.0"),
        (dict(key_lengths=torch.tensor([1, 6])), ValueError, "values from 1 to 6; allowed: 0 to 5"),
        (dict(key_lengths=torch.tensor([1.0, 2.0])), TypeError, "key_lengths has dtype torch.float32"),
        (dict(mask=torch.zeros(3, 5)), TypeError, "allowed: bool"),
        (dict(mask=torch.ones(3, 4, dtype=torch.bool)), ValueError, "does not broadcast"),
        (dict(bias=undivided.RelativeBias(torch.zeros(32, 3))), ValueError, "num_buckets, nheads"),
        (dict(bias="t5"), TypeError, "bias is a str"),
        (dict(sinks=torch.zeros(2)), ValueError, "sinks has shape"),
        (dict(window=(1.5, None)), TypeError, "window left = 1.5"),
        (dict(seed=-1, dropout_p=0.1), ValueError, "seed = -1"),
        (dict(query_offset=torch.zeros(3, dtype=torch.int32)), ValueError, "query_offset has shape"),
        (dict(backend="flash"), ValueError, "backend='flash' is unknown"),
    ],
)
def test_bad_attention_input_is_named(change, error, text):
    good = dict(q=torch.zeros(2, 3, 4, 8), k=torch.zeros(2, 5, 2, 8), v=torch.zeros(2, 5, 2, 8))
    with pytest.raises(error, match=text):
        undivided.attention(**(good | change))
