"""Attention's calls that go to their kernel directly: the same bits and the same errors as the usual way has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("undivided._C", reason="the compiled extension is not built")

from direct_calls import DTYPES, WRONG, attention_inputs, integers, random, same, wanting, watch  # noqa: E402
from undivided import ALiBi, RelativeBias, ops  # noqa: E402
from undivided.ops import direct as permission  # noqa: E402

pytestmark = pytest.mark.skipif(not permission.POSSIBLE, reason="this torch does not say where its tensors lie")


@pytest.fixture
def taken(monkeypatch):
    return watch(monkeypatch)


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


def packed_inputs(dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """q, k, v, cu_seqlens_q, cu_seqlens_k. One sequence has no keys, one no queries; three keys are nobody's."""
    q, (k, v) = random(11, 4, 16, dtype=dtype), random(2, 15, 2, 16, dtype=dtype, seed=1).unbind(0)
    return q, k, v, integers(0, 4, 5, 5, 11), integers(0, 7, 7, 9, 12)


def attend_packed(q: Any, k: Any, v: Any, offsets_q: Any, offsets_k: Any, **words: Any) -> Any:
    return ops.attention_packed(q, k, v, cu_seqlens_q=offsets_q, cu_seqlens_k=offsets_k, **words)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_packed(variant, dtype, taken):
    inputs, table = packed_inputs(dtype), nn.Parameter(random(8, 4, dtype=dtype, seed=3))
    long = random(700, 2, 64, dtype=dtype), integers(0, 600, 700)
    for words in (
        {},
        dict(causal=True, scale=0.3),
        dict(window=(2, None), max_seqlen_q=6, max_seqlen_k=700),
        dict(bias=RelativeBias(table, 20, False), causal=True),
        dict(dropout_p=0.3, seed=5, window=(None, 1)),
    ):
        assert same(attend_packed, *inputs, **words), words
    assert same(attend_packed, long[0], long[0], long[0], long[1], long[1], causal=True, dropout_p=0.1, seed=2**62)
    assert all(taken) and len(taken) == 12


def test_other_words_of_attention_packed_have_their_results_and_errors():
    inputs = packed_inputs()
    for words in (
        *({name: value} for name in ("max_seqlen_q", "max_seqlen_k") for value in (0, 5, -1, 3.0, "x", True, 2**70)),
        dict(return_lse=True),
        dict(softcap=3.0),
        dict(sinks=random(4)),
        dict(bias=ALiBi(torch.ones(4))),
        dict(bias=random(11, 15)),
        dict(bias=RelativeBias(None)),
    ):
        assert same(attend_packed, *inputs, **words), words
    changed: list[Any] = [integers(0, 11), integers(1, 4, 5, 5, 11), integers(0, 4, 3, 5, 11), integers(0, 4, 5, 5, 99)]
    changed += [integers(0, 4, 5, 5, 10), integers(0), integers(), inputs[3].long(), *WRONG, random(11, 4, 8)]
    changed += [random(11, 4, 16)[None], random(11, 3, 16), random(4, 11, 16).transpose(0, 1), random(11, 16, 4).mT]
    for place in range(5):
        for value in changed:
            assert same(attend_packed, *inputs[:place], value, *inputs[place + 1 :]), (place, value)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_draws_the_seed_that_the_usual_way_would(packed, taken):
    inputs = packed_inputs() if packed else attention_inputs()
    function = attend_packed if packed else ops.attention

    def draw(*values: Any, **words: Any) -> Any:
        """out, and what is drawn next."""
        torch.manual_seed(3)
        return function(*values, dropout_p=0.5, **words), torch.rand(1)

    assert same(draw, *inputs, causal=True) and all(taken) and len(taken) == 2
    assert same(draw, *inputs, scale="x") and same(draw, *inputs, window=(1, -1)) and same(draw, *inputs, softcap=2.0)


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


@pytest.mark.parametrize("head_dim", [4, 7, 257])
def test_the_head_dims_are_those_of_the_rule(head_dim, taken):
    q = random(1, 3, 2, head_dim)
    assert same(ops.attention, q, q, q) and same(ops.attention_decode, q, q, q, integers(3)) and not any(taken)


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
        *(dict(dropout_p=value) for value in (False, None, 0, 1.0, -0.1, float("nan"), torch.tensor(0.0))),
        *(dict(seed=value, dropout_p=p) for value in (-1, 2**63, 2**63 - 1, 1.0, True) for p in (0.0, 0.5)),
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


def test_a_relative_bias_gets_its_gradient():
    q, k, v = (wanting(value) for value in attention_inputs(torch.bfloat16))

    def attend(q: Tensor, table: Tensor) -> Any:
        return ops.attention(q, k, v, bias=RelativeBias(table, 20), key_lengths=integers(4, 7))

    assert same(attend, q, random(8, 4)) and same(attend, q, random(8, 4, dtype=torch.bfloat16))


def test_auto_leaves_bfloat16_to_a_processor_with_tiles(taken, monkeypatch):
    monkeypatch.setattr("undivided.rules.TILES", True)
    q, k, v = attention_inputs(torch.bfloat16)
    with torch.no_grad():
        ops.attention(q, k, v)
        assert not taken
        ops.attention(q, k, v, backend="cpu")
    assert taken == [True]
