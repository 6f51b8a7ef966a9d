"""The reference's layer norm and RMS norm against torch's, their statistics and their derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from undivided import reference

PARTS = {"all": (1, 1, 1), "no residual": (1, 1, 0), "no bias": (1, 0, 1), "no weight": (0, 0, 1), "plain": (0, 0, 0)}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(name: str) -> dict[str, torch.Tensor]:
    weight, bias, residual = PARTS[name]
    made = {"x": random(2, 3, 5) * 2 + 0.5}
    made |= {"weight": random(5, seed=1)} if weight else {}
    made |= {"bias": random(5, seed=2)} if bias else {}
    made |= {"residual": random(2, 3, 5, seed=3)} if residual else {}
    return made


def call(op: str, values: dict[str, torch.Tensor], eps: float = 1e-3):
    words = {name: value for name, value in values.items() if op == "layer_norm" or name != "bias"}
    result = getattr(reference, op)(**words, eps=eps)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("name", PARTS)
def test_it_is_torchs_norm_of_the_sum(op, name):
    values = inputs(name)
    summed = values["x"] + values.get("residual", 0.0)
    if op == "layer_norm":
        expected = F.layer_norm(summed, (5,), values.get("weight"), values.get("bias"), 1e-3)
    else:
        expected = F.rms_norm(summed, (5,), values.get("weight"), 1e-3)
    got = call(op, values)
    torch.testing.assert_close(got[0], expected, rtol=1e-12, atol=1e-12)
    assert len(got) == 1 + ("residual" in values) and torch.equal(got[-1], summed if len(got) == 2 else got[0])


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("name", PARTS)
def test_first_and_second_derivatives(op, name):
    values = inputs(name)
    if op == "rms_norm":
        values.pop("bias", None)
    names = list(values)
    run = lambda *tensors: call(op, dict(zip(names, tensors, strict=True)))  # noqa: E731
    leaves = tuple(value.requires_grad_() for value in values.values())
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_statistics_of_16_bit_input_are_float32(op, dtype):
    """The result is the float32 norm of the same numbers, rounded once; float32 weights are used as they are."""
    x = random(4, 300).to(dtype)
    weight = random(300, seed=1).float()
    got = getattr(reference, op)(x, weight)
    assert got.dtype == dtype and torch.equal(got, getattr(reference, op)(x.float(), weight).to(dtype))


def test_a_constant_row_gives_its_bias():
    bias = random(6, seed=2)
    got = reference.layer_norm(torch.full((2, 6), 3.0, dtype=torch.float64), random(6), bias)
    assert torch.equal(got, bias.expand(2, 6))
