"""attention_decode refuses what it cannot do, before anything is written."""

from __future__ import annotations

import pytest
import torch

import undivided
from decode_rows import drawn, ints
from kernel_backend import needs_cpu
from rows import DEVICE, random
from undivided import ALiBi, RelativeBias


def call(**changes):
    """A paged call with new tokens, with changes by the name of an argument."""
    values = dict(
        q=random(2, 1, 4, 16),
        k_cache=random(6, 8, 2, 16),
        v_cache=random(6, 8, 2, 16),
        cache_lengths=ints(3, 20),
        k=random(2, 1, 2, 16),
        v=random(2, 1, 2, 16),
        block_table=torch.stack([ints(0, -1, -1), ints(1, 5, 2)]),
    )
    return undivided.attention_decode(**{**values, **changes})


def contiguous(**changes):
    return call(**{**dict(k_cache=random(2, 24, 2, 16), v_cache=random(2, 24, 2, 16), block_table=None), **changes})


def odd(**changes):
    caches = dict(k_cache=random(2, 24, 2, 7), v_cache=random(2, 24, 2, 7), block_table=None, k=None, v=None)
    return call(q=random(2, 1, 4, 7), **caches, **changes)


@pytest.mark.parametrize(
    ("make", "changes", "error", "text"),
    [
        (call, dict(q=3), TypeError, "q must be a tensor, got int"),
        (call, dict(q=random(2, 4, 16)), ValueError, r"q has 3 dimensions \(2, 4, 16\), expected 4: \(batch, seqlen_q"),
        (call, dict(k_cache=random(6, 8, 32)), ValueError, r"k_cache has 3 dimensions .* expected 4: \(num_blocks"),
        (contiguous, dict(v_cache=random(2, 24, 32)), ValueError, r"expected 4: \(batch, longest, nheads_kv"),
        (call, dict(v_cache=random(6, 8, 2, 16).double()), TypeError, "v_cache has dtype torch.float64, q has"),
        (call, dict(q=random(2, 1, 4, 16).int()), TypeError, "q has dtype torch.int32; allowed: float32"),
        (contiguous, dict(k_cache=random(2, 16, 2, 24).mT), ValueError, "k_cache has stride 24 along head_dim"),
        (call, dict(v_cache=random(6, 9, 2, 16)), ValueError, r"k_cache \(6, 8, 2, 16\) and v_cache \(6, 9, 2, 16\)"),
        (call, dict(q=random(2, 1, 4, 8)), ValueError, "head_dim differs: q 8, k_cache 16"),
        (call, dict(v_cache=random(6, 8, 2, 0)), ValueError, "head_dim 16 and head_dim_v 0 must be at least 1"),
        (call, dict(q=random(2, 1, 3, 16)), ValueError, "nheads 3 is not a multiple of nheads_kv 2"),
        (call, dict(block_table=None), ValueError, "batch differs: q 2, k_cache 6; blocks of keys need a block_table"),
        (call, dict(block_table=random(2, 3)), TypeError, "block_table has dtype torch.float32; allowed: int32"),
        (call, dict(block_table=ints(1, 2)), ValueError, r"block_table has shape \(2,\), expected \(batch, most"),
        (call, dict(block_table=ints()[None].expand(2, 0)), ValueError, r"most_blocks\) = \(2, at least 1\)"),
        (call, dict(k=None), ValueError, "k is None; k and v must be given together"),
        (call, dict(v=None), ValueError, "v is None; k and v must be given together"),
        (call, dict(k=random(2, 1, 32)), ValueError, r"k has 3 dimensions .*\(batch, seqlen_new, nheads_kv"),
        (call, dict(k=random(2, 1, 4, 16)), ValueError, r"k has shape \(2, 1, 4, 16\), expected .* = \(2, 1, 2, 16\)"),
        (call, dict(v=random(2, 2, 2, 16)), ValueError, r"v has shape \(2, 2, 2, 16\), expected .* = \(2, 1, 2, 16\)"),
        (call, dict(v=random(2, 1, 2, 16).half()), TypeError, "v has dtype torch.float16, q has torch.float32"),
        (contiguous, dict(v_cache=random(1, 24, 2, 16).expand(2, 24, 2, 16)), ValueError, "v_cache is expanded"),
        (call, dict(cache_lengths=ints(3)), ValueError, r"cache_lengths has shape \(1,\), expected .* = \(2,\)"),
        (call, dict(cache_lengths=random(2)), TypeError, "cache_lengths has dtype torch.float32; allowed: int32"),
        (call, dict(window=(1, -1)), ValueError, "window right = -1 must be from 0"),
        (call, dict(window=3), TypeError, "window = 3 must be"),
        (call, dict(causal=1), TypeError, "causal = 1 must be True or False"),
        (call, dict(return_lse=None), TypeError, "return_lse = None must be True or False"),
        (call, dict(bias=random(2, 4, 1, 24)), TypeError, "bias is a Tensor; allowed: RelativeBias, ALiBi or None"),
        (call, dict(bias=RelativeBias(random(32, 3))), ValueError, r"bias.table has shape \(32, 3\)"),
        (call, dict(bias=ALiBi(random(5))), ValueError, r"bias.slopes has shape \(5,\)"),
        (call, dict(scale="1"), TypeError, "scale = '1' must be a number"),
        (call, dict(softcap=0.0), ValueError, "softcap = 0.0 must be above 0"),
        (call, dict(sinks=random(2)), ValueError, r"sinks has shape \(2,\), expected \(nheads,\) = \(4,\)"),
        (call, dict(rotary=random(24, 8)), TypeError, r"rotary is a Tensor; allowed: the pair \(cos, sin\), or None"),
        (call, dict(rotary=(random(24, 8), None)), TypeError, "sin must be a tensor, got NoneType"),
        (call, dict(rotary=(random(24, 16), random(24, 16))), ValueError, r"cos has shape \(24, 16\), expected"),
        (call, dict(rotary=(random(24, 8), random(20, 8))), ValueError, r"sin has shape \(20, 8\), expected the"),
        (odd, dict(rotary=(random(24, 3), random(24, 3))), ValueError, "head_dim 7 must be even for rotary"),
        (call, dict(backend="fast"), ValueError, "backend='fast' is unknown"),
        (call, dict(backend="sdpa"), undivided.BackendRefused, "it has no kernel for this op; there are: triton, cpu"),
    ],
)  # fmt: skip
def test_bad_input(make, changes, error, text):
    with pytest.raises(error, match=text):
        make(**changes)


