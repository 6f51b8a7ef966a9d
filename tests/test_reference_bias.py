"""T5's bucket rule, in the reference and in the kernels, and ALiBi."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from undivided import ALiBi, reference
from undivided.reference.attention import additive_bias
from undivided.reference.mask import positions

# (num_buckets, max_distance): T5's own, then other sizes, odd ones, and distances that are no power of two.
SETTINGS = [
    (32, 128),
    (8, 16),
    (16, 64),
    (64, 256),
    (24, 100),
    (7, 20),
    (33, 81),
    (128, 512),
    (4, 3),
    (256, 300),
    (48, 81),
]


def published(distance: int, num_buckets: int, max_distance: int, bidirectional: bool) -> int:
    """The rule of the T5 paper's code on Python numbers; distance is key position minus query position."""
    first, n = 0, -distance
    if bidirectional:
        num_buckets //= 2
        if n < 0:
            first += num_buckets
        n = abs(n)
    else:
        n = max(n, 0)
    exact = num_buckets // 2
    if n < exact:
        return first + n
    large = exact + int(math.log(n / exact) / math.log(max_distance / exact) * (num_buckets - exact))
    return first + min(large, num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), SETTINGS)
def test_buckets_are_those_of_the_published_rule(num_buckets, max_distance, bidirectional):
    distances = range(-300, 301)
    expected = [published(d, num_buckets, max_distance, bidirectional) for d in distances]
    got = reference.relative_buckets(torch.tensor(distances), num_buckets, max_distance, bidirectional)
    assert got.tolist() == expected
    assert got.dtype == torch.int64 and set(expected) <= set(range(num_buckets))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), SETTINGS)
def test_the_kernels_have_the_same_buckets(num_buckets, max_distance, bidirectional):
    plan = pytest.importorskip("undivided.kernels.attention.plan", reason="Triton is not installed")
    expected = reference.relative_buckets(torch.arange(-300, 301), num_buckets, max_distance, bidirectional)
    assert torch.equal(plan.relative_buckets(300, num_buckets, max_distance, bidirectional), expected)


# T5, MPNet and LayoutLM have 32 buckets up to 128 or 64 up to 256, WavLM 320 up to 800. One of the others makes no
# sense: of 128 buckets in one direction 64 hold a distance each, and none is left for the logarithm up to 64.
PUBLISHED_MODELS = [
    (num_buckets, max_distance, bidirectional)
    for num_buckets, max_distance in [*itertools.product((16, 32, 64, 128), (64, 128, 256, 512)), (320, 800)]
    for bidirectional in (True, False)
    if (num_buckets, max_distance, bidirectional) != (128, 64, False)
]


@pytest.mark.parametrize(("num_buckets", "max_distance", "bidirectional"), PUBLISHED_MODELS)
def test_buckets_are_those_of_transformers(num_buckets, max_distance, bidirectional):
    """Which takes the logarithm in float32: a boundary may not fall to the other side for any model in use."""
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="transformers is not installed")
    distance = torch.arange(-4096, 4097)
    expected = t5.T5Attention._relative_position_bucket(distance, bidirectional, num_buckets, max_distance)
    got = reference.relative_buckets(distance, num_buckets, max_distance, bidirectional)
    assert torch.equal(got, expected)
    assert len(got.unique()) > num_buckets // 2


def test_t5_buckets_by_hand():
    distance = torch.tensor([-200, -128, -16, -8, -1, 0, 1, 7, 8, 11, 12, 127, 128])
    expected = [15, 15, 10, 8, 1, 0, 17, 23, 24, 24, 25, 31, 31]
    assert reference.relative_buckets(distance, 32, 128, True).tolist() == expected


def test_alibi_is_the_distance_times_the_slope():
    i, j = positions(2, 3, None, torch.device("cpu"))
    bias = additive_bias(ALiBi(torch.tensor([0.5, 2.0])), i, j, torch.float64)
    steep = torch.tensor([[1.0, 0.0, 1.0], [2.0, 1.0, 0.0]], dtype=torch.float64)
    assert torch.equal(bias[0], torch.stack([-0.5 * steep, -2.0 * steep]))
