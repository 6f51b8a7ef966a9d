"""Attention in C++: the shared case table in every dtype and variant, and what the table does not ask."""

from __future__ import annotations

import math

import pytest
import torch

_C = pytest.importorskip("undivided._C", reason="the compiled extension is not built")

import undivided  # noqa: E402
import undivided.cpu  # noqa: E402, F401  (connects the extension to torch's threads)
from undivided import reference  # noqa: E402
from undivided.testing import ATTENTION_CASES, QUICK, check, compare, honest, poison  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What takes another path through memory, another product or another loop; the rest differs in what is visible.
OTHER_VARIANTS = (*QUICK, "no keys", "127 x 257", "head_dim 40", "head_dim_v 24", "bias bk", "dropout", "sinks")
BEST = _C.variant()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def failures(case, dtype):
    with poison():
        verdicts = compare.attention(case, dtype, "cpu", "cpu", True)
    return [verdict for verdict in verdicts if not verdict.ok]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name)
def test_every_case(case, dtype):
    assert not failures(case, dtype)


@pytest.mark.parametrize("variant", [name for name in _C.variants() if name != BEST], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [c for c in ATTENTION_CASES if c.name in OTHER_VARIANTS], ids=lambda case: case.name)
def test_other_variants(case, dtype, variant):
    assert not failures(case, dtype)


def inputs(batch=2, seqlen_q=150, seqlen_k=170, nheads=4, nheads_kv=2, head_dim=24, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, seqlen_q, nheads, head_dim)] + 2 * [(batch, seqlen_k, nheads_kv, head_dim)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def results(tensors, extra=(), **words):
    """out, lse and the gradients of q, k, v and `extra`."""
    out, lse = undivided.attention(*tensors, backend="cpu", return_lse=True, **words)
    loss = out.float().square().sum() + torch.where(lse.isfinite(), lse, 0).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(loss, [*tensors, *extra])]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "causal", "dense", "relative", "shared", "long"])
