"""The public feed-forward network, forward, on every backend that runs here: layouts, sizes and modes."""

from __future__ import annotations

import pytest
import torch

import undivided
from rows import DEVICE, LOW, backends, random, run
from undivided.ops.feed_forward_table import FEED_FORWARD

BACKENDS = backends(FEED_FORWARD)


def inputs(gated: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    shapes = dict(x=(2, 5, 16), w_in=(24, 16), b_in=(24,), w_out=(16, 24), b_out=(16,))
    shapes |= dict(w_gate=(24, 16)) if gated else {}
    return {name: random(*shape, seed=n, dtype=dtype) * 0.5 for n, (name, shape) in enumerate(shapes.items())}


def moved(t: torch.Tensor) -> torch.Tensor:
    """The same numbers at other strides: transposed, or every second of a vector."""
    if t.dim() > 1:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    return torch.stack([t, t * 7], -1)[:, 0]


@pytest.mark.parametrize("name", inputs())
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend, name):
    """Not to the bit: a matrix library may sum a transposed operand in another order."""
    values = inputs()
    other = {**values, name: moved(values[name])}
    assert other[name].stride() != values[name].stride()
    got, expected = (run(undivided.feed_forward, backend=backend, **v) for v in (other, values))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs(backend, dim):
    values = inputs(gated=False)
    x = values.pop("x").narrow(dim, 0, 1).expand(2, 5, 16)
    got, expected = (run(undivided.feed_forward, t, backend=backend, **values) for t in (x, x.contiguous()))
    torch.testing.assert_close(got, expected)  # the library may sum in another order for other strides


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_number_of_dimensions(backend):
    values = inputs()
    x = values.pop("x")
    whole = run(undivided.feed_forward, x, backend=backend, **values)
    torch.testing.assert_close(run(undivided.feed_forward, x[1, 2], backend=backend, **values), whole[1, 2])
    for shape in ((0, 16), (3, 0, 16)):
        assert run(undivided.feed_forward, random(*shape), backend=backend, **values).shape == shape


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_as_torchs_linear(backend, dtype):
    leaves = {name: value.requires_grad_() for name, value in inputs().items()}
    with torch.autocast(DEVICE.type, dtype):
        out = run(undivided.feed_forward, backend=backend, **leaves)
        mixed = run(undivided.feed_forward, backend=backend, **{**leaves, "x": leaves["x"].to(dtype)})
        wide = {name: value.double() for name, value in leaves.items()}
        assert run(undivided.feed_forward, backend="reference", **wide).dtype == torch.float64
    expected = run(undivided.feed_forward, backend=backend, **{name: t.to(dtype) for name, t in leaves.items()})
    assert out.dtype == dtype and torch.equal(out, expected) and torch.equal(mixed, expected)
    grads = torch.autograd.grad(out.float().square().sum(), list(leaves.values()))
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


def test_float64_runs_and_the_kernels_say_no():
    values = inputs(dtype=torch.float64)
    out = undivided.feed_forward(**values)
    assert out.dtype == torch.float64 and torch.equal(out, undivided.reference.feed_forward(**values))
    for backend in ("triton", "cpu"):
        with pytest.raises(undivided.BackendRefused, match="dtype float64 is not one of float32, bfloat16, float16"):
            undivided.feed_forward(**values, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode_gives_the_same_bits(backend):
    leaves = {name: value.requires_grad_() for name, value in inputs().items()}
    expected = run(undivided.feed_forward, backend=backend, **leaves)
    with torch.inference_mode():
        out = run(undivided.feed_forward, backend=backend, **leaves)
    assert out.is_inference() and expected.requires_grad
    torch.testing.assert_close(out, expected)


def test_two_runs_agree_to_the_bit():
    values = inputs(dtype=torch.bfloat16)
    values["x"] = random(300, 16, dtype=torch.bfloat16)
    assert torch.equal(*(undivided.feed_forward(**values) for _ in range(2)))
