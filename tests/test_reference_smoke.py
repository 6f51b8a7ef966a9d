"""The reference against torch's own attention, and its derivatives."""

import pytest
import torch
import torch.nn.functional as F

from undivided import ALiBi, RelativeBias, reference


def qkv(batch=2, seqlen_q=3, seqlen_k=5, nheads=4, nheads_kv=2, head_dim=3, **kwargs):
    torch.manual_seed(0)
    options = dict(dtype=torch.float64, requires_grad=True, **kwargs)
    q = torch.randn(batch, seqlen_q, nheads, head_dim, **options)
    k, v = (torch.randn(batch, seqlen_k, nheads_kv, head_dim, **options) for _ in range(2))
    return q, k, v


def test_agrees_with_torch():
    q, k, v = qkv()
    mask = torch.rand(2, 1, 3, 5) > 0.3
    mask[..., 0] = True
    theirs = F.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(reference.attention(q, k, v, mask=mask), theirs)


def test_causal_is_aligned_bottom_right():
    q, k, v = qkv(nheads_kv=4)
    expected = reference.attention(q[:, -1:], k, v)
    torch.testing.assert_close(reference.attention(q, k, v, causal=True)[:, -1:], expected)
    out, lse = reference.attention(k, q, q, causal=True, return_lse=True)
    assert (out[:, :2] == 0).all() and torch.isneginf(lse[..., :2]).all()


@pytest.mark.parametrize("words", [{}, {"causal": True}, {"softcap": 2.0}, {"dropout_p": 0.3, "seed": 5}])
def test_derivatives(words):
    q, k, v = qkv(batch=1, nheads=2, nheads_kv=1)
    table = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4])

    def run(q, k, v, table, sinks):
        bias = RelativeBias(table, 6)
        return reference.attention(q, k, v, bias=bias, sinks=sinks, key_lengths=lengths, **words)

    assert torch.autograd.gradcheck(run, (q, k, v, table, sinks))
    assert torch.autograd.gradgradcheck(run, (q, k, v, table, sinks))


def test_nan_in_a_hidden_key_reaches_nothing():
    q, k, v = qkv()
    lengths = torch.tensor([5, 3])
    clean = reference.attention(q, k, v, key_lengths=lengths, softcap=3.0)
    dirty = [t.detach().clone() for t in (k, v)]
    for t in dirty:
        t[1, 3:] = torch.nan
        t.requires_grad_()
    out = reference.attention(q, *dirty, key_lengths=lengths, softcap=3.0)
    torch.testing.assert_close(out, clean)
    for grad in torch.autograd.grad(out.sum(), (q, *dirty)):
        assert grad.isfinite().all()


def test_nan_in_a_seen_value_reaches_only_who_sees_it():
    q, k, v = qkv(seqlen_q=5, nheads_kv=4)
    v = v.detach().clone()
    v[0, 3, 1, 2] = torch.nan
    bad = reference.attention(q, k, v, causal=True).isnan()
    assert bad[0, 3:, 1, 2].all() and bad.sum() == 2


def test_packed_equals_one_by_one():
    q, k, v = qkv(batch=1, seqlen_q=7, seqlen_k=9)
    starts_q, starts_k = torch.tensor([0, 3, 3, 6]), torch.tensor([0, 2, 5, 9])
    words = dict(causal=True, bias=ALiBi(torch.rand(4)))
    out, lse = reference.attention_packed(
        q[0], k[0], v[0], cu_seqlens_q=starts_q, cu_seqlens_k=starts_k, return_lse=True, **words
    )
    last = reference.attention(q[:, 3:6], k[:, 5:9], v[:, 5:9], **words)
    torch.testing.assert_close(out[3:6], last[0])
    assert (out[6] == 0).all() and torch.isneginf(lse[:, 6]).all()


def test_merging_halves_gives_the_whole():
    q, k, v = qkv()
    whole, lse = reference.attention(q, k, v, return_lse=True)
    parts = [reference.attention(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in ((0, 2), (2, 5))]
    merged, merged_lse = reference.merge_attention(*zip(*parts, strict=True))
    torch.testing.assert_close(merged, whole)
    torch.testing.assert_close(merged_lse, lse)


def test_t5_buckets_by_hand():
    distance = torch.tensor([-200, -128, -16, -8, -1, 0, 1, 7, 8, 11, 12, 127, 128])
    expected = [15, 15, 10, 8, 1, 0, 17, 23, 24, 24, 25, 31, 31]
    assert reference.relative_buckets(distance, 32, 128, True).tolist() == expected


def test_dropout_keeps_its_rate_and_its_seed():
    kept = reference.dropout_mask(7, 0.2, 2, 3, 64, 65)
    assert abs(kept.float().mean().item() - 0.8) < 0.01
    assert torch.equal(kept, reference.dropout_mask(7, 0.2, 2, 3, 64, 65))
    assert not torch.equal(kept, reference.dropout_mask(8, 0.2, 2, 3, 64, 65))
    assert not torch.equal(kept[0], kept[1])
