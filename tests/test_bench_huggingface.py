"""The benchmark of transformers' models on small ones: everybody passes the gate, which sees errors."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch

from undivided.benchmarks import huggingface, lengths, runner
from undivided.benchmarks.ceilings import Ceilings
from undivided.benchmarks.huggingface_models import operations, text

pytestmark = pytest.mark.usefixtures("little_to_collect")
CEILINGS = Ceilings("cpu", "a test", {2**20: 1e10}, {"float32": 1e11, "bfloat16": 2e11})
SETTINGS = runner.Settings(seconds=0.001, quick=True, compiles=False)
NAMES = {"transformers eager", "transformers sdpa", "undivided auto"}
STEP = huggingface.Case("t5-tiny", "step", "verses", 2, "float32", 0.1)


def measure(case):
    return runner.measure(
        runner.Job(
            huggingface.HUGGINGFACE, case, case.mode, huggingface.providers("cpu", ["cpu", "auto"]), CEILINGS, SETTINGS
        )
    ).rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["t5-tiny", "bart-tiny"])
def test_a_step_is_right_by_all(model, dtype):
    rows = measure(huggingface.Case(model, "step", "verses", 2, dtype, 0.1))
    assert {row.provider for row in rows if row.timed} == NAMES, [row.status for row in rows]
    assert rows[0].items == sum(lengths.batch("verses", 2)) + sum(lengths.batch("plain verses", 2))


@pytest.mark.parametrize(
    "case",
    [
        huggingface.Case("t5-tiny", "tokens", "verses", 2, "float32", tokens=4),
        huggingface.Case("bart-tiny", "tokens", "verses", 2, "bfloat16", tokens=4),
        huggingface.Case("whisper-tiny", "tokens", "sound", 1, "float32", tokens=3),
    ],
    ids=lambda case: case.model,
)
def test_generation_is_right_by_all(case):
    rows = measure(case)
    assert {row.provider for row in rows if row.timed} == NAMES, [row.status for row in rows]
    assert rows[0].items == case.tokens * case.batch


@pytest.mark.skipif(huggingface.recording() is None, reason="needs the recording, Whisper's weights and soundfile")
def test_the_recording_is_heard_alike_by_all_with_published_weights():
    case = huggingface.Case("whisper-tiny.en", "tokens", "speech", 1, "float32", tokens=3)
    assert case.group in {one.group for one in huggingface.cases(False, "cpu")}
    rows = measure(case)
    assert {row.provider for row in rows if row.timed} == NAMES, [row.status for row in rows]
    assert rows[0].items == 3


def test_without_a_recording_there_is_no_such_case(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDIVIDED_DATA", str(tmp_path))
    huggingface.recording.cache_clear()
    try:
        assert not [case for case in huggingface.cases(False, "cpu") if case.source == "speech"]
    finally:
        huggingface.recording.cache_clear()


def test_the_gate_sees_a_wrong_gradient():
    outputs = list(huggingface.build(huggingface.Way("eager"), STEP, "step", "cpu").check())
    names = [name for name, _ in huggingface.Way("eager").model(STEP, "cpu").named_parameters()]
    index = names.index("encoder.block.0.layer.1.DenseReluDense.wo.weight") + 1
    good = huggingface.checked(STEP, "step", outputs)
    outputs[index] = outputs[index] * 1.001
    bad = huggingface.checked(STEP, "step", outputs)
    expected = huggingface.expected(STEP, "step", "cpu")
    (error, budget), (wrong, least) = (runner.budget_of(found, *expected) for found in (good, bad))
    assert error <= budget and wrong > least


def test_the_gate_sees_another_symbol_and_a_wrong_logit():
    case = huggingface.Case("t5-tiny", "tokens", "verses", 2, "float32", tokens=4)
    logits, others = huggingface.build(huggingface.Way("eager"), case, "tokens", "cpu").check()
    expected = huggingface.expected(case, "tokens", "cpu")
    assert others == 0 and logits.shape == (4, 2, case.shape.vocab)
    for found in ((logits, others + 1), (logits * 1.001, others)):
        error, budget = runner.budget_of(found, *expected)
        assert error > budget


def test_what_is_timed_drops_and_what_is_checked_does_not():
    work = huggingface.build(huggingface.Way("eager"), STEP, "step", "cpu")
    once, again, checked, same = (call()[0] for call in (work.run, work.run, work.check, work.check))
    assert not torch.equal(once, again) and torch.equal(checked, same)


def test_padding_is_no_work():
    shape, batch = STEP.shape, text("verses", 4, 256, "cpu")
    longest = ([max(batch.src)] * 4, [max(batch.tgt)] * 4)
    assert batch.inputs["attention_mask"].sum(1).tolist() == list(batch.src)
    assert (batch.inputs["labels"] != -100).sum(1).tolist() == list(batch.tgt)
    assert sum(operations(shape, batch.src, batch.tgt)) < 0.8 * sum(operations(shape, *longest))


def test_a_name_says_how_many_symbols_there_are():
    assert huggingface.cases(False, "cpu")[0].name == "t5-small verses float32 vocab 4096 b32 dropout 0.1"


def test_without_transformers_it_is_absent(monkeypatch):
    monkeypatch.setattr(huggingface.importlib.util, "find_spec", lambda name: None)
    rows = huggingface.providers("cpu", ["auto"])
    assert {row.reason for row in rows} == {"transformers is not installed"} and {row.name for row in rows} == NAMES
