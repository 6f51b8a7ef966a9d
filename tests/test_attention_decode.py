"""attention_decode: the case table on every backend, and what the table does not ask."""

from __future__ import annotations

import pytest
import torch

import undivided
from decode_rows import DTYPES, drawn, ints
from kernel_backend import CPU, needs_cpu, needs_triton
from rows import DEVICE, random, run, same
from undivided import ALiBi, reference
from undivided.dispatch import DecodeCall
from undivided.ops.attention_decode_table import ATTENTION_DECODE
from undivided.rules import EXTENSION_MISSING
from undivided.testing import DECODE_CASES, check, compare, honest, make_decode_inputs, poison

if EXTENSION_MISSING is None:
    import undivided.cpu
    from undivided import _C

    VARIANTS = _C.variants()
else:
    VARIANTS = []
every_case = pytest.mark.parametrize("case", DECODE_CASES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def failures(case, dtype, backend):
    with poison():
        verdicts = compare.attention_decode(case, dtype, backend, DEVICE.type)
    return [verdict for verdict in verdicts if not verdict.ok]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_cpu
@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
@every_dtype
@every_case
def test_every_case_in_every_variant(case, dtype, variant):
    assert not failures(case, dtype, "cpu")


@every_case
def test_the_reference_row_by_row(case):
    """The definition, with nothing in common but attention itself: each row alone, its tokens picked one by one."""
    tensors, words = make_decode_inputs(case, torch.float64, DEVICE.type)
    q, caches, before = (
        tensors["q"],
        [tensors["k_cache"], tensors["v_cache"]],
        [tensors[n].clone() for n in ("k_cache", "v_cache")],
    )
    got, lse = reference.attention_decode(**tensors, **words, return_lse=True)
    new, table = [words.pop("k", None), words.pop("v", None)], words.pop("block_table", None)
    bias, rotary = words.pop("bias", None), words.pop("rotary", None)
    assert got.shape == (*q.shape[:3], caches[1].shape[-1]) and lse.shape == (q.shape[0], q.shape[2], q.shape[1])
    for b, length in enumerate(case.lengths):
        rows, query, total = [], q[b : b + 1], length + case.seqlen_new
        if rotary is not None:
            cos, sin = (table[[max(total - case.seqlen_q + i, 0) for i in range(case.seqlen_q)]] for table in rotary)
            query = reference.rotary(query, cos, sin)
            if new[0] is not None:
                new[0][b] = reference.rotary(new[0][b : b + 1], *(table[length:total] for table in rotary))
        for cache, tokens in zip(before, new, strict=True):
            places = [(b, p) for p in range(length)]
            if table is not None:
                size = cache.shape[1]
                places = [(int(table[b, p // size]), p % size) for p in range(length)]
            row = [cache[place] for place in places] + ([] if tokens is None else list(tokens[b]))
            rows.append(torch.stack(row)[None] if row else cache.new_zeros(1, 0, *cache.shape[2:]))
        own = ALiBi(bias.slopes[b]) if isinstance(bias, ALiBi) and bias.slopes.dim() == 2 else bias
        expected = reference.attention(query, *rows, bias=own, return_lse=True, **words)
        torch.testing.assert_close((got[b : b + 1], lse[b : b + 1]), expected, rtol=0, atol=1e-12)
        for cache, row in zip(caches, rows, strict=True):
            places = [(b, p) if table is None else (int(table[b, p // cache.shape[1]]), p % cache.shape[1])
                      for p in range(row.shape[1])]  # fmt: skip
            assert all(torch.equal(cache[place], token) for place, token in zip(places, row[0], strict=True))


@pytest.mark.parametrize("name", ["rotary", "rotary long", "rotary several"])
@pytest.mark.parametrize("backend", [row.name for row in ATTENTION_DECODE])
def test_turning_on_the_way_is_turning_before(name, backend):
    """The same numbers as from queries and keys that were turned by an op of their own.

    To the bit but on a GPU, whose compiler fuses another product of the two with their sum.
    """
    case = next(case for case in DECODE_CASES if case.name == name)
    results = []
    for before in (False, True):
        tensors, words = make_decode_inputs(case, torch.float32, DEVICE.type)
        if before:
            cos, sin = words.pop("rotary")
            total = tensors["cache_lengths"] + case.seqlen_new
            for values, n in ((tensors, "q"), (words, "k")):
                places = total[:, None] - values[n].shape[1] + torch.arange(values[n].shape[1], device=DEVICE)
                values[n] = undivided.rotary(values[n], cos, sin, places, backend=backend)
        out = run(undivided.attention_decode, *tensors.values(), backend=backend, **words)
        results.append((out, *(tensors[name].nan_to_num() for name in ("k_cache", "v_cache"))))
    for got, expected in zip(*results, strict=True):
        if DEVICE.type == "cuda":
            torch.testing.assert_close(got, expected)
        else:
            assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["paged", "everything", "cross"])
@pytest.mark.parametrize("backend", [row.name for row in ATTENTION_DECODE])
def test_other_backends(name, backend):
    """Through the public op, where they are there; their own tests ask for more."""
    case = next(case for case in DECODE_CASES if case.name == name)
    tensors, words = make_decode_inputs(case, torch.float32, DEVICE.type)
    run(undivided.attention_decode, *tensors.values(), backend=backend, **words)
    assert not failures(case, torch.float32, backend)


def close_to_reference(tensors, words):
    """A call without new tokens against the definition, by the error that plain torch makes."""
    wide = [t.double() if t.is_floating_point() else t for t in tensors]
    results = [
        undivided.attention_decode(*tensors, return_lse=True, backend="cpu", **words),
        reference.attention_decode(*wide, return_lse=True, **words),
        honest.attention_decode(*tensors, **words),
    ]
    verdicts = [check(name, *values, 8.0) for name, *values in zip(("out", "lse"), *results, strict=True)]
    assert all(verdict.ok for verdict in verdicts), verdicts


@needs_cpu
@every_dtype
@pytest.mark.parametrize(("nheads", "head_dim"), [(2, 16), (3, 33), (5, 64), (9, 100)])
def test_all_lengths(nheads, head_dim, dtype):
    """Every remainder of a vector of keys and of a block of them, and of a group of rows."""
    lengths = [*range(0, 70), *range(125, 132), *range(254, 259)]
    close_to_reference(drawn(lengths, 258, 1, nheads, 1, head_dim, dtype)[0], dict(causal=False))


@needs_cpu
@every_dtype
@pytest.mark.parametrize("seqlen_q", [2, 17])
def test_all_windows(seqlen_q, dtype):
    """Where the first and the last visible keys fall in a block of keys differs from query to query."""
    tensors, _ = drawn([200, 65, 3], 200, seqlen_q, 4, 2, 16, dtype)
    for left in (None, *range(0, 140, 23)):
        close_to_reference(tensors, dict(window=(left, None)))


@needs_cpu
@every_dtype
@pytest.mark.parametrize("order", ["keys", "heads"])
def test_caches_that_come_from_memory(order, dtype):
    """A batch that shares one memory counts as hundreds of MiB, which are read in smaller blocks and ahead of time."""
    lengths = [(37 * b) % 301 for b in range(800)]
    q, *caches = random(800, 1, 4, 64, dtype=dtype), *(random(1, 300, 4, 64, seed=n, dtype=dtype) for n in (1, 2))
    if order == "heads":
        caches = [cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in caches]
    many = [cache.expand(800, -1, -1, -1) for cache in caches]
    out, lse = undivided.attention_decode(q, *many, ints(*lengths), return_lse=True, backend="cpu")
    for b in range(0, 800, 29):
        given = [q[b : b + 1], *caches, ints(lengths[b])]
        wide = [t.double() if t.is_floating_point() else t for t in given]
        exact = reference.attention_decode(*wide, return_lse=True)
        rough = honest.attention_decode(*given)
        for name, got, *values in zip(("out", "lse"), (out, lse), exact, rough, strict=True):
            assert check(name, got[b : b + 1], *values, 8.0).ok, (b, name)


@needs_cpu
@every_dtype
def test_same_bits_on_any_number_of_threads(dtype, threads):
    """Each call is large enough for three of them."""
    for lengths, nheads, seqlen_q in (([1500], 4, 1), ([700, 20, 0], 4, 3), ([300] * 20, 2, 1)):
        tensors, new = drawn(lengths, 1600, seqlen_q, nheads, nheads, 64, dtype, new=2)
        found = []
        for number in (1, 2, 3, 2):
            threads(number)
            copies = [tensors[0], tensors[1].clone(), tensors[2].clone(), tensors[3]]
            out = undivided.attention_decode(*copies, **new, return_lse=True, backend="cpu")
            found.append([*out, copies[1], copies[2]])
        assert all(same(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@every_dtype
def test_token_by_token_equals_one_pass(dtype):
    """The causal pass over a whole sequence, and its steps on caches that start empty."""
    seqlen = 70
    q, k, v = (random(2, seqlen, 4, 16, seed=n, dtype=dtype) for n in range(3))
    caches = [torch.full((2, seqlen, 4, 16), torch.nan, dtype=dtype, device=DEVICE) for _ in range(2)]
    lengths, outs = ints(0, 0), []
    for i in range(seqlen):
        now = slice(i, i + 1)
        outs.append(undivided.attention_decode(q[:, now], *caches, lengths, k=k[:, now], v=v[:, now]))
        lengths += 1
    exact = reference.attention(q.double(), k.double(), v.double(), causal=True)
    assert check("out", torch.cat(outs, 1), exact, honest.attention(q, k, v, causal=True)[0], 8.0).ok
    assert torch.equal(caches[0], k) and torch.equal(caches[1], v)


@every_dtype
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_nan_reaches_only_those_who_see_it(backend, dtype):
    """In a key that the window leaves to the first query alone, and in the values of the last token."""
    tensors, _ = drawn([100, 100], 120, 3, 4, 2, 16, dtype)
    clean = undivided.attention_decode(*tensors, window=(40, None), backend=backend)
    tensors[1][0, 100 - 3 - 40, 1, 5] = torch.nan  # position 57: query 0 stands at 97
    tensors[2][1, 99, 0, 3] = torch.nan
    tensors[2][:, :57] = tensors[1][:, 100:] = torch.inf
    got = undivided.attention_decode(*tensors, window=(40, None), backend=backend)
    touched = torch.zeros_like(got, dtype=torch.bool)
    touched[0, 0, 2:] = True  # the query heads that read key head 1
    touched[1, 2, :2, 3] = True
    assert torch.equal(got.isnan(), touched)
    torch.testing.assert_close(got[~touched], clean[~touched], rtol=0, atol=0)


@needs_cpu
def test_scores_that_rise_from_part_to_part():
    """The top of a block's first vector is not looked for again until weights exceed it by far; parts then differ."""
    for slope in (0.001, 0.02, 0.5, -0.5):
        tensors, _ = drawn([1000], 1000, 1, 1, 1, 8)
        tensors[0].fill_(1.0)
        tensors[1] += (torch.arange(1000) * slope)[None, :, None, None]
        close_to_reference(tensors, {})


@needs_cpu
@pytest.mark.parametrize("paged", [False, True])
def test_offsets_past_two_to_the_31(paged):
    """Tokens, or blocks, 2^30 floats apart: the memory between them is never touched."""
    storage = torch.empty(4 * 2**30 + 64, dtype=torch.float32)
    shape, strides = ((4, 1, 1, 16), (2**30, 16, 16, 1)) if paged else ((1, 4, 1, 16), (0, 2**30, 16, 1))
    far = storage.as_strided(shape, strides)
    far.copy_(random(*shape))
    words = dict(block_table=ints(0, 1, 2, 3)[None]) if paged else {}
    q, lengths = random(1, 1, 1, 16, seed=1), ints(3)
    results = []
    for cache in (far, far.clone(memory_format=torch.contiguous_format)):
        new = dict(k=random(1, 1, 1, 16, seed=2), v=random(1, 1, 1, 16, seed=2))
        results.append(undivided.attention_decode(q, cache, cache, lengths, **new, **words, backend="cpu"))
    assert torch.equal(*results)


def test_strides():
    """Queries, keys and values of one projection, caches with heads first, lengths as int64."""
    tensors, new = drawn([30, 7], 40, 2, 3, 3, 16, new=2)
    expected = undivided.attention_decode(tensors[0], tensors[1].clone(), tensors[2].clone(), tensors[3], **new)
    q, k, v = torch.stack([tensors[0], new["k"], new["v"]], 2).unbind(2)
    caches = [cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in tensors[1:3]]
    assert torch.equal(undivided.attention_decode(q, *caches, tensors[3].long(), k=k, v=v), expected)
    far = torch.randn(2, 2, 3, 32, device=DEVICE)[..., ::2].copy_(tensors[0])  # head_dim is not contiguous
    assert torch.equal(undivided.attention_decode(far, *caches, tensors[3] + 2), expected)


def test_rows_may_share_blocks():
    """A common beginning of two rows stands in the same blocks."""
    q, table = random(2, 1, 2, 16), torch.stack([ints(3, 0, 1), ints(3, 0, 2)])
    blocks = [random(4, 8, 2, 16, seed=n) for n in (1, 2)]
    got = undivided.attention_decode(q, *blocks, ints(20, 23), block_table=table)
    rows = [cache[table.long()].flatten(1, 2) for cache in blocks]
    torch.testing.assert_close(got, undivided.attention_decode(q, *rows, ints(20, 23)))


def test_autocast_follows_the_caches():
    tensors, new = drawn([5, 9], 20, new=1)
    caches = [cache.bfloat16() for cache in tensors[1:3]]
    low = [value.bfloat16() for value in (tensors[0], new["k"], new["v"])]
    expected = undivided.attention_decode(low[0], *(c.clone() for c in caches), tensors[3], k=low[1], v=low[2])
    with torch.autocast(DEVICE.type, torch.float16):
        got = undivided.attention_decode(tensors[0], *caches, tensors[3], **new)
    assert got.dtype == torch.bfloat16 and torch.equal(got, expected)


def modules():
    missing = {"cpu": not CPU, "reference": True}
    return [row.module for row in ATTENTION_DECODE if not missing.get(row.name, False)]


@needs_cpu
@pytest.mark.parametrize("appends", [True, False])
def test_opcheck(appends):
    case = next(case for case in DECODE_CASES if case.name == ("everything" if appends else "sinks"))
    tensors, words = make_decode_inputs(case, torch.float32, DEVICE.type)
    for cache in (tensors["k_cache"], tensors["v_cache"]):
        cache.nan_to_num_()  # opcheck compares what an op may not write to, and NaN is never equal
    bias = words.get("bias")
    op = torch.ops.undivided.attention_decode_append if appends else torch.ops.undivided.attention_decode
    given = [words.get(name) for name in ("k", "v", "block_table")] + [bias and bias.table, None, words["sinks"]]
    given += words.get("rotary", (None, None))
    torch.library.opcheck(
        op, ("undivided.cpu.attention_decode", *tensors.values(), *given, 0.3, 100, 0, 64, False, 5.0)
    )


@pytest.mark.parametrize("name", ["everything", "cross", "alibi by row"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_fullgraph_gives_the_same_result(name, backend):
    """Two steps in one graph: the second reads what the first has written."""
    torch.compiler.reset()
    case = next(case for case in DECODE_CASES if case.name == name)
    tensors, words = make_decode_inputs(case, torch.float32, DEVICE.type)

    def steps(q, k_cache, v_cache, cache_lengths):
        first = undivided.attention_decode(q, k_cache, v_cache, cache_lengths, backend=backend, **words)
        return first, undivided.attention_decode(first, k_cache, v_cache, cache_lengths + 1, backend=backend, **words)

    results = []
    for function in (steps, torch.compile(steps, fullgraph=True, backend="aot_eager")):
        own = {name: value.clone() if case.seqlen_new else value for name, value in tensors.items()}
        results.append([*function(**own), own["k_cache"], own["v_cache"]])
    assert all(same(a, b) for a, b in zip(*results, strict=True))


def test_a_compiled_call_still_checks_the_values():
    tensors, new = drawn([5, 9], 20, new=1)
    compiled = torch.compile(lambda *t: undivided.attention_decode(*t, **new), fullgraph=True, backend="aot_eager")
    compiled(*tensors)
    if CPU:
        with pytest.raises(ValueError, match=r"cache_lengths\[1\] = 20; allowed: 0 to 19"):
            compiled(*tensors[:3], ints(0, 20))


def test_explain_and_the_first_choice():
    call = DecodeCall("cpu", "bfloat16", 1, 1, 512, 8, 8, 64, 64)
    text = undivided.explain(call)
    assert text.endswith("auto takes: cpu" if EXTENSION_MISSING is None else "auto takes: reference")
    assert "triton " in text


def test_no_queries_only_append():
    tensors, new = drawn([5, 9], 20, 0, new=2)
    assert undivided.attention_decode(*tensors, **new).shape == (2, 0, 2, 16)
    assert torch.equal(tensors[1][1, 9:11], new["k"][1]) and torch.equal(tensors[2][0, 5:7], new["v"][0])


@pytest.mark.parametrize("way", ["directly", "usual", "lse", "reference", "registered op"])
def test_what_autograd_saved_of_a_cache_is_not_overwritten_unseen(way, monkeypatch):
    """A call that appends counts as a change in place of the caches, one that does not is none."""
    if way == "usual":
        monkeypatch.setattr("undivided.ops.direct.POSSIBLE", False)
    if way == "registered op":
        monkeypatch.setattr("undivided.ops.attention_decode_call.by_registered_op", lambda *values: True)
        monkeypatch.setattr("undivided.ops.direct.POSSIBLE", False)
    words = dict(return_lse=way == "lse", backend="reference" if way == "reference" else "auto")
    tensors, new = drawn([5, 9], 20, 1, new=2)
    factor = torch.ones((), device=DEVICE, requires_grad=True)
    for cache in tensors[1:3]:
        product = (cache * factor).sum()
        undivided.attention_decode(*tensors, **words)
        product.backward(retain_graph=True)
        undivided.attention_decode(*tensors, **new, **words)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


@pytest.mark.parametrize("possible", [True, False])
def test_caches_of_inference_mode_are_written(possible, monkeypatch):
    """They count no changes."""
    monkeypatch.setattr("undivided.ops.direct.POSSIBLE", possible and undivided.ops.direct.POSSIBLE)
    with torch.inference_mode():
        tensors, new = drawn([5, 9], 20, 1, new=2)
        assert tensors[1].is_inference()
        inside = undivided.attention_decode(*tensors, **new)
    assert same(undivided.attention_decode(*tensors, **new), inside)  # written once more
    assert torch.equal(tensors[1][1, 9:11], new["k"][1])


@pytest.mark.parametrize(
    "words", [dict(causal=False), dict(causal=False, window=(None, 3)), dict(causal=True)], ids=str
)
@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=needs_triton), "reference"])
def test_rotary_of_queries_before_the_first_token(words, backend):
    """Where a row holds fewer tokens than there are queries, those before it stand at position 0: without causal they
    see keys."""
    (q, *caches, lengths), _ = drawn([3, 9, 1], 20, seqlen_q=4)
    words = words | dict(rotary=reference.rotary_tables(20, 16))
    out = undivided.attention_decode(q, *caches, lengths, backend=backend, **words)
    places = (lengths.long()[:, None] - 4 + torch.arange(4)).clamp(min=0)
    turned = undivided.rotary(q, *words.pop("rotary"), places)
    expected = undivided.attention_decode(turned, *caches, lengths, backend="reference", **words)
    torch.testing.assert_close(out, expected)
