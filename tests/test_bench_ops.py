"""Each op's benchmark on a case small enough for a test: everybody passes the gate, and counts are right."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch

import undivided
from undivided.benchmarks import (
    attention,
    attention_decode,
    attention_providers,
    feed_forward,
    generation,
    layers,
    lengths,
    runner,
    scaling,
    suite,
    training_step,
)
from undivided.benchmarks.ceilings import Ceilings
from undivided.benchmarks.implementations import on_backend, on_torch
from undivided.benchmarks.memory import CLEAR, peak_memory
from undivided.benchmarks.op import Provider
from undivided.memory import KEEP, set_allocator

pytestmark = pytest.mark.usefixtures("little_to_collect")
CEILINGS = Ceilings("cpu", "a test", {2**20: 1e10}, {"float32": 1e11, "bfloat16": 2e11})
SETTINGS = runner.Settings(seconds=0.001, quick=True, compiles=False)


def measure(op, case, backends=("auto", "reference")):
    """Rows of all modes; none of them may be wrong or broken."""
    rows = []
    for mode in op.modes(case):
        rows += runner.measure(runner.Job(op, case, mode, op.providers("cpu", backends), CEILINGS, SETTINGS)).rows
    assert not [f"{row.provider}: {row.status}" for row in rows if row.status == "wrong" or row.status[:6] == "failed"]
    return rows


def timed(rows):
    return {(row.provider, row.mode) for row in rows if row.timed}


ATTENTION_WORDS = [
    dict(bias="relative"),
    dict(bias="alibi"),
    dict(causal=True, nheads=16, seqlen_q=7),
    dict(lengths=(9, 3), source="verses"),
    dict(lengths=(9, 3), source="verses", packed=True),
]


def small_attention(**words):
    sizes = dict(batch=2, seqlen_q=9, seqlen_k=9, nheads=8, nheads_kv=8, head_dim=8, dtype="float32")
    return attention.Case(**(sizes | dict(gradients="backward") | words))


@pytest.mark.parametrize("words", ATTENTION_WORDS, ids=str)
@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_attention_of_some_heads_is_what_all_have_there(words, mode, monkeypatch):
    case = small_attention(**words)
    some = attention.heads_checked(case, "cuda")
    assert some.kv == [0, 7] and len(some.q) == 2 * case.nheads // 8
    ask = (case, mode, "cpu", undivided.reference, torch.float64)
    whole = attention.unpadded(case, mode, attention.exact_or_honest(*ask, None, None))
    parts = attention.unpadded(case, mode, attention.exact_or_honest(*ask, some, 200))  # two queries at a time
    monkeypatch.setattr(attention, "heads_checked", lambda case, device: some)
    whole = [attention.of_heads(one, name, some) for one, name in zip(whole, outputs_of(mode), strict=False)]
    for got, right in zip(parts, whole, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-12)
    plain = attention_providers.sdpa(case, "cpu") if case.causal is False else None
    if plain is not None:
        checked = attention.checked(case, mode, attention.build(plain, case, mode, "cpu")())
        for got, right in zip(checked, parts, strict=True):
            torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-4)


def outputs_of(mode):
    return ("out",) if mode == "forward" else ("q", "k", "v", "table")


@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("seqlen_q", [9, 5])
def test_dense_bias_by_distance_is_that_of_the_buckets(mode, seqlen_q):
    case = small_attention(bias="relative", seqlen_q=seqlen_q)
    (row,) = runner.measure(
        runner.Job(
            attention.ATTENTION, case, mode, [provider_of(attention_providers.dense_relative)], CEILINGS, SETTINGS
        )
    ).rows
    assert row.timed


@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_packed_sequences_through_a_padded_batch(mode):
    case = small_attention(lengths=(9, 3), source="verses", packed=True)
    (row,) = runner.measure(
        runner.Job(attention.ATTENTION, case, mode, [provider_of(attention_providers.padded_sdpa)], CEILINGS, SETTINGS)
    ).rows
    assert row.timed


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_varlen_of_packed_and_padded_batches(packed, mode, monkeypatch):
    pytest.importorskip("torch.nn.attention.varlen", reason="torch has it from 2.10 on")

    def packed_attention(q, k, v, starts, more, max_q, max_k, window_size=(-1, -1)):
        assert window_size == (-1, -1) and max_q == max_k == 9
        return undivided.attention_packed(q, k, v, cu_seqlens_q=starts, cu_seqlens_k=more)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", packed_attention)
    case = small_attention(lengths=(9, 3), source="verses", packed=packed, dtype="bfloat16")
    (row,) = runner.measure(
        runner.Job(attention.ATTENTION, case, mode, [provider_of(attention_providers.varlen)], CEILINGS, SETTINGS)
    ).rows
    assert row.timed, row


def provider_of(make):
    return Provider("peer", "1", make)


@pytest.mark.parametrize("kind", feed_forward.KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_feed_forward(kind, dtype):
    rows = measure(feed_forward.FEED_FORWARD, feed_forward.Case(8, 16, 32, kind, dtype))
    both = {"forward", "forward_backward"}
    assert timed(rows) >= {(name, mode) for name in ("undivided auto", "torch eager") for mode in both}


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers(kind, dtype):
    rows = measure(layers.LAYERS, layers.Case(kind, 2, 16, 2, 32, dtype))
    both = {"forward", "forward_backward"}
    assert timed(rows) >= {(name, mode) for name in ("undivided auto", "torch") for mode in both}


@pytest.mark.parametrize("positions", ["rotary", "relative"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step(dtype, positions):
    case = training_step.Case(2, 1, 32, 2, 64, dtype, positions)
    rows = measure(training_step.TRAINING_STEP, case)
    names = ("undivided packed", "undivided padded", "undivided auto", "undivided reference", "torch")
    assert timed(rows) >= {(name, "step") for name in names}
    assert rows[0].items == sum(lengths.batch("verses", 2)) + sum(lengths.batch("plain verses", 2))


def test_the_model_on_plain_torch_calls_nothing_of_ours(monkeypatch):
    _C = pytest.importorskip("undivided._C", reason="the compiled extension is not built")

    def ours(*values):
        raise AssertionError("a kernel or a product of ours ran")

    for name in ("product", "widened"):
        monkeypatch.setattr(sys.modules["undivided.ops.linear"], name, ours)
    for name in dir(_C):
        if "forward" in name or "backward" in name or name in ("linear", "attention_decode"):
            monkeypatch.setattr(_C, name, ours)
    training_step.build(on_torch(), training_step.Case(2, 1, 32, 2, 64, "float32"), "step", "cpu")()
    generation.build(on_torch(), generation.Case(1, 2, 1, 16, 2, 32, "float32"), "tokens", "cpu")()
    with pytest.raises(AssertionError, match="of ours ran"):
        generation.build(on_backend("auto"), generation.Case(1, 2, 1, 16, 2, 32, "float32"), "tokens", "cpu")()


def test_only_ours_leaves_the_padding_out(monkeypatch):
    """Not plain torch, the reference, or one that is to keep it; all have the same losses."""
    model, case, left_out = (
        sys.modules["undivided.transformer.model"],
        training_step.Case(8, 1, 16, 2, 32, "float32"),
        [],
    )
    without_padding = model.without_padding

    def counted(*given):
        found = without_padding(*given)
        left_out.append(found is not None)
        return found

    monkeypatch.setattr(model, "without_padding", counted)
    expected = {on_backend("auto"): True, on_backend("auto", pads=True): False, on_torch(): False}
    expected |= {on_backend("reference"): False}
    losses = []
    for way, leaves_out in expected.items():
        left_out.clear()
        losses.append(training_step.build(way, case, "step", "cpu")()[0])
        assert any(left_out) == leaves_out
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-4, atol=1e-4)


def test_training_step_leaves_the_weights_as_they_are():
    case = training_step.Case(2, 1, 16, 2, 32, "float32")
    model, _, optimizer = training_step.setup(case, "cpu")
    before = [weight.clone() for weight in model.parameters()]
    training_step.build(on_torch(), case, "step", "cpu")()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.state  # the optimizer did run


def test_training_step_gate_sees_a_wrong_gradient():
    case = training_step.Case(2, 1, 16, 2, 32, "float32")
    outputs = list(training_step.build(on_torch(), case, "step", "cpu")())
    names = [name for name, _ in training_step.setup(case, "cpu")[0].named_parameters()]
    index = names.index("decoder.blocks.0.feed_forward.w_in.weight") + 1
    outputs[index] = outputs[index] * 1.001
    checked = training_step.checked(case, "step", outputs)
    error, budget = runner.budget_of(checked, *training_step.expected(case, "step", "cpu"))
    assert error > budget


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_generation(dtype):
    case = generation.Case(2, 3, 1, 16, 2, 32, dtype)
    rows = measure(generation.GENERATION, case)
    modes = {"first_token", "tokens"}
    assert timed(rows) >= {(name, mode) for name in ("undivided auto", "torch") for mode in modes}
    assert {row.mode: row.items for row in rows} == {"first_token": 2, "tokens": 6}


def test_implementation_is_undone_even_after_an_error():
    from undivided import ops

    before = ops.attention
    with pytest.raises(ZeroDivisionError), on_backend("reference").open():
        assert ops.attention is not before
        1 / 0  # noqa: B018
    assert ops.attention is before


@pytest.mark.parametrize("bias", [None, "relative"])
def test_scaling_checks_a_part_and_knows_all_gradients(bias):
    case = attention.Case(1, 100, 100, 2, 2, 8, "float32", bias=bias)
    rows = measure(scaling.SCALING, case)
    assert timed(rows) >= {(name, "forward_backward") for name in ("undivided auto", "torch sdpa", "torch sdpa math")}
    # what it expects is what the whole reference gives for the same dout
    values = {name: value.double() for name, value in scaling.inputs(case, "cpu").items()}
    dout = values.pop("dout")
    leaves = {name: value.requires_grad_() for name, value in values.items()}
    out = attention.with_words(case, "cpu", undivided.reference.attention)(**leaves)
    whole = torch.autograd.grad(out, list(leaves.values()), dout)
    for got, right in zip(scaling.expected(case, "forward_backward", "cpu")[0], whole, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-12)


def test_exponent_of_powers():
    assert scaling.exponent([(x, 3 * x**2) for x in (1, 2, 4, 8)]) == pytest.approx(2)
    # a constant cost hides the growth of small sizes: only the upper half counts
    points = [(2.0**n, 1000 + 2.0**n) for n in range(4, 24)]
    assert scaling.exponent(points) == pytest.approx(1, abs=0.05)
    assert math.isnan(scaling.exponent([(1, 1)])) and math.isnan(scaling.exponent([]))


def test_matrix_too_large_for_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(scaling, "memory", lambda device: 2**30)
    case = attention.Case(1, 2**15, 2**15, 2, 2, 8, "float32")
    (math_,) = [one for one in scaling.providers("cpu", ("auto",)) if one.name == "torch sdpa math"]
    with pytest.raises(NotImplementedError, match="its score matrices take about 32 GiB"):
        math_.make(case, "cpu")


@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux resets its high-water mark")
def test_peak_memory_is_that_of_the_highest_moment():
    def both():
        first = torch.ones(24 * 2**20, dtype=torch.int8)
        del first
        return torch.ones(40 * 2**20, dtype=torch.int8)

    both()  # what torch itself needs once is not the function's
    set_allocator(*KEEP)
    hole, above = torch.ones(28 * 2**20, dtype=torch.int8), torch.ones(2**20, dtype=torch.int8)
    del hole
    assert peak_memory(both, "cpu") == pytest.approx(40 * 2**20, rel=0.1)
    assert peak_memory(lambda: None, "cpu") < 2**20
    del above


def test_decode_appears_with_its_op(monkeypatch):
    monkeypatch.delattr(undivided, "attention_decode", raising=False)
    assert "attention_decode" not in suite.available()

    def attention_decode_(q, k, v, key_lengths, backend):
        return undivided.attention(q, k, v, key_lengths=key_lengths, backend=backend)

    monkeypatch.setattr(undivided, "attention_decode", attention_decode_, raising=False)
    assert suite.available()["attention_decode"] is attention_decode.ATTENTION_DECODE
    case = attention_decode.Case(2, 40, 4, 2, 8, "float32")
    rows = measure(attention_decode.ATTENTION_DECODE, case)
    assert timed(rows) >= {(name, "forward") for name in ("undivided auto", "torch sdpa", "torch matmul")}
    # q and out 2 * 4 * 8, k and v 2 * 40 * 2 * 8 numbers for each of two sequences, four bytes each
    assert rows[0].bytes == 2 * 4 * (2 * 4 * 8 + 2 * 40 * 2 * 8)


@pytest.mark.parametrize(("batch", "nheads_kv"), [(3, 4), (1, 1)])
def test_decoding_of_some_sequences_and_heads_is_what_all_have_there(batch, nheads_kv):
    case = attention_decode.Case(batch, 50, 16, nheads_kv, 16, "float32")
    values = {name: value.double() for name, value in attention_decode.inputs(case, "cpu").items()}
    whole = undivided.reference.attention(**values)
    part = undivided.reference.attention(**{name: attention_decode.part(one, case) for name, one in values.items()})
    torch.testing.assert_close(part, attention_decode.part(whole, case), rtol=1e-12, atol=1e-14)
    folded = attention_decode.folded(case, "cpu")(**values)
    torch.testing.assert_close(folded, whole, rtol=1e-10, atol=1e-12)


def test_layer_operations_by_hand():
    # projections 4 * 8 * 8 and feed-forward 2 * 8 * 16 multiply-adds a token, scores and values 2 * 5 * 5 * 8
    assert sum(layers.encoder_operations(5, 8, 16)) == 2 * (5 * (4 * 64 + 2 * 128) + 2 * 5 * 5 * 8)
    matmuls, attended = layers.decoder_operations(3, 5, 8, 16)
    assert matmuls == 2 * (3 * (6 * 64 + 2 * 128) + 5 * 2 * 64)
    assert attended == 2 * (2 * 3 * 3 * 8) / 2 + 2 * (2 * 3 * 5 * 8)
    assert layers.with_backward(10.0, 4.0, "forward_backward") == 3 * 10 + 3.5 * 4


def test_every_case_has_a_name_of_its_own():
    for op in suite.ALL:
        for words in itertools.product((True, False), ("cpu", "cuda")):
            cases = op.cases(*words)
            assert len({case.name for case in cases}) == len(cases), op.name
            assert all(op.work(case, mode).bytes > 0 for case in cases for mode in op.modes(case))


def test_provider_of_the_readme_is_one_function_and_one_line():
    from pathlib import Path

    from undivided.benchmarks.op import Provider

    page = (Path(attention.__file__).resolve().parent / "README.md").read_text(encoding="utf-8")
    blocks = [block.removeprefix("python\n") for block in page.split("```") if block.startswith("python\n")]
    scope = {"torch": torch, "Provider": Provider}
    exec(blocks[0], scope)
    (provider,) = eval(f"[{blocks[1].strip()}]", scope)
    case = attention.Case(1, 9, 9, 2, 2, 8, "float32")
    for mode in attention.modes(case):
        (row,) = runner.measure(runner.Job(attention.ATTENTION, case, mode, [provider], CEILINGS, SETTINGS)).rows
        assert row.timed and row.provider == "manual"
    causal = attention.Case(1, 9, 9, 2, 2, 8, "float32", causal=True)
    (row,) = runner.measure(runner.Job(attention.ATTENTION, causal, "forward", [provider], CEILINGS, SETTINGS)).rows
    assert row.status == "cannot: it has no masks, no biases and no grouped heads"


def test_ctranslate2_has_the_same_weights():
    pytest.importorskip("ctranslate2", reason="an optional peer")
    case = generation.Case(2, 3, 2, 16, 2, 32, "float32")
    names = {("ctranslate2", mode) for mode in ("first_token", "tokens")}
    assert timed(measure(generation.GENERATION, case)) >= names
    narrow = generation.Case(2, 3, 1, 16, 2, 32, "bfloat16")
    (reason,) = {row.status for row in measure(generation.GENERATION, narrow) if row.provider == "ctranslate2"}
    assert reason == "cannot: it has no bfloat16 weights on a CPU"
