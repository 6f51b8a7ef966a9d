"""Layer norm and RMS norm in C++: every variant, dtype and shape class against float64."""

from __future__ import annotations

import pytest
import torch

_C = pytest.importorskip("undivided._C", reason="the compiled extension is not built")

from undivided.cpu.layer_norm import layer_norm_backward, layer_norm_forward  # noqa: E402
from undivided.cpu.rms_norm import rms_norm_backward, rms_norm_forward  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# One row; odd widths below and above a vector; whole vectors; several blocks of the weight gradient and a last
# short one; more columns than a first-level cache holds.
SHAPES = [(1, 8), (3, 1), (5, 7), (4, 64), (7, 100), (37, 257), (131, 512), (1100, 48), (9, 12345)]
# One rounding of the output and, for gradients, the float32 arithmetic before it.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def make(shape, dtype, weight_dtype, residual):
    generator = torch.Generator().manual_seed(hash(shape) % 1000)

    def normal(*size, dtype=dtype):
        return torch.randn(*size, generator=generator).to(dtype)

    rows, columns = shape
    x, dy, dsummed = normal(rows, columns) * 2 + 0.5, normal(rows, columns), normal(rows, columns)
    weight, bias = normal(columns, dtype=weight_dtype) + 1, normal(columns, dtype=weight_dtype)
    return x, dy, dsummed, weight, bias, normal(rows, columns) if residual else None


def expected(kind, x, weight, bias, dy, dsummed, eps):
    """y and the gradients in float64; x is what is normalised."""
    x, weight, bias = (t.double().requires_grad_() for t in (x, weight, bias))
    if kind == "layer_norm":
        y = torch.nn.functional.layer_norm(x, x.shape[1:], weight, bias, eps)
    else:
        y = torch.nn.functional.rms_norm(x, x.shape[1:], weight, eps) + 0 * bias
    return y.detach(), torch.autograd.grad((y, x + 0), (x, weight, bias), (dy.double(), dsummed.double()))


def close(name, actual, wanted, rounding, scale=1e-3):
    """`scale`: the size of the terms, where they may cancel in `wanted`."""
    assert actual.shape == wanted.shape, f"{name}: {tuple(actual.shape)} instead of {tuple(wanted.shape)}"
    scale = max(wanted.abs().max().item(), scale)
    error = (actual.double() - wanted).abs().max().item()
    assert error <= 2 * rounding * scale, f"{name}: error {error:.3g}, largest value {scale:.3g}"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_forward_and_backward(kind, dtype, shape, variant):
    for weight_dtype, residual in [(dtype, False), (torch.float32, True), (torch.bfloat16, True)]:
        x, dy, dsummed, weight, bias, r = make(shape, dtype, weight_dtype, residual)
        summed = x if r is None else (x.float() + r.float()).to(dtype)
        dsummed = dsummed if residual else None
        zero = torch.zeros_like(x) if dsummed is None else dsummed
        y0, (dx0, dw0, db0) = expected(kind, summed, weight, bias, dy, zero, 1e-5)
        if kind == "layer_norm":
            y, s, mean, rstd = layer_norm_forward(x, weight, bias, r, 1e-5)
            dx, dw, db = layer_norm_backward(dy, dsummed, summed, weight, mean, rstd, True)
            close("dbias", db, db0, max(ROUNDING[weight_dtype], 2e-6))
            assert mean.dtype == torch.float32 and db.dtype == weight_dtype
        else:
            y, s, rstd = rms_norm_forward(x, weight, r, 1e-5)
            dx, dw = rms_norm_backward(dy, dsummed, summed, weight, rstd)
        assert (s is None) == (r is None) and (s is None or torch.equal(s, summed))
        assert y.dtype == dx.dtype == dtype and dw.dtype == weight_dtype and rstd.dtype == torch.float32
        close("y", y, y0, ROUNDING[dtype])
        # With one column dx is the difference of two equal terms.
        terms = (dy.double() * weight.double()).abs().max().item() * rstd.max().item()
        close("dx", dx, dx0, ROUNDING[dtype] * (4 if dtype == torch.float32 else 1), terms if shape[1] == 1 else 1e-3)
        close("dweight", dw, dw0, max(ROUNDING[weight_dtype], 2e-6))


def test_no_weight_and_no_bias():
    x, dy, *_ = make((6, 40), torch.float32, torch.float32, False)
    y, summed, mean, rstd = layer_norm_forward(x, None, None, None, 1e-5)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (40,)))
    dx, dweight, dbias = layer_norm_backward(dy, None, x, None, mean, rstd, False)
    assert summed is None and dweight is None and dbias is None and torch.isfinite(dx).all()
    torch.testing.assert_close(
        rms_norm_forward(x, None, None, 1e-5)[0], torch.nn.functional.rms_norm(x, (40,), eps=1e-5)
    )


