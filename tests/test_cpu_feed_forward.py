"""The feed-forward network in C++: every variant, dtype and case against float64, and what infinities do."""

from __future__ import annotations

import pytest
import torch

from undivided import feed_forward, products
from undivided.testing import FEED_FORWARD_CASES, compare, poison

_C = pytest.importorskip("undivided._C", reason="the compiled extension is not built")

from undivided.cpu import feed_forward as launchers  # noqa: E402
from undivided.cpu.feed_forward import feed_forward_backward, feed_forward_forward  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FEED_FORWARD_CASES, ids=lambda case: case.name)
def test_agrees_with_the_reference(case, dtype, variant):
    with poison():
        verdicts = compare.feed_forward(case, dtype, "cpu")
    assert not [verdict for verdict in verdicts if not verdict.ok]


@pytest.mark.parametrize("case", FEED_FORWARD_CASES, ids=lambda case: case.name)
def test_on_a_processor_that_is_slow_in_bfloat16(case, monkeypatch):
    reached = []

    def counted(rows, columns):
        reached.append(rows)
        return [slice(0, 5), slice(5, rows)][: 1 + rows]  # in two parts, as large ones are

    monkeypatch.setattr(products, "_processor", lambda: products.Processor(fast_bfloat16=False))
    monkeypatch.setattr(products, "WORTH_WIDENING", 0.1)
    monkeypatch.setattr(launchers, "_parts", counted)
    with poison():
        verdicts = compare.feed_forward(case, torch.bfloat16, "cpu")
    assert not [verdict for verdict in verdicts if not verdict.ok]
    assert len(reached) >= 2 or case.rows == 0  # forward and backward


@pytest.mark.skipif(not products.ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.parametrize("case", FEED_FORWARD_CASES, ids=lambda case: case.name)
def test_by_onednn(case, monkeypatch):
    taken = []
    by_onednn = products._by_onednn
    monkeypatch.setattr(products, "_by_onednn", lambda x, *rest: taken.append(x.shape) or by_onednn(x, *rest))
    monkeypatch.setattr(products, "_processor", lambda: products.Processor(is_intel=False, halves_mkl=True))
    monkeypatch.setattr(products, "HALF_RATE", (1, 1))
    with poison():
        verdicts = compare.feed_forward(case, torch.float32, "cpu")
    assert not [verdict for verdict in verdicts if not verdict.ok]
    assert len(taken) >= 6 or case.rows <= products.FEW  # two products, and two gradients of each


def test_autocast_does_not_reach_what_was_widened(monkeypatch):
    monkeypatch.setattr(products, "_processor", lambda: products.Processor(fast_bfloat16=False))
    monkeypatch.setattr(products, "WORTH_WIDENING", 0.1)
    draw = torch.Generator().manual_seed(0)
    x, w_in, w_out = (torch.randn(*shape, generator=draw).bfloat16() for shape in [(20, 32), (48, 32), (32, 48)])
    given = [value.requires_grad_() for value in (x, w_in, w_out)]
    found = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = feed_forward(x, w_in, None, w_out, backend="cpu")
            found.append((out, *torch.autograd.grad(out.float().sum(), given)))
    for plain, cast in zip(*found, strict=True):
        assert torch.equal(plain, cast)


def test_parts_of_a_large_one():
    limit = products.MOST_WIDENED
    assert list(launchers._parts(3, 7)) == [slice(0, limit // 7)]
    assert [(part.start, part.stop) for part in launchers._parts(2049, 4096)] == [(0, 1024), (1024, 2048), (2048, 3072)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_over_its_whole_range(activation, variant):
    """With one column and weights of 1 the network is the activation, and its input gradient the slope."""
    u = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -89.0, -30.0, 0.0, 1e-30, 30.0, 89.0, 1e4])])
    wide = u.double().requires_grad_()
    expected = ACTIVATIONS[activation](wide)
    (expected_slope,) = torch.autograd.grad(expected.sum(), wide)
    out, slope = value_and_slope(u, activation)
    unit = 2**-24
    assert ((out - expected).abs() <= 2.5 * unit * u.abs().clamp(min=1.0)).all()
    assert ((slope - expected_slope).abs() <= 8 * unit).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_bfloat16_is_rounded_once(activation, variant):
    """What its shorter polynomials and reciprocal leave of an error is under a twentieth of a rounding."""
    u = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -89.0, -30.0, 0.0, 1e-30, 30.0, 89.0, 1e4])])
    u = u.bfloat16()
    wide = u.double().requires_grad_()
    expected = ACTIVATIONS[activation](wide)
    (expected_slope,) = torch.autograd.grad(expected.sum(), wide)
    out, slope = value_and_slope(u, activation)
    assert ((out.double() - expected).abs() <= 1.05 * 2**-8 * expected.abs() + 1e-14).all()
    assert ((slope.double() - expected_slope).abs() <= 2**-8 * expected_slope.abs() + 2e-4).all()


def value_and_slope(u: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    one, only_x = torch.ones(1, 1, dtype=u.dtype), (True, *(False,) * 5)
    out, h, _ = feed_forward_forward(u[:, None], one, None, one, None, activation, None, save=True)
    ones = torch.ones(len(u), 1, dtype=u.dtype)
    grads = feed_forward_backward(ones, u[:, None], h, None, one, one, None, activation, only_x)
    return out[:, 0], grads[0][:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity(activation, dtype, variant):
    nan, inf = float("nan"), float("inf")
    out, slope = value_and_slope(torch.tensor([nan, inf], dtype=dtype), activation)
    assert out[0].isnan() and slope[0].isnan() and out[1] == inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_any_number_of_threads(dtype):
    generator = torch.Generator().manual_seed(0)
    h, g = (torch.randn(300, 1000, generator=generator).to(dtype) for _ in range(2))
    before, results = torch.get_num_threads(), []
    needs = (False, False, True, False, False, False)
    w = torch.zeros(1000, 1, dtype=dtype)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            dout = torch.ones(300, 1, dtype=dtype)
            w_out = torch.randn(1, 1000, generator=torch.Generator().manual_seed(1)).to(dtype)
            x = torch.zeros(300, 1, dtype=dtype)
            results.append(feed_forward_backward(dout, x, h, g, w, w_out, w, "gelu", needs)[2])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_inference_keeps_nothing():
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    out, h, g = feed_forward_forward(x, w, None, w, None, "silu", w, save=False)
    assert h is None and g is None and out.shape == (4, 8)
