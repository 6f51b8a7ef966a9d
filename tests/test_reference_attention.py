"""The reference's attention against its definition in plain loops, and its first and second derivatives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from undivided import ALiBi, RelativeBias, reference

INF = math.inf


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(batch=2, seqlen_q=3, seqlen_k=5, nheads=4, nheads_kv=2, head_dim=3, head_dim_v=2):
    sizes = (seqlen_q, nheads, head_dim), (seqlen_k, nheads_kv, head_dim), (seqlen_k, nheads_kv, head_dim_v)
    return [random(batch, *size, seed=n).requires_grad_() for n, size in enumerate(sizes)]


def bucket(distance: int, num_buckets: int, max_distance: int, bidirectional: bool) -> int:
    """T5's rule as its paper's code has it, on Python numbers; distance is key position minus query position."""
    first, n = 0, -distance
    if bidirectional:
        num_buckets //= 2
        if n < 0:
            first, n = num_buckets, -n
    n = max(n, 0)
    exact = num_buckets // 2
    if n < exact:
        return first + n
    steps = math.log(n / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    return first + min(exact + int(steps), num_buckets - 1)


def added(bias, b: int, h: int, i: int, j: int, at: int, shape: tuple[int, ...]) -> float:
    if bias is None:
        return 0.0
    if isinstance(bias, RelativeBias):
        row = bucket(j - at, bias.table.shape[0], bias.max_distance, bias.bidirectional)
        return bias.table[row, h].item()
    if isinstance(bias, ALiBi):
        slopes = bias.slopes if bias.slopes.dim() == 1 else bias.slopes[b]
        return -slopes[h].item() * abs(at - j)
    return bias.expand(shape)[b, h, i, j].item()


def by_hand(
    q, k, v, causal=False, window=None, mask=None, key_lengths=None, query_lengths=None, bias=None, scale=None,
    softcap=None, sinks=None, query_offset=None,
):  # fmt: skip
    """(out, lse), one number at a time."""
    (batch, seqlen_q, nheads, head_dim), seqlen_k = q.shape, k.shape[1]
    shape = (batch, nheads, seqlen_q, seqlen_k)
    out = torch.zeros(batch, seqlen_q, nheads, v.shape[-1], dtype=torch.float64)
    lse = torch.full((batch, nheads, seqlen_q), -INF, dtype=torch.float64)
    left, right = window or (None, None)
    for b, h, i in itertools.product(range(batch), range(nheads), range(seqlen_q)):
        offset = seqlen_k - seqlen_q if query_offset is None else query_offset
        at = i + int(offset[b] if isinstance(offset, torch.Tensor) else offset)
        scores = {}
        for j in range(seqlen_k):
            hidden = (
                (causal and j > at)
                or (left is not None and j < at - left)
                or (right is not None and j > at + right)
                or (key_lengths is not None and j >= key_lengths[b])
                or (query_lengths is not None and i >= query_lengths[b])
                or (mask is not None and not mask.expand(shape)[b, h, i, j])
            )
            if not hidden:
                score = torch.dot(q[b, i, h], k[b, j, h // (nheads // k.shape[2])]).item()
                score *= 1 / math.sqrt(head_dim) if scale is None else scale
                score = score if softcap is None else softcap * math.tanh(score / softcap)
                scores[j] = score + added(bias, b, h, i, j, at, shape)
        if scores:
            total = sum(math.exp(score) for score in scores.values())
            total += 0.0 if sinks is None else math.exp(sinks[h].item())
            lse[b, h, i] = math.log(total)
            for j, score in scores.items():
                out[b, i, h] += math.exp(score) / total * v[b, j, h // (nheads // k.shape[2])]
    return out, lse


def pattern(*shape: int) -> torch.Tensor:
    return random(*shape, seed=9) > -0.5


# name: the words of a call with batch 2, 3 queries, 5 keys and 4 heads.
WORDS = {
    "plain": {},
    "causal": dict(causal=True),
    "window": dict(window=(2, 1)),
    "window and causal": dict(window=(1, 2), causal=True),
    "one side": dict(window=(None, 0)),
    "offset": dict(causal=True, query_offset=1),
    "offset before the keys": dict(causal=True, query_offset=-1),
    "offset by row": dict(window=(1, 1), query_offset=torch.tensor([0, 3])),
    "key lengths": dict(key_lengths=torch.tensor([4, 0])),
    "query lengths": dict(query_lengths=torch.tensor([1, 3]), key_lengths=torch.tensor([5, 2])),
    "mask": dict(mask=pattern(2, 4, 3, 5)),
    "mask of keys": dict(mask=pattern(2, 1, 1, 5)),
    "bias": dict(bias=random(2, 4, 3, 5, seed=5)),
    "bias shared": dict(bias=random(4, 1, 5, seed=5)),
    "relative": dict(bias=RelativeBias(random(8, 4, seed=6), 4)),
    "relative one way": dict(bias=RelativeBias(random(6, 4, seed=6), 5, bidirectional=False), query_offset=4),
    "alibi": dict(bias=ALiBi(random(4, seed=7).abs())),
    "alibi by row": dict(bias=ALiBi(random(2, 4, seed=7).abs()), causal=True),
    "scale": dict(scale=-0.3),
    "softcap": dict(softcap=0.7, bias=random(1, 1, 3, 5, seed=5)),
    "sinks": dict(sinks=random(4, seed=8), key_lengths=torch.tensor([4, 0])),
    "all": dict(
        window=(3, None), causal=True, mask=pattern(1, 1, 3, 5), key_lengths=torch.tensor([5, 3]), scale=0.4,
        softcap=2.0, sinks=random(4, seed=8), bias=RelativeBias(random(8, 4, seed=6), 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_it_is_the_definition(name):
    q, k, v = (t.detach() for t in qkv())
    out, lse = reference.attention(q, k, v, return_lse=True, **WORDS[name])
    expected, expected_lse = by_hand(q, k, v, **WORDS[name])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-12)


def leaves(words: dict, nheads: int) -> tuple[list[torch.Tensor], dict]:
    """The differentiable tensors among the words, and a function that puts others in their place."""
    found = []
    for name, value in words.items():
        tensor = getattr(value, "table", getattr(value, "slopes", value))
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            found.append((name, value, tensor[..., :nheads] if tensor is not value else tensor))

    def rebuild(tensors):
        new = dict(words)
        for (name, value, _), tensor in zip(found, tensors, strict=True):
            if isinstance(value, RelativeBias):
                tensor = RelativeBias(tensor, value.max_distance, value.bidirectional)
            new[name] = ALiBi(tensor) if isinstance(value, ALiBi) else tensor
        return new

    return [tensor.detach().clone().requires_grad_() for *_, tensor in found], rebuild


@pytest.mark.parametrize("name", [*WORDS, "dropout"])
def test_first_and_second_derivatives(name):
    """Of out and the lse, by every input: the lse has a gradient of its own, as merging needs it."""
    words = WORDS[name] if name != "dropout" else dict(dropout_p=0.3, seed=5)
    extra, rebuild = leaves(words, 4)

    def run(q, k, v, *tensors):
        out, lse = reference.attention(q, k, v, return_lse=True, **rebuild(tensors))
        return out, torch.where(lse.isfinite(), lse, 0.0)  # an empty row's is -inf whatever the input

    inputs = (*qkv(head_dim=2, head_dim_v=1), *extra)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_dropout_is_its_mask_and_the_same_backward():
    q, k, v = qkv()
    kept = reference.dropout_mask(5, 0.4, 2, 4, 3, 5)
    weights = reference.attention_weights(q, k)
    dropped = torch.where(kept, weights / 0.6, 0.0)
    expected = (dropped @ v.transpose(1, 2).repeat_interleave(2, 1)).transpose(1, 2)
    got = reference.attention(q, k, v, dropout_p=0.4, seed=5)
    torch.testing.assert_close(got, expected)
    pairs = zip(*(torch.autograd.grad(t.square().sum(), (q, k, v)) for t in (got, expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


def mixed(x: int) -> int:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor & 0xFFFFFFFF
    return x ^ x >> 16


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5, 2**63 - 1])
def test_dropout_is_the_hash_of_seed_and_place(seed):
    kept = reference.dropout_mask(seed, 0.5, 2, 3, 4, 5)
    assert torch.equal(kept, reference.dropout_mask(torch.tensor(seed), 0.5, 2, 3, 4, 5))  # as a traced graph has it
    for b, h, i, j in itertools.product(range(2), range(3), range(4), range(5)):
        row = mixed(mixed(mixed(seed & 0xFFFFFFFF) ^ seed >> 32 ^ b * 3 + h) ^ i)
        assert kept[b, h, i, j].item() == (mixed(row + j * 0x9E3779B9 & 0xFFFFFFFF) >= 2**31)


def test_dropout_keeps_its_rate():
    for p in (0.0, 0.1, 0.9):
        kept = reference.dropout_mask(7, p, 2, 3, 128, 130).double().mean().item()
        assert abs(kept - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / (2 * 3 * 128 * 130))


def test_causal_is_aligned_bottom_right():
    q, k, v = (t.detach() for t in qkv(head_dim_v=3))
    expected = reference.attention(q[:, -1:], k, v)
    torch.testing.assert_close(reference.attention(q, k, v, causal=True)[:, -1:], expected)
    out, lse = reference.attention(k, q[:, :, :2], q[:, :, :2], causal=True, return_lse=True)
    assert (out[:, :2] == 0).all() and torch.isneginf(lse[..., :2]).all() and lse[..., 2:].isfinite().all()


@pytest.mark.parametrize("sinks", [None, random(4)])
def test_a_row_of_minus_infinity_is_empty(sinks):
    """A mask given as a bias: the row with nothing above -inf gives 0, not 0 / 0, and no gradient."""
    q, k, v = qkv()
    bias = torch.zeros(3, 5, dtype=torch.float64)
    bias[1], bias[2, 3:] = -INF, -INF
    bias.requires_grad_()
    out, lse = reference.attention(q, k, v, bias=bias, sinks=sinks, return_lse=True)
    masked, masked_lse = reference.attention(q, k, v, mask=bias.isfinite(), sinks=sinks, return_lse=True)
    torch.testing.assert_close(out, masked)
    torch.testing.assert_close(lse, masked_lse)
    assert (out[:, 1] == 0).all() and torch.isneginf(lse[:, :, 1]).all()
    for grad in torch.autograd.grad(out.square().sum(), (q, k, v, bias)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_what_is_hidden_reaches_nothing(bad):
    """Keys past key_lengths, queries past query_lengths: nothing there may be seen, forward or backward."""
    words = dict(key_lengths=torch.tensor([5, 3]), query_lengths=torch.tensor([3, 2]), softcap=3.0)
    clean = qkv()
    dirty = [t.detach().clone() for t in clean]
    dirty[0][1, 2:], dirty[1][1, 3:], dirty[2][1, 3:] = bad, bad, bad
    dirty = [t.requires_grad_() for t in dirty]
    results = []
    for tensors in (clean, dirty):
        out, lse = reference.attention(*tensors, return_lse=True, **words)
        loss = out.square().sum() + torch.where(lse.isfinite(), lse, 0.0).sum()
        results.append((out, lse, *torch.autograd.grad(loss, tensors)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_what_is_seen_reaches_who_sees_it_as_it_is(bad):
    q, k, v = (t.detach() for t in qkv(seqlen_q=5, nheads_kv=4))
    v[0, 3, 1, 1] = bad
    v[0, 4, 1, 1] = math.nan  # another one, which query 3 does not see
    out = reference.attention(q, k, v, causal=True)
    assert torch.equal(out[0, 3, 1, 1], v[0, 3, 1, 1]) or (math.isnan(bad) and out[0, 3, 1, 1].isnan())
    assert out[0, 4, 1, 1].isnan() and (~out.isfinite()).sum() == 2


def test_a_row_that_sees_a_nan_leaves_the_keys_it_does_not_see_alone():
    """Its probabilities are NaN where it sees and 0 where it does not: the gradient of those values stays finite."""
    q, k, v = (t.detach().requires_grad_() for t in qkv(seqlen_q=5, nheads_kv=4))
    with torch.no_grad():
        k[0, 4] = math.nan
    out = reference.attention(q, k, v, window=(1, 0))
    dv = torch.autograd.grad(out.sum(), v)[0]
    assert out[:, :4].isfinite().all() and out[0, 4].isnan().all()
    assert dv[0, :3].isfinite().all() and dv[0, 3:].isnan().all()


PACKED_WORDS = {
    "causal": dict(causal=True),
    "relative": dict(bias=RelativeBias(random(8, 4, seed=6), 4)),
    "alibi by sequence": dict(bias=ALiBi(random(3, 4, seed=7).abs()), window=(1, 1)),
    "sinks and softcap": dict(sinks=random(4, seed=8), softcap=1.5),
}


def packed() -> tuple[list[torch.Tensor], dict]:
    """Three sequences, of which the second has no query; one row past the last."""
    tensors = qkv(batch=1, seqlen_q=7, seqlen_k=9, head_dim=2, head_dim_v=1)
    starts = dict(cu_seqlens_q=torch.tensor([0, 3, 3, 6]), cu_seqlens_k=torch.tensor([0, 2, 5, 9]))
    return [t.detach()[0].clone().requires_grad_() for t in tensors], starts


@pytest.mark.parametrize("name", PACKED_WORDS)
def test_packed_is_one_sequence_after_the_other(name):
    (q, k, v), starts = packed()
    words = PACKED_WORDS[name]
    out, lse = reference.attention_packed(q, k, v, return_lse=True, **starts, **words)
    assert (out[6] == 0).all() and torch.isneginf(lse[:, 6]).all()
    for b, rows, keys in ((0, slice(0, 3), slice(0, 2)), (2, slice(3, 6), slice(5, 9))):
        own = dict(words)
        if isinstance(own.get("bias"), ALiBi):
            own["bias"] = ALiBi(own["bias"].slopes[b])
        alone, alone_lse = by_hand(q[None, rows], k[None, keys], v[None, keys], **own)
        torch.testing.assert_close(out[rows], alone[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lse[:, rows], alone_lse[0], rtol=1e-12, atol=1e-12)


def test_packed_dropout_counts_the_sequences():
    """Sequence b drops what row b of a padded batch drops."""
    (q, k, v), starts = packed()
    out = reference.attention_packed(q, k, v, dropout_p=0.5, seed=3, **starts)
    padded = torch.zeros(3, 4, 4, 2), torch.zeros(3, 4, 2, 2), torch.zeros(3, 4, 2, 1)
    q3, k3, v3 = (t.double() for t in padded)
    q3[2, :3], k3[2], v3[2] = q.detach()[3:6], k.detach()[5:9], v.detach()[5:9]
    expected = reference.attention(q3, k3, v3, dropout_p=0.5, seed=3)
    torch.testing.assert_close(out[3:6].detach(), expected[2, :3])


@pytest.mark.parametrize("name", [*PACKED_WORDS, "dropout"])
def test_packed_derivatives(name):
    tensors, starts = packed()
    words = PACKED_WORDS[name] if name != "dropout" else dict(dropout_p=0.3, seed=5)
    extra, rebuild = leaves(words, 4)

    def run(q, k, v, *others):
        out, lse = reference.attention_packed(q, k, v, return_lse=True, **starts, **rebuild(others))
        return out, torch.where(lse.isfinite(), lse, 0.0)

    assert torch.autograd.gradcheck(run, (*tensors, *extra), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (*tensors, *extra), fast_mode=True)


def halves(q, k, v):
    """Keys 0 to 1 and 2 to 4 of a causal call: the first query sees nothing of the second part."""
    parts = []
    for first, last in ((0, 2), (2, 5)):
        words = dict(causal=True, query_offset=1 - first, return_lse=True)
        parts.append(reference.attention(q, k[:, first:last], v[:, first:last], **words))
    return reference.merge_attention(*zip(*parts, strict=True))


def test_merging_parts_gives_the_whole():
    q, k, v = qkv()
    whole, lse = reference.attention(q, k, v, causal=True, query_offset=1, return_lse=True)
    merged, merged_lse = halves(q, k, v)
    torch.testing.assert_close(merged, whole)
    torch.testing.assert_close(merged_lse, lse)


def test_merging_nothing_gives_nothing():
    out, lse = torch.zeros(1, 2, 3, 4), torch.full((1, 3, 2), -INF)
    merged, merged_lse = reference.merge_attention([out, out], [lse, lse])
    assert (merged == 0).all() and torch.isneginf(merged_lse).all()


def test_merge_derivatives():
    inputs = qkv(head_dim=2, head_dim_v=1)
    assert torch.autograd.gradcheck(halves, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(halves, inputs, fast_mode=True)
    outs = [random(1, 2, 2, 2, seed=n).requires_grad_() for n in range(2)]
    lses = [random(1, 2, 2, seed=n + 2).requires_grad_() for n in range(2)]
    run = lambda a, b, c, d: reference.merge_attention((a, b), (c, d))  # noqa: E731
    assert torch.autograd.gradcheck(run, (*outs, *lses))
    assert torch.autograd.gradgradcheck(run, (*outs, *lses))
