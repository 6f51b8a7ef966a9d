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


@pytest.mark.parametrize("rows", [[2, 0, 2], [1, 2, 0], [1], [0, 0, 2, 1]])
def test_rows_are_selected_and_heads_lie_one_after_the_other(rows):
    """On a CPU, where a head's keys are read from end to end, also after a search has gone on with some rows. As many
    rows as before stay where they are in memory."""
    cache, both = filled(5, 3, 1)
    before = cache.keys.data_ptr(), cache.values.data_ptr(), cache.lengths.data_ptr()
    cache.select(torch.tensor(rows))
    for got, expected in zip(cache.all(), both, strict=True):
        assert torch.equal(got, expected[rows])
    assert cache.lengths.tolist() == [4] * len(rows)
    for buffer in (cache.keys, cache.values):
        assert buffer.shape == (len(rows), 5, 2, 4) and buffer.transpose(1, 2).is_contiguous()
    after = cache.keys.data_ptr(), cache.values.data_ptr(), cache.lengths.data_ptr()
    assert (after == before) == (len(rows) == 3)


def test_a_full_cache_says_what_it_holds():
    cache, _ = filled(4, 3)
    with pytest.raises(ValueError, match="holds 4 tokens, 5 were given"):
        cache.append(*torch.randn(2, 3, 2, 2, 4))
