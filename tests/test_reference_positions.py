"""Rotary, sinusoidal and learned positions: their definition and their derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from undivided import reference, rotary
from undivided.nn import Learned


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("d_model", [6, 7, 1])
def test_sinusoidal_by_hand(d_model):
    table = reference.sinusoidal(40, d_model)
    for position in (0, 1, 39):
        for column in range(d_model):
            angle = position / 10000 ** (column // 2 * 2 / d_model)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert table[position, column].item() == pytest.approx(expected, abs=2**-24)
    assert table.shape == (40, d_model) and table.dtype == torch.float32


def test_rotary_tables_by_hand():
    cos, sin = reference.rotary_tables(5, 6, base=100.0)
    for position in range(5):
        for i in range(3):
            angle = position / 100.0 ** (2 * i / 6)
            assert cos[position, i].item() == pytest.approx(math.cos(angle), abs=2**-24)
            assert sin[position, i].item() == pytest.approx(math.sin(angle), abs=2**-24)


@pytest.mark.parametrize("positions", [None, torch.tensor([4, 0, 4]), torch.tensor([[1, 2, 3], [0, 7, 5]])])
def test_rotary_is_a_complex_turn(positions):
    """(x[i], x[i + head_dim / 2]) is a complex number, multiplied by exp(i angle)."""
    x, angle = random(2, 3, 4, 6), random(8, 3, seed=1)
    at = torch.arange(3) if positions is None else positions
    turn = torch.polar(torch.ones_like(angle), angle)[at].unsqueeze(-2)
    turned = torch.complex(x[..., :3], x[..., 3:]) * turn
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(reference.rotary(x, angle.cos(), angle.sin(), positions), expected)
    torch.testing.assert_close(rotary(x, angle.cos(), angle.sin(), positions), expected)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = random(1, 1, 1, 8).expand(1, 12, 1, 8), random(1, 1, 1, 8, seed=1).expand(1, 12, 1, 8)
    frequency = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angle = torch.arange(12, dtype=torch.float64)[:, None] * frequency
    q, k = (reference.rotary(t, angle.cos(), angle.sin())[0, :, 0] for t in (q, k))
    scores = q @ k.T
    for distance in range(-5, 6):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert abs(scores[0, 0] - scores[0, 1]) > 1e-3


@pytest.mark.parametrize("positions", [None, torch.tensor([[1, 0, 3], [2, 2, 1]])])
def test_rotary_derivatives(positions):
    x, cos, sin = random(2, 3, 2, 4), random(4, 2, seed=1), random(4, 2, seed=2)
    run = lambda *tensors: reference.rotary(*tensors, positions)  # noqa: E731
    leaves = tuple(t.requires_grad_() for t in (x, cos, sin))
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_of_16_bits_is_computed_in_float32(dtype):
    x, (cos, sin) = random(1, 9, 2, 8).to(dtype), reference.rotary_tables(9, 8)
    got = reference.rotary(x, cos, sin)
    assert got.dtype == dtype and torch.equal(got, reference.rotary(x.float(), cos, sin).to(dtype))


def test_learned_positions_add_their_rows():
    learned = Learned(3, longest=6).double()
    x = random(2, 4, 3)
    assert torch.equal(learned.add(x, start=2), x + learned.table[2:6])
    # gradcheck moves its inputs in place, so the parameter itself is what it varies
    leaves = (x.requires_grad_(), learned.table)
    assert torch.autograd.gradcheck(lambda x, _: learned.add(x, start=1), leaves)
    assert torch.autograd.gradgradcheck(lambda x, _: learned.add(x, start=1), leaves)
