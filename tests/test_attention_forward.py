"""The public attention, forward, on every backend that runs here: layouts, sizes, modes and what it must not read."""

from __future__ import annotations

import math

import pytest
import torch

import undivided
from rows import DEVICE, LOW, backends, qkv, random, run, same_numbers
from undivided import ALiBi, RelativeBias
from undivided.ops.attention_table import ATTENTION

BACKENDS = backends(ATTENTION)
BAD = {"nan": math.nan, "inf": math.inf}
SEQLEN = 19


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def hiding(name: str) -> dict:
    """Words under which key 13 is hidden from some rows at least; in the last three from all of a row's queries."""
    pattern = random(2, 4, SEQLEN, SEQLEN) > -0.3
    keys = torch.ones(1, 1, 1, SEQLEN, dtype=torch.bool, device=DEVICE)
    keys[..., 13] = False
    return {
        "causal": dict(causal=True),
        "window": dict(window=(3, 2)),
        "mask": dict(mask=pattern),
        "mask and bias": dict(mask=pattern[:, :1], bias=random(1, 4, SEQLEN, SEQLEN)),
        "mask of keys": dict(mask=keys),
        "lengths": dict(key_lengths=ints(SEQLEN, 9)),
        "lengths and mask": dict(key_lengths=ints(SEQLEN, 9), mask=pattern[:, :1]),
    }[name]


HIDING = ("causal", "window", "mask", "mask and bias", "mask of keys", "lengths", "lengths and mask")


def seen(words: dict) -> torch.Tensor:
    """bool (batch, seqlen_q, nheads, seqlen_k)."""
    plain = {name: value for name, value in words.items() if name != "bias"}
    visible = undivided.reference.visible(SEQLEN, SEQLEN, **plain, device=DEVICE)
    return visible.expand(2, 4, SEQLEN, SEQLEN).transpose(1, 2)


CASES = [(torch.float32, "nan"), (torch.float32, "inf"), *((dtype, "nan") for dtype in LOW)]


@pytest.mark.parametrize(("dtype", "bad"), CASES, ids=str)
@pytest.mark.parametrize("name", HIDING)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hidden_key_or_value_reaches_no_row(backend, name, dtype, bad):
    """To the bit; and a row that does see it shows it."""
    words = hiding(name)
    words = {k: v.to(dtype) if k == "bias" else v for k, v in words.items()}
    q, k, v = (t.detach() for t in qkv(seqlen_q=SEQLEN, seqlen_k=SEQLEN, dtype=dtype))
    clean = run(undivided.attention, q, k, v, backend=backend, **words)
    k[:, 13], v[:, 13, :, 5] = BAD[bad], BAD[bad]
    dirty = run(undivided.attention, q, k, v, backend=backend, **words)
    sees = seen(words)[..., 13]
    assert torch.equal(clean[~sees], dirty[~sees]) and clean.isfinite().all()
    assert not dirty[sees].isfinite().all(-1).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_lowest_float_as_a_bias_hides_a_key_and_a_row_of_nothing_else_gives_the_mean(backend):
    q, k, v = (t.detach() for t in qkv(nheads=2))
    bias = torch.zeros(2, 1, SEQLEN, SEQLEN, device=DEVICE)
    bias[0, :, 3] = bias[1, :, :, 5:] = torch.finfo(torch.float32).min
    bias[1, :, 4, 2] = math.nan
    out = run(undivided.attention, q, k, v, backend=backend, bias=bias)
    torch.testing.assert_close(out[0, 3], v[0].mean(0), rtol=1e-5, atol=1e-5)
    rest = [i for i in range(SEQLEN) if i != 4]
    few = run(undivided.attention, q[1:, rest], k[1:, :5], v[1:, :5], backend=backend)
    torch.testing.assert_close(out[1:, rest], few, rtol=1e-5, atol=1e-5)
    assert out[1, 4].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_value_in_one_head_stays_in_its_head(backend):
    q, k, v = (t.detach() for t in qkv())
    v[1, 4, 1] = math.nan
    out = run(undivided.attention, q, k, v, backend=backend, causal=True)
    assert out[1, 4:, 2:].isnan().all() and out[:, :, :2].isfinite().all()
    assert out[0].isfinite().all() and out[1, :4].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_sees_nothing_is_zero(backend):
    q, k, v = (t.detach() for t in qkv())
    mask = torch.ones(SEQLEN, SEQLEN, dtype=torch.bool, device=DEVICE)
    mask[3] = False
    out = run(undivided.attention, q, k, v, backend=backend, mask=mask)
    assert (out[:, 3] == 0).all() and (out[:, 4] != 0).all()
    bias = torch.zeros(SEQLEN, SEQLEN, device=DEVICE).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(run(undivided.attention, q, k, v, backend=backend, bias=bias), out)


