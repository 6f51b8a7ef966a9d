"""undivided.sdpa() comes and goes: blocks, install and uninstall, threads, and nothing left behind."""

from __future__ import annotations

import doctest
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.backends import mha

import undivided
from kernel_backend import KERNEL, needs_kernels
from rows import DEVICE, random
from sdpa_modules import TORCH, attention_module, inputs

pytestmark = needs_kernels


def own_state() -> tuple:
    from torch.compiler import config

    return F.scaled_dot_product_attention, mha.get_fastpath_enabled(), config.cache_key_tag


def attend() -> torch.Tensor:
    q = random(1, 2, 5, 16)
    return F.scaled_dot_product_attention(q, q, q)


def test_everything_is_as_before_afterwards():
    before = own_state()
    assert before[0] is TORCH
    with undivided.sdpa(KERNEL) as report:
        held = F.scaled_dot_product_attention
        assert held is not TORCH and not mha.get_fastpath_enabled()
        attend()
    assert own_state() == before
    q = random(1, 2, 5, 16)
    torch.testing.assert_close(held(q, q, q), TORCH(q, q, q), atol=0, rtol=0)  # whoever kept it has torch's
    assert report.calls == {KERNEL: 1} and undivided.sdpa_report() is report


def test_an_exception_inside_leaves_nothing_behind():
    before = own_state()
    with pytest.raises(ZeroDivisionError), undivided.sdpa(KERNEL):
        1 / 0  # noqa: B018
    assert own_state() == before


def test_blocks_nest_and_the_inner_backend_holds():
    before = own_state()
    with undivided.sdpa(KERNEL) as outer:
        attend()
        with undivided.sdpa("reference") as inner:
            attend()
        attend()
    assert own_state() == before
    assert inner is outer and outer.calls == {KERNEL: 2, "reference": 1}
    with undivided.sdpa(KERNEL) as later:
        assert later is not outer and not later.calls


def test_blocks_may_end_in_another_order():
    before = own_state()
    first, second = undivided.sdpa(KERNEL), undivided.sdpa("reference")
    report = first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    attend()
    assert report.calls == {"reference": 1}
    second.__exit__(None, None, None)
    assert own_state() == before


def test_the_same_block_as_a_decorator():
    @undivided.sdpa(KERNEL)
    def run():
        attend()
        return undivided.sdpa_report()

    assert run().calls == run().calls == {KERNEL: 1}


def test_install_and_uninstall():
    before = own_state()
    try:
        report = undivided.install_sdpa(KERNEL)
        attend()
        assert undivided.install_sdpa("reference") is report
        attend()
        with undivided.sdpa(KERNEL):
            attend()
            undivided.uninstall_sdpa()
            attend()
        assert report.calls == {KERNEL: 3, "reference": 1}
    finally:
        undivided.uninstall_sdpa()
    assert own_state() == before
    undivided.uninstall_sdpa()
    assert own_state() == before


def test_it_holds_for_every_thread():
    with undivided.sdpa(KERNEL) as report:
        threads = [threading.Thread(target=attend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert report.calls == {KERNEL: 4}


def test_what_somebody_else_put_there_is_called_and_kept(monkeypatch):
    calls = []

    def theirs(*values, **words):
        calls.append(words)
        return TORCH(*values, **words)

    monkeypatch.setattr(F, "scaled_dot_product_attention", theirs)
    q = random(1, 2, 5, 16, dtype=torch.float64)
    with undivided.sdpa(KERNEL) as report:
        F.scaled_dot_product_attention(q, q, q)
    assert report.calls == {"torch": 1} and len(calls) == 1 and F.scaled_dot_product_attention is theirs
    with undivided.sdpa(KERNEL):
        F.scaled_dot_product_attention = TORCH
    assert F.scaled_dot_product_attention is TORCH


def test_a_default_device_does_not_disturb():
    """torch.device as a context is a mode that overrides functions."""
    with undivided.sdpa(KERNEL) as report, torch.device(DEVICE):
        attend()
    assert report.calls == {KERNEL: 1}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_jit_keeps_torchs_function():
    x = inputs()["x"]
    with undivided.sdpa(KERNEL) as report:
        module = attention_module()
        scripted = torch.jit.script(module)
        expected = module(x, x, x, need_weights=False)[0]
        assert report.calls.pop(KERNEL) == 1
        torch.testing.assert_close(scripted(x, x, x, need_weights=False)[0], expected)
        assert not report.calls
        traced = torch.jit.trace(lambda q: F.scaled_dot_product_attention(q, q, q), random(1, 2, 5, 16))
        (reason,) = report.reasons
    assert "scaled_dot_product_attention" in str(traced.graph) and "torch.jit.trace" in reason


@pytest.mark.parametrize("activate", [undivided.install_sdpa, lambda name: undivided.sdpa(name).__enter__()])
def test_an_unknown_backend_is_refused(activate):
    before = own_state()
    for name in ("fast", "sdpa"):
        with pytest.raises(
            ValueError, match=f"backend='{name}' is unknown here; allowed: auto, .*triton, cpu, reference"
        ):
            activate(name)
    assert own_state() == before


@pytest.mark.skipif(KERNEL != "cpu", reason="auto takes torch's kernels on this machine")
def test_the_example_and_a_reason_in_full():
    """Of a machine without a GPU: what backends for another one say would hide the cause."""
    example = doctest.DocTestFinder().find(undivided.sdpa, "sdpa", globs={"torch": torch, "undivided": undivided})[0]
    assert doctest.DocTestRunner().run(example).failed == 0 and example.examples
    with undivided.sdpa() as report:
        F.scaled_dot_product_attention(*(random(1, 2, 5, 16, dtype=torch.float64),) * 3)
    (reason,) = report.reasons
    assert "cpu: dtype float64 is not one of" in reason and "cuda" not in reason


def test_a_report_without_calls_says_so():
    with undivided.sdpa(KERNEL) as report:
        pass
    assert str(report).splitlines() == ["scaled_dot_product_attention: calls by backend", "  none"]
