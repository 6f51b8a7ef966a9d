"""Dropout of an accelerated model: what it drops, what it keeps, and where torch's own runs."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch

import undivided
from huggingface_pairs import BY_NAME
from undivided.integrations.hf_dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_that_is_dropped(p, dtype):
    """Within five standard deviations, in each of the four places of a random word; an odd size has a part of one."""
    torch.manual_seed(0)
    x = torch.ones(401, 499, dtype=dtype)
    y = dropout(x, p, True)
    kept = y != 0
    assert y[kept].unique().tolist() == [float(torch.tensor(2**16 / (2**16 - round(p * 2**16)), dtype=dtype))]
    for place in range(4):
        part = kept.flatten()[place::4].double()
        assert abs(float(part.mean()) - (1 - p)) < 5 * (p * (1 - p) / part.numel()) ** 0.5


def test_neighbours_are_dropped_independently():
    """Elements that one word decides on, and words that follow one another."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.5, True) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):
        assert abs(float((kept[:-distance] * kept[distance:]).mean())) < 5 * 0.25 / 400_000**0.5


def test_the_gradient_is_dropped_alike():
    torch.manual_seed(0)
    x = torch.randn(331, 71, requires_grad=True)
    y = dropout(x, 0.3, True)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 1 / (1 - round(0.3 * 2**16) / 2**16)))
    assert 0 < int((y == 0).sum()) < y.numel()


def test_the_seed_decides():
    x, found = torch.ones(20_000), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(dropout(x, 0.2, True))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_few_elements_are_left_to_torch():
    x, found = torch.ones(100, 100), []
    for function in (dropout, torch.nn.functional.dropout):
        torch.manual_seed(0)
        found.append(function(x, 0.3, True))
    assert torch.equal(*found)


def test_what_drops_nothing_or_all():
    x = torch.randn(9)
    assert torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(dropout(x, 0.0, True), x)
    assert torch.equal(dropout(x, 1.0, True), torch.zeros(9))
    with pytest.raises(ValueError, match="between 0 and 1, but got -0.5"):
        dropout(x, -0.5, True)


def test_a_model_drops_with_it_until_it_is_restored(monkeypatch):
    calls = []
    monkeypatch.setattr("undivided.integrations.hf_dropout.dropout", lambda x, p, training: calls.append(p) or x)
    model = BY_NAME["t5"].build("eager").train()
    undivided.accelerate(model)
    model.encoder.dropout(torch.ones(3))
    model.encoder.dropout.inplace = True
    model.encoder.dropout(torch.ones(3))  # in place is torch's own
    undivided.restore(model)
    model.encoder.dropout(torch.ones(3))
    assert calls == [0.0]