def layouts(t: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers (batch, seqlen, nheads, head_dim) at other strides."""
    batch, seqlen, nheads, head_dim = t.shape
    wide = torch.full((batch, seqlen, 2 * nheads, head_dim + 3), math.nan, device=DEVICE)
    wide[:, :, ::2, 1:-2] = t
    return {
        "head first": t.transpose(1, 2).contiguous().transpose(1, 2),
        "head_dim strided": t.transpose(1, 3).contiguous().transpose(1, 3),
        "slice": wide[:, :, ::2, 1:-2],
    }


@pytest.mark.parametrize("name", ["head first", "head_dim strided", "slice"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_give_the_same_bits(backend, name):
    q, k, v = (t.detach() for t in qkv(seqlen_q=SEQLEN - 2))
    expected = run(undivided.attention, q, k, v, backend=backend)
    moved = [layouts(t)[name] for t in (q, k, v)]
    assert all(t.stride() != old.stride() for t, old in zip(moved, (q, k, v), strict=True))
    assert torch.equal(run(undivided.attention, *moved, backend=backend), expected)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs_give_the_same_bits(backend, dim):
    """Stride 0 along each dimension of every input, head_dim too."""
    expanded = [t.detach().narrow(dim, 0, 1).expand(t.shape) for t in qkv()]
    copied = [t.clone(memory_format=torch.contiguous_format) for t in expanded]
    assert all(t.stride(dim) == 0 for t in expanded) and all(t.stride(dim) != 0 for t in copied)
    got, expected = (run(undivided.attention, *t, backend=backend, causal=True) for t in (expanded, copied))
    assert torch.equal(got, expected)


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same numbers with a gap after each, and what would be read by mistake is large."""
    wide = torch.full((*t.shape, 2), 77, dtype=t.dtype, device=t.device)
    wide[..., 0] = t
    return wide[..., 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_words_of_any_strides_give_the_same_numbers(backend):
    """A kernel that reads lengths, sinks, slopes or a table one after the other must be given them so."""
    q, k, v = (t.detach() for t in qkv())
    many = [
        dict(key_lengths=ints(7, 19), query_lengths=ints(19, 4)),
        dict(query_offset=ints(3, -5), causal=True),
        dict(sinks=random(4)),
        dict(bias=ALiBi(random(2, 4).abs())),
        dict(bias=RelativeBias(random(8, 4), 9)),
        dict(bias=random(4, SEQLEN, SEQLEN), mask=random(SEQLEN, SEQLEN) > 0),
    ]
    for words in many:
        moved = {}
        for name, value in words.items():
            if isinstance(value, ALiBi):
                moved[name] = ALiBi(strided(value.slopes))
            elif isinstance(value, RelativeBias):
                moved[name] = RelativeBias(strided(value.table), value.max_distance)
            else:
                moved[name] = strided(value) if isinstance(value, torch.Tensor) else value
        got, expected = (run_or_none(q, k, v, backend, w) for w in (moved, words))
        assert (got is None) == (expected is None), list(words)
        if got is not None:
            same_numbers(backend, got, expected)


def run_or_none(q, k, v, backend, words):
    try:
        return undivided.attention(q, k, v, backend=backend, **words)
    except undivided.BackendRefused:
        return None


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_offsets_of_any_strides_give_the_same_bits(backend):
    q, k, v = (t.detach()[0] for t in qkv())
    starts = ints(0, 5, 5, 19)
    got, expected = (
        run(undivided.attention_packed, q, k, v, cu_seqlens_q=s, cu_seqlens_k=s, causal=True, backend=backend)
        for s in (strided(starts), starts.to(torch.int64))
    )
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "sizes",
    [dict(batch=0), dict(seqlen_q=0), dict(seqlen_k=0), dict(seqlen_q=0, seqlen_k=0), dict(seqlen_q=1, seqlen_k=1)],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do(backend, sizes):
    q, k, v = (t.detach() for t in qkv(**sizes))
    out = run(undivided.attention, q, k, v, backend=backend)
    assert out.shape == q.shape and (k.shape[1] > 0 or (out == 0).all())
    if k.shape[1] == 1:
        torch.testing.assert_close(out, v.repeat_interleave(2, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do_packed(backend):
    """No sequence at all, only empty ones, and rows that belong to none."""
    q, k, v = (t.detach()[0] for t in qkv())
    for starts in (ints(0), ints(0, 0, 0)):
        words = dict(cu_seqlens_q=starts, cu_seqlens_k=starts, return_lse=True, backend=backend)
        out, lse = run(undivided.attention_packed, q, k, v, **words)
        assert (out == 0).all() and torch.isneginf(lse).all() and lse.shape == (4, SEQLEN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_longer_max_seqlen_changes_nothing(backend):
    q, k, v = (t.detach()[0] for t in qkv())
    words = dict(cu_seqlens_q=ints(0, 5, 19), cu_seqlens_k=ints(0, 7, 12), causal=True, backend=backend)
    expected = run(undivided.attention_packed, q, k, v, **words)
    for longest in ((99, 70), (2**40, 2**40)):
        if longest[0] > 99 and DEVICE.type != "cpu":
            continue  # nobody waits for the GPU to look at the lengths
        got = run(undivided.attention_packed, q, k, v, max_seqlen_q=longest[0], max_seqlen_k=longest[1], **words)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_farthest_distances(backend):
    """32-bit sums of positions must not wrap around."""
    q, k, v = (t.detach() for t in qkv())
    far = 2**29
    everything = run(undivided.attention, q, k, v, window=(far, far), query_offset=0, backend=backend)
    torch.testing.assert_close(everything, undivided.attention(q, k, v, backend="reference"))
    nothing = run(undivided.attention, q, k, v, window=(far, far), query_offset=-far, causal=True, backend=backend)
    assert (nothing == 0).all()
    late = run(undivided.attention, q, k, v, window=(far, far), query_offset=far, backend=backend)  # sees i and later
    expected = undivided.attention(q, k, v, window=(0, None), query_offset=0, backend="reference")
    torch.testing.assert_close(late, expected)


def test_float64_runs_and_the_kernels_say_no():
    q, k, v = (t.detach() for t in qkv(dtype=torch.float64))
    out = undivided.attention(q, k, v, causal=True)
    expected = undivided.reference.attention(q, k, v, causal=True)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(undivided.BackendRefused, match="dtype float64 is not one of float32, bfloat16, float16"):
        undivided.attention(q, k, v, backend="triton")


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_as_torchs_own_attention(backend, dtype):
    tensors = qkv()
    with torch.autocast(DEVICE.type, dtype):
        out = run(undivided.attention, *tensors, backend=backend, causal=True)
        mixed = run(undivided.attention, tensors[0].to(dtype), *tensors[1:], backend=backend, causal=True)
        double = run(undivided.attention, *(t.double() for t in tensors), backend="reference")
    expected = run(undivided.attention, *(t.to(dtype) for t in tensors), backend=backend, causal=True)
    assert out.dtype == dtype and torch.equal(out, expected) and torch.equal(mixed, expected)
    assert double.dtype == torch.float64
    grads = torch.autograd.grad(out.float().square().sum(), tensors)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


def test_autocast_casts_a_packed_batch():
    q, k, v = (t.detach()[0] for t in qkv())
    with torch.autocast(DEVICE.type, torch.bfloat16):
        out = undivided.attention_packed(q, k, v, cu_seqlens_q=ints(0, 19), cu_seqlens_k=ints(0, 19))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode_gives_the_same_bits(backend):
    tensors = qkv()
    expected = run(undivided.attention, *tensors, backend=backend, causal=True)
    with torch.inference_mode():
        out = run(undivided.attention, *tensors, backend=backend, causal=True)
        made_here = [t.clone() for t in tensors]
        again = run(undivided.attention, *made_here, backend=backend, causal=True)
    assert out.is_inference() and expected.requires_grad
    assert torch.equal(out, expected) and torch.equal(again, expected)


FEATURES = {
    "causal": dict(causal=True),
    "dropout": dict(dropout_p=0.3, seed=11),
    "lengths": dict(key_lengths=ints(5, 19), causal=True),
    "relative": dict(bias=RelativeBias(random(8, 4), 9)),
}


@pytest.mark.parametrize("name", FEATURES)
def test_two_runs_agree_to_the_bit(name):
    tensors = qkv(seqlen_q=70, seqlen_k=90, dtype=torch.bfloat16)
    first, second = (undivided.attention(*tensors, **FEATURES[name]) for _ in range(2))
    assert torch.equal(first, second)


def test_a_seed_is_drawn_from_torchs_generator():
    q, k, v = (t.detach() for t in qkv())
    draw = lambda: undivided.attention(q, k, v, dropout_p=0.5)  # noqa: E731
    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert torch.equal(first, draw()) and not torch.equal(first, second)
    torch.manual_seed(3)
    undivided.attention(q, k, v)
    assert torch.equal(first, draw())  # a call without dropout draws nothing
