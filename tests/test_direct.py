"""Calls that go to their kernel directly: the same bits and the same errors as the usual way has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("undivided._C", reason="the compiled extension is not built")

import undivided  # noqa: E402
from direct_calls import DTYPES, WRONG, attention_inputs, integers, outcome, random, same, watch  # noqa: E402
from undivided import RelativeBias, ops  # noqa: E402
from undivided.ops import direct as permission  # noqa: E402

pytestmark = pytest.mark.skipif(not permission.POSSIBLE, reason="this torch does not say where its tensors lie")


@pytest.fixture
def taken(monkeypatch):
    return watch(monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(variant, dtype, taken):
    x, residual = random(3, 5, 70, dtype=dtype), random(3, 5, 70, dtype=dtype, seed=1)
    for weight_dtype in {torch.float32, dtype}:
        weight, bias = (nn.Parameter(random(70, dtype=weight_dtype, seed=seed)) for seed in (2, 3))
        for more in (None, residual):
            assert same(ops.layer_norm, x, weight, bias, residual=more)
            assert same(ops.layer_norm, x, weight, residual=more)
            assert same(ops.rms_norm, x, weight, 1e-3, more)
    assert same(ops.layer_norm, x) and same(ops.rms_norm, x[0, 0])
    assert all(taken) and len(taken) >= 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary(variant, dtype, taken):
    x, (cos, sin) = random(2, 5, 3, 2, 24, dtype=dtype)[:, :, 1], random(2, 7, 12).unbind(0)
    for places in (None, torch.tensor([0, 6, 2, 2, 1]), torch.arange(10).view(2, 5) % 7):
        assert same(lambda x, places=places: ops.rotary(x, cos, sin, places), x)
    assert all(taken) and len(taken) == 9


def test_bad_inputs_of_rotary_have_their_errors():
    x, tables, places = random(2, 5, 3, 16), random(2, 7, 8).unbind(0), torch.arange(5)
    for value in (*WRONG, x.double(), x[..., :15], x[..., :14], x.movedim(1, 3), x[:, :0], x.to_sparse(), x.long()):
        assert same(ops.rotary, value, *tables), value
    changed = (*WRONG, tables[0][:4], tables[0][:, :7], tables[0].double(), tables[0].half(), random(8, 7).T)
    for value in changed:
        assert same(lambda x, value=value: ops.rotary(x, value, tables[1]), x), value
        assert same(lambda x, value=value: ops.rotary(x, tables[0], value), x), value
    for value in (places - 1, places + 3, places.int(), places[:4], places[None], places.float(), places * 2, 3, "x"):
        assert same(lambda x, value=value: ops.rotary(x, *tables, value), x), value


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_and_feed_forward(variant, dtype, taken):
    x, wide = random(3, 2, 40, dtype=dtype), random(90, 80, dtype=dtype, seed=1)
    w_in, w_out = (nn.Parameter(random(*shape, dtype=dtype, seed=2)) for shape in ((90, 40), (40, 90)))
    b_in, b_out = random(90, dtype=dtype, seed=3), random(40, dtype=dtype, seed=4)
    for weight, bias in ((w_in, b_in), (w_in, None), (wide[:, 20:60], b_in), (wide[:1, :40].expand(9, 40), None)):
        assert same(ops.linear, x, weight, bias)
    for activation in ("relu", "gelu", "gelu_tanh", "silu"):
        for biases in ((b_in, b_out), (None, b_out), (b_in, None)):
            for gate in (None, wide[:, 40:]):
                words = dict(activation=activation, w_gate=gate)
                assert same(ops.feed_forward, x, w_in, biases[0], w_out, biases[1], **words), words
    assert sum(taken) == 28  # a backward, too, multiplies by linear, which has a look at transposed weights


def test_strides_where_a_size_is_1():
    x, w, b = random(5, 1, 16).transpose(0, 1), random(16, 16, seed=1), random(16, seed=2)
    assert x.is_contiguous() and x.stride() != x.clone(memory_format=torch.contiguous_format).stride()
    assert same(ops.feed_forward, x, w, b, w) and same(ops.linear, x, w, b)
    assert same(ops.layer_norm, x, b, b, residual=x) and same(ops.rms_norm, x, b)
    q = random(5, 1, 2, 16).transpose(0, 1)
    assert same(ops.attention, q, q, q) and same(ops.attention_decode, q, q, q, integers(5))


def test_more_rows_go_the_usual_way(taken):
    x, w = random(17, 8), random(8, 8, seed=1)
    assert same(ops.linear, x, w) and same(ops.feed_forward, x, w, None, w) and not any(taken)


def test_bad_inputs_of_norms_have_their_errors():
    x, w = random(4, 8), random(8)
    for value in (*WRONG, random(4, 8).T, random(8, 4).T, random(0, 8), random(4, 0), random(4, 8).double(), x[0]):
        assert same(ops.layer_norm, value, w, w), value
        assert same(ops.rms_norm, value, w), value
        assert same(ops.layer_norm, x, w, w, residual=value), value
        assert same(ops.rms_norm, x, w, 1e-6, value), value
    for value in (*WRONG, w.double(), w.half(), w[:7], w[None], random(8, 2)[:, 0], w.long()):
        assert same(ops.layer_norm, x, value, w), value
        assert same(ops.layer_norm, x, w, value), value
        assert same(ops.rms_norm, x, value), value
    for value in (None, 1, True, -1.0, float("nan"), "1", torch.tensor(1.0)):
        assert same(ops.layer_norm, x, w, w, value), value


def test_bad_inputs_of_linear_and_feed_forward_have_their_errors():
    x, w, b = random(4, 16), random(16, 16), random(16)
    changed = (*WRONG, x.double(), x.half(), x[:, :8], random(16, 4).T, random(2, 0, 16), x[0], w.long())
    for value in changed:
        assert same(ops.linear, value, w, b), value
        assert same(ops.linear, x, value, b), value
        assert same(ops.linear, x, w, value), value
        for place in range(6):
            values: list[Any] = [x, w, b, w, b, "gelu", w]
            values[place if place < 5 else 6] = value
            assert same(ops.feed_forward, *values), (place, value)
    for activation in ("tanh", None, 3, []):
        assert same(ops.feed_forward, x, w, b, w, b, activation), activation


def test_some_go_with_gradients_and_some_without_alone(taken):
    q, k, v = attention_inputs()
    x, w, b = random(4, 16), random(16, 16), random(16)
    table = random(8, 4)
    tables = random(5, 8), random(5, 8, seed=1)
    trained: list[tuple[Callable[..., Any], list[Tensor]]] = [
        (lambda q, k, v, table: ops.attention(q, k, v, bias=RelativeBias(table)), [q, k, v, table]),
        (ops.layer_norm, [x, b, b]),
        (lambda x, residual: ops.layer_norm(x, residual=residual), [x, x]),
        (ops.rms_norm, [x, b]),
        (lambda q: ops.rotary(q, *tables), [q]),
    ]
    inferred: list[tuple[Callable[..., Any], list[Tensor]]] = [
        (lambda *tables: ops.rotary(q, *tables), [*tables]),
        (lambda q, k, v: ops.attention_decode(q, k, v, integers(3, 4), k=k[:, :1], v=v[:, :1]), [q, k, v]),
        (lambda q, t: ops.attention_decode(q, k, v, integers(3, 4), bias=RelativeBias(t)), [q, table]),
        (ops.linear, [x, w, b]),
        (lambda x, *more: ops.feed_forward(x, *more[:4], w_gate=more[4]), [x, w, b, w, b, w]),
    ]
    for function, values in (*trained, *inferred):
        function(*values)
        assert taken == [True]
        taken.clear()
        for place in range(len(values)):
            wanting = [value.clone().requires_grad_(at == place) for at, value in enumerate(values)]
            outcome(function, *wanting)
            assert any(taken) == ((function, values) in trained), (function, place)
            taken.clear()


def test_what_surrounds_a_call_is_heeded(taken):
    x, w = random(4, 16), nn.Parameter(random(16))

    def norm() -> Any:
        return ops.layer_norm(x, w)

    norm().sum().backward()
    assert w.grad is not None and taken == [True]
    taken.clear()
    with torch.no_grad():
        with undivided.batch_invariant():
            norm()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert ops.linear(x, random(16, 16)).dtype == torch.bfloat16
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
            ops.layer_norm(torch.autograd.forward_ad.make_dual(x, x), w)
        with pytest.raises(NotImplementedError):
            torch.func.vmap(ops.layer_norm)(x)
        torch.compile(norm, backend="eager", fullgraph=True)()
        assert not taken
        norm()
        assert taken == [True]


def test_a_subclass_keeps_its_rules(taken):
    class Marked(Tensor):
        pass

    with torch.no_grad():
        out = ops.layer_norm(random(4, 16).as_subclass(Marked), random(16))
    assert isinstance(out, Marked) and not taken
