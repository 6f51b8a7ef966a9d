"""Calls that go to their kernel directly: the same bits and the same errors as the usual way has."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("undivided._C", reason="the compiled extension is not built")

import undivided  # noqa: E402
from undivided import ALiBi, RelativeBias, ops  # noqa: E402
from undivided.ops import direct as permission  # noqa: E402
from undivided.testing import poison  # noqa: E402

direct = importlib.import_module("undivided.cpu.direct")
LAUNCHERS = [importlib.import_module(f"undivided.cpu.{name}") for name in ("attention", "layer_norm", "rms_norm")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = ("attention", "attention_decode", "norm", "linear", "feed_forward", "rotary")

pytestmark = pytest.mark.skipif(not permission.POSSIBLE, reason="this torch does not say where its tensors lie")


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.fixture
def taken(monkeypatch):
    """For each call that tried, whether it went directly."""
    found: list[bool] = []
    for name in OPS:
        function = getattr(direct, name)

        def watched(*values: Any, function: Callable[..., Any] = function) -> Any:
            result = function(*values)
            found.append(result is not None)
            return result

        monkeypatch.setattr(direct, name, watched)
    return found


def outcome(function: Callable[..., Any], *values: Any, **words: Any) -> Any:
    """What a call gives, with the gradients that are wanted, or the error that it raises."""
    with poison():
        try:
            found = function(*values, **words)
            found = found if isinstance(found, tuple) else (found,)
            outs = [out for out in found if out.requires_grad]
            leaves = [x for x in (*values, *words.values()) if isinstance(x, Tensor) and x.requires_grad]
            if not outs:
                return found
            grads = torch.autograd.grad(outs, leaves, [out.detach() for out in outs], allow_unused=True)
        except (TypeError, ValueError, RuntimeError) as error:
            return type(error), str(error)
    return *found, *(grad for grad in grads if grad is not None)


def wanting(value: Any) -> Any:
    if isinstance(value, RelativeBias) and isinstance(value.table, Tensor):
        return RelativeBias(wanting(value.table), value.max_distance, value.bidirectional)
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if is_float else value


def alike(one: Any, other: Any) -> bool:
    if isinstance(other[0], type):
        return bool(one == other)
    return len(one) == len(other) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        and torch.equal(a.isnan(), b.isnan())
        and (a.dtype, a.stride()) == (b.dtype, b.stride())
        for a, b in zip(one, other, strict=True)
    )


def same(function: Callable[..., Any], *values: Any, **words: Any) -> bool:
    """Whether both ways give the same bits and strides, or the same error; with gradients too, where the usual way is
    that of a torch which does not say where its tensors lie, in the launchers as well."""
    found = []
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), pytest.MonkeyPatch.context() as patch:
            if gradients:
                values, words = tuple(map(wanting, values)), {name: wanting(value) for name, value in words.items()}
            one = outcome(function, *values, **words)
            patch.setattr(permission, "POSSIBLE", False)
            for launcher in LAUNCHERS:
                patch.setattr(launcher, "READS_TENSORS", False)
            found.append(alike(one, outcome(function, *values, **words)))
    return all(found)


def attention_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return random(2, 5, 4, 16, dtype=dtype), *random(2, 2, 7, 2, 16, dtype=dtype, seed=1).unbind(0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(variant, dtype, taken):
    q, k, v = attention_inputs(dtype)
    packed = random(2, 9, 3, 4, 32, dtype=dtype, seed=2)
    table = nn.Parameter(random(8, 4, dtype=dtype, seed=3))
    for words in (
        {},
        dict(causal=True),
        dict(scale=0.3, key_lengths=integers(7, 0)),
        dict(window=(2, None), query_offset=1),
        dict(window=(None, 3), causal=True, query_offset=-2),
        dict(window=(None, 0), key_lengths=integers(3, 6)),
        dict(bias=RelativeBias(table, 20, False), causal=True),
        dict(bias=RelativeBias(table.T.contiguous().T)),
    ):
        assert same(ops.attention, q, k, v, **words), words
    assert same(ops.attention, q[:, :1], k, v)  # so few queries that keys are not packed
    assert same(ops.attention, packed[:, :, 0].contiguous(), packed[:, :, 1], packed[:, :, 2], causal=True)
    assert same(ops.attention, random(1, 300, 2, 64, dtype=dtype), *random(2, 1, 300, 2, 64, dtype=dtype))
    assert all(taken) and len(taken) == 22


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_decode(variant, dtype, taken):
    q, lengths = random(3, 1, 4, 64, dtype=dtype), integers(600, 1, 5)
    k, v = random(2, 3, 2, 2, 64, dtype=dtype, seed=1).unbind(0)
    table = nn.Parameter(random(8, 4, seed=3))

    def decode(**words: Any) -> tuple[Tensor, ...]:
        """out, and the caches after the call."""
        caches = random(2, 3, 700, 2, 64, dtype=dtype, seed=2).unbind(0)
        if "k" not in words:
            caches = tuple(cache[:1].expand(3, -1, -1, -1) for cache in caches)
        return ops.attention_decode(words.pop("q", q), *caches, lengths, **words), *caches

    for words in (
        {},
        dict(k=k, v=v),
        dict(k=k, v=v, q=random(3, 2, 4, 64, dtype=dtype), scale=0.2),
        dict(k=k[:, :1], v=v[:, :1], bias=RelativeBias(table, bidirectional=False)),
        dict(causal=False, window=(20, 0)),
        dict(k=k, v=v, window=(4, None)),
    ):
        assert same(decode, **words), words
    assert all(taken) and len(taken) >= 6


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
    for activation in direct.ACTIVATIONS:
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


@pytest.mark.parametrize("head_dim", [4, 7, 257])
def test_the_head_dims_are_those_of_the_rule(head_dim, taken):
    q = random(1, 3, 2, head_dim)
    assert same(ops.attention, q, q, q) and same(ops.attention_decode, q, q, q, integers(3)) and not any(taken)


WRONG = [None, 3, "x", [1.0], random(2, 3), random(4), random(16, dtype=torch.float64), torch.tensor(1.0)]


@pytest.mark.parametrize("place", range(3))
def test_bad_inputs_of_attention_have_their_errors(place, taken):
    inputs = attention_inputs()
    others = [
        inputs[place].double(),
        inputs[place].bfloat16(),
        inputs[place][..., :7],
        inputs[place][..., :8],
        inputs[place][:1],
        inputs[place][:, :, :1],
        inputs[place][:, :0],
        inputs[place].movedim(1, 3),
        inputs[place].transpose(1, 2),
        inputs[place].to_sparse(),
    ]
    for value in (*WRONG, *others):
        values = [*inputs[:place], value, *inputs[place + 1 :]]
        assert same(ops.attention, *values), value
        if isinstance(value, Tensor):
            lengths = integers(2, 3)
            assert same(ops.attention_decode, *values, lengths), value


@pytest.mark.parametrize(
    "words",
    [
        *(dict(key_lengths=value) for value in (integers(1), integers(8, 1), integers(-1, 2), integers(2, 3).long())),
        *(dict(key_lengths=value) for value in WRONG[1:]),
        *(dict(causal=value) for value in (None, 1, "no")),
        *(dict(scale=value) for value in (1, True, "1", float("nan"), float("inf"), torch.tensor(0.5))),
        *(dict(dropout_p=value) for value in (False, None, 0, 1.0, torch.tensor(0.0))),
        *(dict(return_lse=value) for value in (True, 0, None)),
        *(dict(backend=value) for value in ("reference", "triton", "none", 3)),
        dict(seed="x"),
        *(dict(window=value) for value in (3, [1, 2], (1,), (-1, 2), (1.0, 2), (True, 2), (2**29, 2**29 + 1), "ab")),
        *(dict(query_offset=value) for value in (1.5, True, 2**29 + 1, -(2**70), integers(1, 2), "x")),
        dict(bias=ALiBi(torch.ones(4))),
        dict(bias=random(5, 7)),
        dict(bias=RelativeBias(random(8, 3))),
        dict(bias=RelativeBias(random(3, 4))),
        dict(bias=RelativeBias(random(8, 4), True)),
        dict(bias=RelativeBias(random(8, 4), 2)),
        dict(bias=RelativeBias(random(8, 4), 2**30)),
        dict(bias=RelativeBias(random(8, 4), bidirectional=1)),
        dict(bias=RelativeBias("table")),
        dict(bias=RelativeBias(torch.ones(8, 4, dtype=torch.int32))),
        dict(bias=RelativeBias(random(8, 4, dtype=torch.float64))),
    ],
    ids=str,
)
def test_other_words_of_attention_have_their_results_and_errors(words):
    q, k, v = attention_inputs()
    assert same(ops.attention, q, k, v, **words)


@pytest.mark.parametrize(
    "words",
    [
        *(dict(cache_lengths=value) for value in (integers(1), integers(7, 1), integers(-1, 2), integers(2, 3).long())),
        *(dict(cache_lengths=value) for value in WRONG),
        *({name: value} for name in "kv" for value in (*WRONG, random(2, 1, 2, 8), random(1, 1, 2, 16))),
        *({name: random(2, 0, 2, 16)} for name in "kv"),
        dict(k=random(2, 2, 2, 16), v=random(2, 2, 2, 16)),
        dict(k=random(2, 1, 16, 2).transpose(2, 3)),
        dict(k_cache=random(2, 1, 2, 16).expand(-1, 7, -1, -1)),
        dict(v_cache=random(1, 7, 2, 16).expand(2, -1, -1, -1)),
        dict(v_cache=random(2, 7, 2, 8), v=random(2, 1, 2, 8)),
        dict(block_table=integers(0, 1)[:, None]),
        dict(rotary=(random(9, 8), random(9, 8))),
        dict(return_lse=True),
        dict(softcap=3.0),
    ],
    ids=lambda words: " ".join(words),
)
def test_other_words_of_attention_decode_have_their_results_and_errors(words):
    q, k_cache, v_cache = attention_inputs()
    given: dict[str, Any] = dict(q=q, k_cache=k_cache, v_cache=v_cache, cache_lengths=integers(5, 6))
    given |= dict(k=random(2, 1, 2, 16, seed=4), v=random(2, 1, 2, 16, seed=5))
    assert same(ops.attention_decode, **(given | words))


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


def test_a_relative_bias_gets_its_gradient():
    q, k, v = (wanting(value) for value in attention_inputs(torch.bfloat16))

    def attend(q: Tensor, table: Tensor) -> Any:
        return ops.attention(q, k, v, bias=RelativeBias(table, 20), key_lengths=integers(4, 7))

    assert same(attend, q, random(8, 4)) and same(attend, q, random(8, 4, dtype=torch.bfloat16))


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


def test_auto_leaves_bfloat16_to_a_processor_with_tiles(taken, monkeypatch):
    monkeypatch.setattr("undivided.rules.TILES", True)
    q, k, v = attention_inputs(torch.bfloat16)
    with torch.no_grad():
        ops.attention(q, k, v)
        assert not taken
        ops.attention(q, k, v, backend="cpu")
    assert taken == [True]