@pytest.mark.skipif(DEVICE.type != "cpu", reason="values are looked at on a CPU only")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("make", "changes", "text"),
    [
        (contiguous, dict(cache_lengths=ints(3, -1)), r"\[1\] = -1; allowed: 0 to 23: a row holds 24 tokens, 1 are"),
        (contiguous, dict(cache_lengths=ints(24, 3)), r"cache_lengths\[0\] = 24; allowed: 0 to 23"),
        (contiguous, dict(cache_lengths=ints(25, 3), k=None, v=None), r"cache_lengths\[0\] = 25; allowed: 0 to 24"),
        (call, dict(cache_lengths=ints(3, 24)), r"cache_lengths\[1\] = 24; allowed: 0 to 23"),
        (call, dict(rotary=(random(20, 8), random(20, 8))), "cos has 20 positions, a row has 21 tokens; make"),
        (call, dict(cache_lengths=ints(8, 20)), r"block_table\[0, 1\] = -1; allowed: 0 to 5"),
        (call, dict(block_table=torch.stack([ints(0, 0, 0), ints(1, 6, 2)])), r"table\[1, 1\] = 6; allowed: 0 to 5"),
    ],
)  # fmt: skip
def test_bad_values(make, changes, text, backend):
    """Before anything is written."""
    caches = [random(*((2, 24) if make is contiguous else (6, 8)), 2, 16, seed=n) for n in (7, 8)]
    before = [cache.clone() for cache in caches]
    with pytest.raises(ValueError, match=text):
        make(k_cache=caches[0], v_cache=caches[1], backend=backend, **changes)
    assert torch.equal(caches[0], before[0]) and torch.equal(caches[1], before[1])


def test_gradients_are_refused_with_the_cure():
    table = random(32, 4).requires_grad_()
    rotary = dict(rotary=(random(24, 8).requires_grad_(), random(24, 8)))
    for changes in (dict(q=random(2, 1, 4, 16).requires_grad_()), dict(bias=RelativeBias(table)), rotary):
        with pytest.raises(NotImplementedError, match="requires one; use undivided.attention for training"):
            call(**changes)
        with torch.no_grad():
            assert call(**changes).shape == (2, 1, 4, 16)


@needs_cpu
def test_transforms_are_refused():
    tensors, _ = drawn([5, 9], 20)
    step = lambda q: undivided.attention_decode(q, *tensors[1:])  # noqa: E731
    with pytest.raises(NotImplementedError, match="attention_decode: the kernels do not take part in torch.func"):
        torch.func.vmap(step)(tensors[0][None])
    with pytest.raises(NotImplementedError, match="attention_decode: the kernels have no forward-mode derivatives"):
        with torch.autograd.forward_ad.dual_level():
            step(torch.autograd.forward_ad.make_dual(tensors[0], tensors[0]))