def test_same_bits_on_any_number_of_threads(kind, dtype, threads):
    sizes = {"long": dict(batch=1, seqlen_q=300, seqlen_k=1100, nheads=1, nheads_kv=1)}.get(kind, {})
    tensors = inputs(dtype=dtype, **sizes)
    generator = torch.Generator().manual_seed(4)
    extra, words = [], {"causal": kind == "causal"}
    if kind in ("dense", "shared"):  # shared by the batch; by the batch, the heads and the keys
        shape = (4, 150, 170) if kind == "dense" else (1, 150, 1)
        extra = [torch.randn(shape, generator=generator).to(dtype).requires_grad_()]
        words["bias"] = extra[0]
    if kind == "relative":
        extra = [torch.randn(32, 4, generator=generator).to(dtype).requires_grad_(), torch.randn(4, requires_grad=True)]
        words |= dict(bias=undivided.RelativeBias(extra[0]), sinks=extra[1], dropout_p=0.1, seed=3)
    found = []
    for number in (1, 2, 3, 2):
        threads(number)
        found.append(results(tensors, extra, **words))
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("variant", _C.variants(), indirect=True)
@pytest.mark.parametrize("seqlen_q", [1, 20])
def test_weights_under_the_normal_numbers_are_zero(seqlen_q, variant):
    """They were denormal with AVX-512, which Intel's processors compute with in microcode: ALiBi took twice as long."""
    q, k = torch.zeros(1, seqlen_q, 1, 16), torch.zeros(1, 2, 1, 16)
    v = torch.zeros(1, 2, 1, 16)
    v[:, 1] = 1e38  # times e^-91 it is 3e-2
    out = undivided.attention(q, k, v, bias=torch.tensor([0.0, -91.0]), backend="cpu")
    assert torch.equal(out, torch.zeros_like(out))
    near = undivided.attention(q, k, v, bias=torch.tensor([0.0, -86.0]), backend="cpu")
    torch.testing.assert_close(near, torch.full_like(near, 1e38 * math.exp(-86)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("variant", _C.variants(), indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("nheads_kv", [4, 8])
def test_many_short_sequences_are_as_each_by_itself(nheads_kv, dtype, threads, variant):
    """So many heads that a task takes several, of sequences with few keys or none; one sequence alone has too few."""
    threads(2)
    tensors = inputs(32, 50, 70, 8, nheads_kv, 40, dtype)
    lengths = torch.randint(0, 71, (32,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    lengths[3] = 0
    together = results(tensors, causal=True, key_lengths=lengths)
    for b in (0, 3, 17, 31):
        alone = results([t[b : b + 1] for t in tensors], causal=True, key_lengths=lengths[b : b + 1])
        assert same([t[b : b + 1] for t in together], alone)


def test_a_query_does_not_depend_on_its_neighbours():
    """Queries are dealt out in chunks; where a row lies in one must not show in its bits."""
    q, k, v = (t.detach() for t in inputs(batch=1, seqlen_q=700, seqlen_k=700, head_dim=64))
    whole = undivided.attention(q, k, v, causal=True, backend="cpu")
    part = undivided.attention(q[:, 384:], k, v, causal=True, backend="cpu")
    assert torch.equal(whole[:, 384:], part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_all_lengths(causal, dtype):
    """Every remainder of the tiles' sides, forward and backward."""
    for seqlen in [*range(1, 35), *range(61, 68), *range(92, 100), *range(125, 132), 191, 192, 193, 255, 256, 257]:
        tensors = inputs(1, seqlen, (seqlen * 7) % 259 + 1, 2, 1, 16, dtype)
        exact = [t.detach().double().requires_grad_() for t in tensors]
        plain = [t.detach().clone().requires_grad_() for t in tensors]
        runs = []
        for op, leaves in ((undivided, tensors), (reference, exact), (honest, plain)):
            words = dict(backend="cpu", return_lse=True) if op is undivided else dict(return_lse=True)
            words = {} if op is honest else words
            out, lse = op.attention(*leaves, causal=causal, **words)
            loss = out.to(lse.dtype).square().sum() + torch.where(lse.isfinite(), lse, 0).sum()
            runs.append([out, lse, *torch.autograd.grad(loss, leaves)])
        scale = max(float(t.detach().abs().masked_fill(~t.isfinite(), 0).max()) for t in runs[1])
        for name, got, right, rough in zip(("out", "lse", "dq", "dk", "dv"), *runs, strict=True):
            verdict = check(name, got, right, rough, scale)
            assert verdict.ok, (seqlen, verdict)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_poison_in_hidden_keys_reaches_nothing(bad, dtype):
    q, k, v = inputs(dtype=dtype)
    words = dict(key_lengths=torch.tensor([170, 35], dtype=torch.int32), causal=True)
    mask = torch.ones(170, dtype=torch.bool)
    mask[5:9] = False
    clean = results((q, k, v), mask=mask, **words)
    with torch.no_grad():
        for tensor in (k, v):
            tensor[1, 35:] = bad
            tensor[:, 5:9] = bad
    assert same(clean, results((q, k, v), mask=mask, **words))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_in_a_later_value_stays_out_of_earlier_rows(dtype):
    q, k, v = (t.detach() for t in inputs(batch=1, seqlen_q=150, seqlen_k=150, dtype=dtype))
    v[0, 40, 0, 3] = float("nan")
    k[0, 140, 1, 0] = float("nan")
    out = undivided.attention(q, k, v, causal=True, backend="cpu")
    touched = torch.zeros_like(out, dtype=torch.bool)
    touched[0, 40:, :2, 3] = True  # the query heads that read key head 0
    touched[0, 140:, 2:] = True
    assert torch.equal(out.isnan(), touched)


def test_scores_that_rise_from_block_to_block():
    """The top of the first block is not looked for again until weights exceed it by far."""
    generator = torch.Generator().manual_seed(1)
    q, noise, v = (torch.randn(1, n, 1, 8, generator=generator) for n in (30, 1000, 1000))
    q = 1 + 0.1 * q
    for slope in (0.001, 0.02, 0.2, 5.0, -5.0):
        k = (torch.arange(1000) * slope)[None, :, None, None] + noise
        got = undivided.attention(q, k, v, return_lse=True, backend="cpu")
        exact = reference.attention(q.double(), k.double(), v.double(), return_lse=True)
        for name, *values in zip(("out", "lse"), got, exact, honest.attention(q, k, v), strict=True):
            verdict = check(name, *values)
            assert verdict.ok, (slope, verdict)


@pytest.mark.parametrize("variant", _C.variants(), indirect=True)
@pytest.mark.parametrize("scale", [0.0, 1e-42])
@pytest.mark.parametrize("seqlen_q", [1, 20])
def test_a_scale_of_zero_gives_the_mean(seqlen_q, scale, variant):
    """0 times the -inf of a hidden score is NaN."""
    q, k, v = inputs(seqlen_q=seqlen_q, seqlen_k=40, nheads=2)
    out = undivided.attention(q, k, v, scale=scale, causal=True, backend="cpu")
    seen = torch.arange(40 - seqlen_q, 40) + 1
    means = v.detach().cumsum(1)[:, seen - 1] / seen[:, None, None]
    torch.testing.assert_close(out, means, rtol=0, atol=1e-6)
    for gradient in torch.autograd.grad(out.square().sum(), [q, k, v]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("variant", _C.variants(), indirect=True)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("seqlen_q", [1, 60])
def test_scores_beyond_the_exponents_of_a_float(seqlen_q, dtype, variant):
    """What the largest of them was rounded by is more than exp2 has room for."""
    q, k, v = (t.detach() for t in inputs(seqlen_q=seqlen_q, seqlen_k=300, nheads=2, dtype=dtype))
    q, k = q * 1e5, k * 1e5
    out, lse = undivided.attention(q, k, v, return_lse=True, backend="cpu")
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / math.sqrt(24)
    first = scores.topk(2, -1)
    assert (first.values[..., 0] - first.values[..., 1]).min() > 1e4
    torch.testing.assert_close(lse.double(), first.values[..., 0], rtol=1e-5, atol=0)
    picked = v.transpose(1, 2).gather(2, first.indices[..., :1].expand(-1, -1, -1, 24))
    assert torch.equal(out.transpose(1, 2), picked)


@pytest.mark.parametrize("variant", _C.variants(), indirect=True)
@pytest.mark.parametrize("softcap", [1e5, 1e30])
def test_a_softcap_far_over_the_scores_changes_nothing(softcap, variant):
    """1 - 2 / (e^(2 x) + 1) has few digits of a small x."""
    got = results(inputs(seed=3), softcap=softcap)
    for one, plain in zip(got, results(inputs(seed=3)), strict=True):
        torch.testing.assert_close(one, plain, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("variant", _C.variants(), indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_queries(dtype, variant):
    """Up to three rows a key head read keys and values where they lie: over several blocks, with hidden NaN."""
    generator = torch.Generator().manual_seed(8)
    hidden = torch.rand(600, generator=generator) < 0.3
    for seqlen, nheads, nheads_kv, head_dim, dropout_p in [(1, 2, 2, 64, 0), (1, 6, 2, 80, 0), (3, 1, 1, 33, 0.3)]:
        q = torch.randn(2, seqlen, nheads, head_dim, generator=generator).to(dtype)
        k, v = (torch.randn(2, 600, nheads_kv, head_dim, generator=generator).to(dtype) for _ in range(2))
        words = dict(mask=~hidden, dropout_p=dropout_p, seed=7, causal=True)
        exact = reference.attention(*(t.double() for t in (q, k, v)), return_lse=True, **words)
        rough = honest.attention(q, k, v, **words)
        k[:, hidden], v[:, hidden] = torch.nan, torch.inf
        with poison():
            got = undivided.attention(q, k, v, return_lse=True, backend="cpu", **words)
        for name, *values in zip(("out", "lse"), got, exact, rough, strict=True):
            verdict = check(name, *values)
            assert verdict.ok, (seqlen, nheads, head_dim, verdict)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(dtype):
    """Packed projections, a step in the sequence, expanded keys, an odd first element and odd strides."""
    generator = torch.Generator().manual_seed(6)
    qkv = torch.randn(2, 70, 3, 2, 32, generator=generator).to(dtype)
    odd = torch.randn(2 * 70 * 2 * 33 + 1, generator=generator).to(dtype)[1:].view(2, 70, 2, 33)[..., :32]
    layouts = [
        qkv.unbind(2),
        [t[:, ::2] for t in qkv.unbind(2)],
        [t[:1, :1].expand(2, 70, 2, 32) for t in qkv.unbind(2)],
        [odd, *qkv.unbind(2)[1:]],
    ]
    for tensors in layouts:
        plain = [t.detach().contiguous().requires_grad_() for t in tensors]
        own = [t.detach().requires_grad_() for t in tensors]
        assert same(results(own, causal=True), results(plain, causal=True))


def test_expanded_and_transposed_gradients():
    """`out.sum().backward()` gives a dout with stride 0."""
    tensors = inputs()
    out = undivided.attention(*tensors, backend="cpu")
    shape = out.shape
    douts = [torch.ones(shape), torch.ones(1).expand(shape), torch.ones(shape[0], shape[2], shape[1], shape[3])]
    douts[2] = douts[2].transpose(1, 2)
    found = [torch.autograd.grad(out, tensors, dout, retain_graph=True) for dout in douts]
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_offsets_past_two_to_the_31():
    """Rows 2^30 floats apart: the memory between them is never touched."""
    rows = 4
    storage = torch.empty(rows * 2**30 + 64, dtype=torch.float32)
    far = storage.as_strided((1, rows, 1, 16), (0, 2**30, 16, 1))
    far.copy_(torch.randn(1, rows, 1, 16, generator=torch.Generator().manual_seed(2)))
    near = far.clone(memory_format=torch.contiguous_format)
    assert torch.equal(
        undivided.attention(far, far, far, backend="cpu"), undivided.attention(near, near, near, backend="cpu")
    )


def test_rows_of_no_sequence_are_zero():
    q = torch.randn(20, 2, 16)
    starts = torch.tensor([0, 3, 3, 15], dtype=torch.int32)
    with poison():
        out, lse = undivided.attention_packed(
            q, q, q, cu_seqlens_q=starts, cu_seqlens_k=starts, return_lse=True, backend="cpu"
        )
    assert (out[15:] == 0).all() and (lse[:, 15:] == -torch.inf).all() and out[:15].isfinite().all()


def test_it_is_the_first_choice_on_a_cpu():
    from undivided.dispatch import AttentionCall

    assert undivided.explain(AttentionCall("cpu", "bfloat16", 2, 8, 8, 4, 4, 64, 64)).endswith("auto takes: cpu")
