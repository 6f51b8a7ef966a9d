"""Verification: every backend on the case tables, and proof that a broken kernel is found."""

import importlib
import json

import pytest
import torch

from undivided import cli
from undivided.dispatch import BackendRefused
from undivided.ops import attention_autograd, norm_autograd
from undivided.testing import ATTENTION_CASES, NORM_CASES, check, compare, poison


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_attention_agrees_with_the_reference(case, dtype, backend):
    try:
        verdicts = compare.attention(case, getattr(torch, dtype), backend)
    except BackendRefused as refusal:
        assert "torch" in str(refusal) and backend == "sdpa"
        return
    assert all(verdict.ok for verdict in verdicts), verdicts


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("case", NORM_CASES, ids=lambda case: case.name)
def test_norms_agree_with_poisoned_memory(case, op):
    with poison():
        verdicts = compare.norm(op, case, torch.float32, "auto")
    assert all(verdict.ok for verdict in verdicts), verdicts


def test_poison_fills_fresh_memory():
    with poison():
        assert torch.empty(3).isnan().all()
        assert torch.zeros(2).new_empty(2, dtype=torch.int32).tolist() == [2**31 - 1] * 2
        assert torch.empty_like(torch.ones(2)).isnan().all()


def test_the_budget_never_admits_nan_or_a_lost_infinity():
    one = torch.ones(2, dtype=torch.float64)
    assert not check("x", torch.tensor([1.0, torch.nan]), one, one).ok
    assert not check("x", torch.tensor([1.0, torch.inf]), one, one).ok
    assert check("x", torch.tensor([-torch.inf]), -one[:1] / 0, -one[:1] / 0).ok


def test_quick_passes_and_prints_json(capsys):
    assert cli.main(["verify", "--quick", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    ops = {"attention", "attention_decode", "layer_norm", "rms_norm", "feed_forward", "rotary"}
    assert {row["op"] for row in rows} == ops
    assert all(row["ok"] and row["error"] <= row["budget"] for row in rows)


def test_several_processes_find_the_same(capsys):
    words = ["verify", "--quick", "--json", "--op", "layer_norm", "--device", "cpu"]
    found = []
    for jobs in ("1", "2"):
        assert cli.main([*words, "--jobs", jobs]) == 0
        rows = json.loads(capsys.readouterr().out)
        found.append([[row[name] for name in ("op", "backend", "case", "dtype", "ok")] for row in rows])
    assert found[0] == found[1] and found[0]
    assert cli.main([*words, "--jobs", "0"]) == 2
    assert "--jobs 0: at least 1" in capsys.readouterr().err


def test_a_broken_norm_kernel_fails(monkeypatch, capsys):
    def broken(right):
        def wrong(*args):
            grads = right(*args)
            return grads and (grads[0] * 1.01, *grads[1:])

        return wrong

    direct = importlib.import_module("undivided.cpu.direct")
    for module, name in ((norm_autograd, "launch_backward"), (direct, "norm_backward")):
        monkeypatch.setattr(module, name, broken(getattr(module, name)))
    assert cli.main(["verify", "--quick", "--op", "layer_norm", "--backend", "cpu"]) == 1
    assert "dx" in capsys.readouterr().out


def test_a_broken_attention_kernel_fails(monkeypatch, capsys):
    right = attention_autograd.run_forward

    def wrong(*args):
        out, lse = right(*args)
        out[..., -1, :] *= 1.01
        return out, lse

    monkeypatch.setattr(attention_autograd, "run_forward", wrong)
    assert cli.main(["verify", "--quick", "--op", "attention", "--backend", "cpu"]) == 1
    assert "out" in capsys.readouterr().out


def test_a_broken_feed_forward_kernel_fails(monkeypatch, capsys):
    module = importlib.import_module("undivided.ops.feed_forward")  # the package's attribute of that name is the op
    right = module._launch_backward

    def wrong(*args):
        dx, dw_in, *rest = right(*args)
        return dx, dw_in * 1.01, *rest

    monkeypatch.setattr(module, "_launch_backward", wrong)
    assert cli.main(["verify", "--quick", "--op", "feed_forward", "--backend", "cpu"]) == 1
    assert "dw_in" in capsys.readouterr().out


def test_nothing_to_verify_is_an_error(capsys):
    assert cli.main(["verify", "--quick", "--op", "feed_forward", "--backend", "cuda", "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert "nothing to verify: --backend cuda refuses all 6 cases on cpu" in printed.err and not printed.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--backend", "nope"], "--backend nope is no backend; allowed: cuda, triton, cpu, sdpa, reference"),
        (["--op", "rotary", "--backend", "sdpa"], "sdpa is no backend of rotary; allowed: triton, cpu, reference"),
        (["--integrations", "--backend", "nope"], "backend='nope' is unknown; allowed: auto, cuda"),
        (["--integrations", "--jobs", "2"], "--jobs 2 has no meaning beside it"),
    ],
)
def test_what_cannot_be_verified_is_one_clear_line(words, text, capsys):
    assert cli.main(["verify", "--quick", *words]) == 2
    printed = capsys.readouterr()
    assert text in printed.err and not printed.out


@pytest.mark.parametrize("words", [["--quick"], ["--integrations"]])
def test_a_gpu_that_is_not_there_is_one_clear_line(words, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["verify", *words, "--device", "cuda"]) == 2
    printed = capsys.readouterr()
    assert "device='cuda' is not there" in printed.err and "--device cpu" in printed.err and not printed.out
