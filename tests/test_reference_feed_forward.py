"""The reference's feed-forward network against torch's own functions, and its derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from undivided import reference

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def inputs(gated: bool, biases: bool, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shapes = dict(x=(2, 3), w_in=(4, 3), b_in=(4,), w_out=(3, 4), b_out=(3,), w_gate=(4, 3))
    made = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    absent = (() if gated else ("w_gate",)) + (() if biases else ("b_in", "b_out"))
    return {name: None if name in absent else value.to(dtype) for name, value in made.items()}


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_torchs_linear_activation_linear(activation, gated, biases):
    values = inputs(gated, biases)
    hidden = ACTIVATIONS[activation](F.linear(values["x"], values["w_in"], values["b_in"]))
    if gated:
        hidden = hidden * F.linear(values["x"], values["w_gate"])
    expected = F.linear(hidden, values["w_out"], values["b_out"])
    torch.testing.assert_close(
        reference.feed_forward(**values, activation=activation), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_and_second_derivatives(activation, gated):
    values = inputs(gated, True)
    before = F.linear(values["x"], values["w_in"], values["b_in"])
    assert before.abs().min() > 1e-3  # relu has no derivative at 0, and gradcheck steps by 1e-6
    names = [name for name, value in values.items() if value is not None]

    def run(*tensors):
        return reference.feed_forward(**{**values, **dict(zip(names, tensors, strict=True))}, activation=activation)

    leaves = tuple(values[name].requires_grad_() for name in names)
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_input_is_computed_in_float32(dtype):
    values = inputs(True, True, dtype)
    wide = {name: value.float() for name, value in values.items()}
    got = reference.feed_forward(**values, activation="silu")
    assert got.dtype == dtype and torch.equal(got, reference.feed_forward(**wide, activation="silu").to(dtype))


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="activation='tanh' is unknown; allowed: relu, gelu, gelu_tanh, silu"):
        reference.feed_forward(**inputs(False, True), activation="tanh")
