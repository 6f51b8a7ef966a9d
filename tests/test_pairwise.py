"""The pairwise part of the case table: what it covers, and that a backend takes a row or says why not."""

from __future__ import annotations

import importlib
import inspect
from itertools import combinations

import pytest
import torch

import undivided
from rows import DEVICE, may_refuse
from undivided.dispatch import BackendRefused
from undivided.ops.attention_table import ATTENTION
from undivided.testing import ATTENTION_CASES, AttentionCase, compare, make_inputs
from undivided.testing.attention_features import APART, FEATURES, pairwise_rows
from undivided.testing.pairwise import cover

ROWS = [case for case in ATTENTION_CASES if case.name.startswith("pair ")]
PLAIN = AttentionCase("plain", "all defaults")


def has(case: AttentionCase, feature: dict[str, dict], level: str) -> bool:
    """From the case alone: it has the level's fields; or, for the absence of a feature, those of no level."""
    if feature[level]:
        return all(getattr(case, name) == value for name, value in feature[level].items())
    names = {name for fields in feature.values() for name in fields}
    return all(getattr(case, name) == getattr(PLAIN, name) for name in names)


def test_every_two_levels_that_can_meet_do():
    apart = {frozenset(pair) for pair in APART}
    met = 0
    for one, other in combinations(FEATURES, 2):
        for a in one:
            for b in other:
                rows = [case.name for case in ROWS if has(case, one, a) and has(case, other, b)]
                assert bool(rows) != ({a, b} in apart), (a, b, rows)
                met += bool(rows)
    assert met > 600  # of 15 features; the loops above have run


def test_the_rows_are_few_and_small():
    print(f"{len(ROWS)} rows")
    assert len(FEATURES) <= len(ROWS) <= 40
    sizes = {size for case in ROWS for size in (case.seqlen_q, case.seqlen_k)}
    assert min(sizes) == 17 and max(sizes) == 70
    assert [fields for _, fields in pairwise_rows()] == [fields for _, fields in pairwise_rows()]
    assert len({case.why for case in ROWS}) == len(ROWS)  # says what the row has


def test_what_is_apart_cannot_meet():
    """No word of a packed batch stands for it; one projection has one seqlen."""
    words = inspect.signature(undivided.attention_packed).parameters
    assert words.keys().isdisjoint({"mask", "key_lengths", "query_lengths", "query_offset"})
    packed = next(case for case in ROWS if case.packed_q is not None)
    tensors, others = make_inputs(packed, torch.float32, str(DEVICE))
    with pytest.raises(ValueError, match="a dense bias has no place in a packed batch"):
        undivided.attention_packed(**tensors, **{**others, "bias": torch.zeros(1, device=DEVICE)})
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        make_inputs(AttentionCase("", "", seqlen_q=17, seqlen_k=66, layout="qkv"), torch.float32)


@pytest.mark.parametrize("seed", range(3))
def test_any_features_are_covered(seed):
    """Of sizes drawn at random, some pairs apart."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 5, (6,), generator=generator).tolist()
    features = [[f"{n} {level}" for level in range(size)] for n, size in enumerate(sizes)]
    apart = [("0 1", "1 1"), ("3 1", "0 1"), ("4 1", "5 1")]
    rows = cover(features, apart)
    met = {pair for row in rows for pair in combinations(row, 2)}
    assert all(row[n] in feature for row in rows for n, feature in enumerate(features))
    expected = {(a, b) for one, other in combinations(features, 2) for a in one for b in other}
    assert met == expected - {("0 1", "1 1"), ("0 1", "3 1"), ("4 1", "5 1")}
    assert len(rows) < len(expected) / 4


def test_features_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"a level's name occurs twice: \['off'\]"):
        cover([["off", "a"], ["off", "b"]])
    with pytest.raises(ValueError, match=r"\['no a'\] cannot be apart: only levels other than a feature's first can"):
        cover([["no a", "a"], ["no b", "b"]], [("no a", "b")])


def torch_lacks(case: AttentionCase) -> bool:
    """What torch's attention has no word for, read off the case."""
    masked = case.mask or case.key_lengths or case.bias
    own = case.packed_q or case.softcap or case.sinks or case.dropout_p or case.query_lengths or case.window
    moved = case.query_offset is not None or case.bias in ("relative", "relative_causal", "alibi")
    return bool(own or moved or case.causal and (masked or case.seqlen_q != case.seqlen_k))


@pytest.mark.parametrize("backend", [row.name for row in ATTENTION])
def test_every_row_is_taken_or_refused_with_a_reason(backend, monkeypatch):
    """In float32; kernels refuse none. What they compute is tested over the whole case table, backend by backend."""

    class Taken(Exception):
        pass

    def run(row, *_):
        assert row.name == backend
        raise Taken

    monkeypatch.setattr(importlib.import_module("undivided.ops.attention"), "run", run)
    refused, taken = {}, 0
    for case in ROWS:
        try:
            compare.attention(case, torch.float32, backend, str(DEVICE))
        except Taken:
            taken += 1
        except BackendRefused as refusal:
            refused[case.name] = str(refusal)
    print(f"{backend} takes {taken} and refuses {len(refused)}")
    assert taken + len(refused) == len(ROWS)
    if backend == "sdpa":
        assert set(refused) == {case.name for case in ROWS if torch_lacks(case)} and len(refused) < len(ROWS)
        assert all("  sdpa       torch" in text for text in refused.values()), refused
    else:
        assert len(refused) in ((0, len(ROWS)) if backend in may_refuse() else (0,)), refused
