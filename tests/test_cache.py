"""The cache of decoding: what it gives back, in which rows, and how it lies in memory."""

import pytest
import torch

from undivided.nn.cache import Cache


def filled(longest, *counts):
    """A cache after steps of so many tokens, with all keys and values that went in."""
    generator = torch.Generator().manual_seed(0)
    cache, given = Cache(longest), []
    for count in counts:
        given.append([torch.randn(3, count, 2, 4, generator=generator) for _ in range(2)])
        found = cache.append(*given[-1])
    both = [torch.cat(parts, 1) for parts in zip(*given, strict=True)]
    for got, expected in zip(found, both, strict=True):
        assert torch.equal(got, expected)
    return cache, both


def test_tokens_come_back_in_their_order():
    cache, both = filled(6, 3, 1, 2)
    assert cache.lengths.tolist() == [6, 6, 6]
    for got, expected in zip(cache.all(), both, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("in_place", [False, True])
def test_rows_are_selected_and_heads_lie_one_after_the_other(in_place):
    """On a CPU, where a head's keys are read from end to end, also after a search has gone on with some rows."""
    cache, both = filled(5, 4)
    cache.select(torch.tensor([2, 0, 2]), in_place)
    for got, expected in zip(cache.all(), both, strict=True):
        assert torch.equal(got, expected[[2, 0, 2]])
    for buffer in (cache.keys, cache.values):
        assert buffer.shape == (3, 5, 2, 4) and buffer.transpose(1, 2).is_contiguous()


def test_a_full_cache_says_what_it_holds():
    cache, _ = filled(4, 3)
    with pytest.raises(ValueError, match="holds 4 tokens, 5 were given"):
        cache.append(*torch.randn(2, 3, 2, 2, 4))
