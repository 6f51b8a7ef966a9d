"""batch_invariant: bits that do not depend on what a row is computed with, on every instruction set."""

from __future__ import annotations

import threading

import pytest
import torch

_C = pytest.importorskip("undivided._C", reason="the compiled extension is not built")

import undivided  # noqa: E402
from undivided import ALiBi, RelativeBias, batch_invariant  # noqa: E402
from undivided.cpu import DTYPES  # noqa: E402
from undivided.cpu.linear import linear  # noqa: E402
from undivided.invariance import invariant  # noqa: E402
from undivided.products import product  # noqa: E402


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


HEADS = 4
# What may change the way of a row through the kernel: a diagonal, its window, biases by distance, a cap, sinks.
WORDS = {
    "causal": {},
    "window": {"window": (5, 0)},
    "relative": {"bias": RelativeBias(random(8, HEADS), 16, False)},
    "alibi": {"bias": ALiBi(torch.tensor([0.5, 0.25, 0.125, 0.0625]))},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": random(HEADS)},
}


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("words", WORDS)
def test_a_token_at_a_time_has_the_bits_of_the_full_pass(variant, dtype, words):
    # 70 keys are more than one tile of every variant; two heads share keys; 19 is no multiple of anything.
    batch, seqlen, head_dim = 2, 70, 19
    q = random(batch, seqlen, HEADS, head_dim, dtype=dtype)
    k, v = (random(batch, seqlen, 2, head_dim, dtype=dtype, seed=seed) for seed in (1, 2))
    caches = torch.full_like(k, torch.nan), torch.full_like(v, torch.nan)
    blocks = torch.randperm(batch * 10, generator=torch.Generator().manual_seed(3)).int().view(batch, 10)
    paged = tuple(torch.full((batch * 10, 7, 2, head_dim), torch.nan, dtype=dtype) for _ in range(2))
    with batch_invariant():
        full, lse = undivided.attention(q, k, v, causal=True, return_lse=True, **WORDS[words])
        for i in range(seqlen):
            new, lengths = slice(i, i + 1), torch.full((batch,), i, dtype=torch.int32)
            given = {"k": k[:, new], "v": v[:, new], **WORDS[words]}
            step, step_lse = undivided.attention_decode(q[:, new], *caches, lengths, return_lse=True, **given)
            assert torch.equal(step, full[:, new]) and torch.equal(step_lse, lse[..., new]), i
            step = undivided.attention_decode(q[:, new], *paged, lengths, block_table=blocks, **given)
            assert torch.equal(step, full[:, new]), i
            alone = undivided.attention(q[1:, new], k[1:, : i + 1], v[1:, : i + 1], causal=True, **WORDS[words])
            assert torch.equal(alone, full[1:, new]), i


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_sequence_has_the_same_bits_alone_padded_and_packed(variant, dtype):
    lengths = torch.tensor([1, 70, 33, 9], dtype=torch.int32)
    q, k, v = (random(4, 70, HEADS, 16, dtype=dtype, seed=seed) for seed in range(3))
    real = torch.arange(70) < lengths[:, None]
    ends = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0, dtype=torch.int32)])
    places = {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": 70, "max_seqlen_k": 70}
    with batch_invariant():
        padded = undivided.attention(q, k, v, key_lengths=lengths)
        packed = undivided.attention_packed(q[real], k[real], v[real], **places)
        for row, length in enumerate(lengths.tolist()):
            alone = undivided.attention(*(x[row : row + 1, :length] for x in (q, k, v)))
            assert torch.equal(padded[row, :length], alone[0]), length
            assert torch.equal(packed[ends[row] : ends[row + 1]], alone[0]), length


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_products_norms_and_feed_forward_of_any_number_of_rows(variant, dtype):
    x = random(100, 72, dtype=dtype)
    w_in, w_out = random(130, 72, dtype=dtype, seed=1), random(72, 130, dtype=dtype, seed=2)
    b_in, b_out = random(130, dtype=dtype, seed=3), random(72, dtype=dtype, seed=4)
    calls = {
        "product": lambda x: product(x, w_in, b_in),
        "layer_norm": lambda x: undivided.layer_norm(x, b_out, b_out),
        "rms_norm": lambda x: undivided.rms_norm(x, b_out),
        "feed_forward": lambda x: undivided.feed_forward(x, w_in, b_in, w_out, b_out, "gelu_tanh"),
    }
    with batch_invariant(), torch.no_grad():
        for name, call in calls.items():
            every = call(x)
            for rows in (1, 2, 3, 15, 16, 17, 33, 99):
                assert torch.equal(call(x[:rows]), every[:rows]), (name, rows)
                assert torch.equal(call(x[-rows:]), every[-rows:]), (name, rows)


def test_many_rows_are_right():
    x, w, b = random(50, 40, dtype=torch.float64), random(70, 40, dtype=torch.float64), random(70, dtype=torch.float64)
    out = linear(x.float(), w.float(), b.float())
    torch.testing.assert_close(out.double(), torch.addmm(b, x, w.T), rtol=0, atol=1e-4)


def test_gradients_pass():
    x, w = random(20, 32).requires_grad_(), random(32, 32, seed=1).requires_grad_()
    with batch_invariant():
        undivided.feed_forward(x, w, None, w).sum().backward()
        got = x.grad.clone(), w.grad.clone()
    x.grad = w.grad = None
    undivided.reference.feed_forward(x, w, None, w).sum().backward()
    torch.testing.assert_close(got, (x.grad, w.grad), rtol=1e-4, atol=1e-4)


def test_it_ends_with_its_block_and_belongs_to_its_thread():
    @batch_invariant()
    def inside():
        return invariant()

    found = []
    with pytest.raises(RuntimeError, match="left"), batch_invariant():
        assert invariant() and inside()
        with batch_invariant(False):
            assert not invariant() and inside() and not invariant()
        assert invariant()
        other = threading.Thread(target=lambda: found.append(invariant()))
        other.start()
        other.join()
        raise RuntimeError("left")
    assert not invariant() and found == [False] and inside() and not invariant()
