"""The public layer norm and RMS norm, forward, on every backend that runs here: layouts, sizes and modes."""

from __future__ import annotations

import pytest
import torch

import undivided
from rows import DEVICE, LOW, backends, random, run, same_numbers
from undivided.ops.norm_table import LAYER_NORM, RMS_NORM

OPS = {"layer_norm": (undivided.layer_norm, LAYER_NORM), "rms_norm": (undivided.rms_norm, RMS_NORM)}
ROWS = [(name, backend) for name, (_, table) in OPS.items() for backend in backends(table)]
every_row = pytest.mark.parametrize(("name", "backend"), ROWS)


def norm(name: str, backend: str, x, weight=None, residual=None):
    """(y, ...) as a tuple; layer norm takes a bias too wherever there is a weight."""
    words = dict(weight=weight, residual=residual)
    if name == "layer_norm" and weight is not None:
        words["bias"] = weight * 2
    result = run(OPS[name][0], x, backend=backend, **words)
    return result if isinstance(result, tuple) else (result,)


def layouts() -> dict[str, torch.Tensor]:
    wide = random(3, 5, 50)
    return {
        "transposed": random(33, 5, 3).transpose(0, 2),
        "slice": wide[:, :, 7:40],
        "rows apart": random(3, 10, 33)[:, ::2],
        "expanded rows": random(1, 5, 33).expand(3, 5, 33),
        "expanded columns": random(3, 5, 1).expand(3, 5, 33),
    }


@pytest.mark.parametrize("layout", layouts())
@every_row
def test_any_strides(name, backend, layout):
    x = layouts()[layout]
    residual, weight = layouts()["rows apart"], random(66)[::2]
    copies = [t.clone(memory_format=torch.contiguous_format) for t in (x, weight, residual)]
    got, expected = norm(name, backend, x, weight, residual), norm(name, backend, *copies)
    assert x.stride() != copies[0].stride()
    assert got[0].shape == (3, 5, 33)
    for a, b in zip(got, expected, strict=True):
        same_numbers(backend, a, b)


@every_row
def test_any_number_of_dimensions(name, backend):
    x, weight = random(2, 3, 4, 33), random(33)
    y = norm(name, backend, x, weight)[0]
    assert torch.equal(norm(name, backend, x[1, 2, 3], weight)[0], y[1, 2, 3])
    for shape in ((0, 33), (2, 0, 33), (0, 5, 33)):
        empty = norm(name, backend, random(*shape), weight, random(*shape))
        assert [t.shape for t in empty] == [shape, shape]


@pytest.mark.parametrize("dtype", LOW, ids=str)
@every_row
def test_autocast_changes_no_dtype(name, backend, dtype):
    """As torch's own norms on a CPU; statistics are float32 whatever the dtype."""
    x, weight = random(4, 33), random(33)
    for given in (x, x.to(dtype)):
        with torch.autocast(DEVICE.type, dtype):
            y = norm(name, backend, given, weight)[0]
        assert y.dtype == given.dtype and torch.equal(y, norm(name, backend, given, weight)[0])


@every_row
def test_autocast_widens_where_x_and_residual_differ(name, backend):
    """A 16-bit sublayer meets a float32 residual stream; without autocast that is an error."""
    x, residual, weight = random(4, 33), random(4, 33, seed=1), random(33)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        got = norm(name, backend, x.bfloat16(), weight, residual)
        swapped = norm(name, backend, residual, weight, x.bfloat16())
    expected = norm(name, backend, x.bfloat16().float(), weight, residual)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(swapped[1], expected[1])
    with pytest.raises(TypeError, match="residual has dtype torch.float32, x has torch.bfloat16"):
        norm(name, backend, x.bfloat16(), weight, residual)


@pytest.mark.parametrize("wide", [torch.float64, torch.float32], ids=str)
@every_row
def test_weights_wider_than_x(name, backend, wide):
    x, weight = random(4, 33, dtype=torch.bfloat16), random(33, dtype=wide)
    y = norm(name, backend, x, weight)[0]
    assert y.dtype == torch.bfloat16 and torch.equal(y, norm(name, backend, x, weight.float())[0])


@pytest.mark.parametrize("name", OPS)
def test_float64_runs_and_the_kernels_say_no(name):
    x, weight = random(4, 33, dtype=torch.float64), random(33, dtype=torch.float64)
    expected = norm(name, "reference", x, weight)[0]
    y = norm(name, "auto", x, weight)[0]
    assert y.dtype == torch.float64 and torch.equal(y, expected)
    for backend in ("triton", "cpu"):
        with pytest.raises(undivided.BackendRefused, match="dtype float64 is not one of float32, bfloat16, float16"):
            OPS[name][0](x, weight, backend=backend)


@every_row
def test_inference_mode_gives_the_same_bits(name, backend):
    x, weight = random(4, 33).requires_grad_(), random(33).requires_grad_()
    expected = norm(name, backend, x, weight, x)
    with torch.inference_mode():
        got = norm(name, backend, x, weight, x)
    assert all(a.is_inference() and b.requires_grad and torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_two_runs_agree_to_the_bit(name):
    x, weight = random(300, 257, dtype=torch.bfloat16), random(257)
    first, second = (norm(name, "auto", x, weight, x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