def test_a_large_mean_keeps_its_digits():
    x = torch.randn(5, 512, generator=torch.Generator().manual_seed(1)) + 4096.0
    y = layer_norm_forward(x, None, None, None, 1e-5)[0]
    wanted = torch.nn.functional.layer_norm(x.double(), (512,))
    assert (y.double() - wanted).abs().max() < 1e-3  # 4096 * 2**-24 in the mean; sums of squares would be off by 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_on_any_number_of_threads(dtype):
    x, dy, dsummed, weight, bias, residual = make((1100, 96), dtype, dtype, True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            y, summed, mean, rstd = layer_norm_forward(x, weight, bias, residual, 1e-5)
            results.append((y, *layer_norm_backward(dy, dsummed, summed, weight, mean, rstd, True)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_more_threads_than_shares_of_the_tasks():
    """Tasks are dealt out to 64 shares at most; nothing may be left out or done twice."""
    x, weight, bias = torch.randn(6400, 512), torch.randn(512), torch.randn(512)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 70, 64, 65):
            torch.set_num_threads(threads)
            results.append(layer_norm_forward(x, weight, bias, x, 1e-5))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize(("rows", "columns"), [(16000, 1024), (4000, 4096)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_streaming_stores_give_the_same_bits(dtype, rows, columns, residual):
    """Where x and y fill the last-level cache they take other stores, a residual is added in another pass, and rows of
    4,096 columns are worked on by twos instead of fours."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[-9:, 0] = 40.0  # far from the mean: a second pass
    weight, bias = torch.randn(2, columns).to(dtype)
    r = x.flip(1) if residual else None
    few = slice(-64, None)
    y, summed, mean, rstd = layer_norm_forward(x, weight, bias, r, 1e-5)
    small = layer_norm_forward(x[few], weight, bias, r[few] if residual else None, 1e-5)
    for large, alone in zip((y, summed, mean, rstd), small, strict=True):
        assert (large is None and alone is None) or torch.equal(large[few], alone)
    if residual:
        assert torch.equal(summed, (x.float() + r.float()).to(dtype))
        x = summed
    dx, dweight, dbias = layer_norm_backward(x, r, x, weight, mean, rstd, True)
    xhat = (x.double() - mean.double()[:, None]) * rstd.double()[:, None]
    for got, exact in ((dweight, (x.double() * xhat).sum(0)), (dbias, x.double().sum(0))):
        torch.testing.assert_close(got.double(), exact, rtol=ROUNDING[dtype], atol=1e-3)
    part = r[few] if residual else None
    assert torch.equal(dx[few], layer_norm_backward(x[few], part, x[few], weight, mean[few], rstd[few], True)[0])


@pytest.mark.parametrize("columns", [512, 1300, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_whatever_it_is_worked_on_with(dtype, columns):
    """From 1 MiB of x on the backward takes rows singly, of 4,096 columns by fours; dx of rows up to 4 KiB is written
    while the next are summed up; a row alone is single."""
    x, dy, dsummed, weight, _, _ = make((1037, columns), dtype, dtype, False)
    _, _, mean, rstd = layer_norm_forward(x, weight, weight, None, 1e-5)
    dx, dweight, dbias = layer_norm_backward(dy, dsummed, x, weight, mean, rstd, True)
    for few in (slice(1000, 1037), slice(1000, 1001)):
        small = layer_norm_backward(dy[few], dsummed[few], x[few], weight, mean[few], rstd[few], True)[0]
        assert torch.equal(dx[few], small)
    xhat = (x.double() - mean.double()[:, None]) * rstd.double()[:, None]
    for got, exact in ((dweight, (dy.double() * xhat).sum(0)), (dbias, dy.double().sum(0))):
        torch.testing.assert_close(got.double(), exact, rtol=ROUNDING[dtype], atol=2e-4)


def test_expanded_and_transposed_gradients():
    """`y.sum().backward()` gives a dy with stride 0."""
    x, _, _, weight, bias, _ = make((37, 257), torch.float32, torch.float32, False)
    _, _, mean, rstd = layer_norm_forward(x, weight, bias, None, 1e-5)
    expanded = torch.ones(1).expand(37, 257)
    wanted = layer_norm_backward(torch.ones(37, 257), None, x, weight, mean, rstd, True)
    for dy in (expanded, torch.ones(257, 37).t()):
        for a, b in zip(layer_norm_backward(dy, None, x, weight, mean, rstd, True), wanted, strict=True):
            assert torch.equal(a, b)


def test_rows_with_nan_or_infinity_stay_alone():
    x = torch.randn(9, 70, generator=torch.Generator().manual_seed(3))
    clean = layer_norm_forward(x, None, None, None, 1e-5)[0]
    x[2, 5], x[6, 69] = float("nan"), float("inf")
    y = layer_norm_forward(x, None, None, None, 1e-5)[0]
    rows = torch.tensor([0, 1, 3, 4, 5, 7, 8])
    assert torch.equal(y[rows], clean[rows]) and y[2].isnan().all() and y[6].isnan().any()


@pytest.mark.parametrize("first", (0.0, 1e-3, 3.0, 1e4))  # of standard deviations; the sums start from this element
@pytest.mark.parametrize("columns", (1, 2, 257, 4096))
def test_statistics_lose_no_digits_where_the_first_element_is_far_from_the_mean(columns, first):
    x = 300 + torch.randn(6, columns, generator=torch.Generator().manual_seed(4))
    x[:, 0] = 300 + first
    _, _, mean, rstd = layer_norm_forward(x, None, None, None, 1e-5)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=3e-7, atol=0)
    wanted = (exact.var(1, correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd.double(), wanted, rtol=3e-6, atol=0)


def test_no_rows():
    x, weight, bias = torch.empty(0, 16), torch.ones(16), torch.zeros(16)
    y, _, mean, rstd = layer_norm_forward(x, weight, bias, None, 1e-5)
    dx, dweight, dbias = layer_norm_backward(x, None, x, weight, mean, rstd, True)
    assert y.shape == dx.shape == (0, 16) and (dweight == 0).all() and (dbias == 0).all()
