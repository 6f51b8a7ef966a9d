"""The linear map of the layers: whichever library it takes, it is torch's linear, with all of its derivatives."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from undivided import batch_invariant, products
from undivided.ops.linear import linear

module = importlib.import_module("undivided.ops.linear")  # the package has a function of this name

needs_onednn = pytest.mark.skipif(not products.ONEDNN, reason="this torch has no oneDNN")


AMD = products.Processor(is_intel=False)
HALVED = products.Processor(is_intel=False, halves_mkl=True)  # where MKL runs at half rate
SLOW_BFLOAT16 = products.Processor(fast_bfloat16=False)


@pytest.fixture(params=[AMD, HALVED], ids=["full rate", "half rate"])
def calls(monkeypatch, request):
    """How often oneDNN was taken, as on a processor where it is; its limits are lowered: small matrices reach it."""
    monkeypatch.setattr(products, "_processor", lambda: request.param)
    monkeypatch.setattr(products, "MEDIUM", 64)
    monkeypatch.setattr(products, "LARGE", 4096)
    monkeypatch.setattr(products, "HALF_RATE", (24_000, 48_000))
    taken = []

    def counted(x, w, bias=None):
        taken.append(products.by_onednn(x, w))
        return products.product(x, w, bias)

    monkeypatch.setattr(module, "product", counted)
    return taken


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layouts(rows, columns, seed):
    """The same shape, laid out in every way that a caller may have."""
    yield "contiguous", random(rows, columns, seed=seed)
    yield "transposed", random(columns, rows, seed=seed).T
    yield "columns of a wider one", random(rows, columns + 3, seed=seed)[:, 1 : columns + 1]
    yield "every second row", random(2 * rows, columns, seed=seed)[::2]
    yield "one row repeated", random(1, columns, seed=seed).expand(rows, columns)
    yield "one column repeated", random(rows, 1, seed=seed).expand(rows, columns)


@needs_onednn
@pytest.mark.parametrize("rows", [64, 77])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs_linear_and_its_gradients(calls, rows, bias):
    for name, x in layouts(rows, 24, 1):
        for of_w, w in layouts(40, 24, 2):
            for of_dy, dy in layouts(rows, 40, 3):
                given = [x.detach().requires_grad_(), w.detach().requires_grad_()]
                given += [random(40, seed=4).requires_grad_()] if bias else []
                wide = [value.detach().double().requires_grad_() for value in given]
                out, exact = linear(*given), F.linear(*wide)
                grads = torch.autograd.grad(out, given, dy)
                for got, expected in zip(
                    (out, *grads), (exact, *torch.autograd.grad(exact, wide, dy.double())), strict=True
                ):
                    torch.testing.assert_close(
                        got.double(), expected, rtol=1e-5, atol=2e-5, msg=f"{name} {of_w} {of_dy}"
                    )
    assert calls and calls[0]


def strided(kind, values):
    """A bias whose elements do not lie one after the other."""
    return values.repeat_interleave(2)[::2] if kind == "every second" else values[:1].expand(len(values))


@needs_onednn
@pytest.mark.parametrize("kind", ["every second", "one repeated"])
def test_the_strides_of_a_bias_are_kept(calls, kind):
    """oneDNN reads one as if it were contiguous."""
    x, w, b = random(64, 24), random(40, 24, seed=1), strided(kind, random(40, seed=2))
    torch.testing.assert_close(linear(x, w, b), F.linear(x, w, b))
    assert calls == [True]


needs_bfloat16 = pytest.mark.skipif(not products.ONEDNN_BFLOAT16, reason="oneDNN has no bfloat16 on this processor")


@needs_bfloat16
@pytest.mark.parametrize("kind", [None, "every second", "one repeated"])
def test_onednn_adds_a_bias_of_bfloat16(monkeypatch, kind):
    taken, by_onednn = [], products._by_onednn
    monkeypatch.setattr(products, "_processor", lambda: products.Processor())
    monkeypatch.setattr(products, "_by_onednn", lambda x, *rest: taken.append(x.shape) or by_onednn(x, *rest))
    b = random(40, seed=3).bfloat16()
    b = b if kind is None else strided(kind, b)
    with torch.no_grad():
        for name, x in layouts(64, 24, 1):
            for of_w, w in layouts(40, 24, 2):
                x, w = x.bfloat16(), w.bfloat16()
                exact = F.linear(x.double(), w.double(), b.double())
                got = linear(x, w, b).double()
                torch.testing.assert_close(got, exact, rtol=2**-8, atol=1e-3, msg=f"{name} {of_w}")
    assert len(taken) == 36
    linear(x, w, b)  # with a graph of autograd it is torch's
    assert len(taken) == 36 and linear(x[:0], w, b).shape == (0, 40)


@needs_onednn
def test_derivatives_of_derivatives(calls):
    x, w, b = random(64, 8).requires_grad_(), random(50, 8, seed=1).requires_grad_(), random(50).requires_grad_()

    def penalty(function):
        (dx,) = torch.autograd.grad(function(x, w, b).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, w, b))

    for got, expected in zip(penalty(linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert any(calls)


@needs_onednn
def test_shapes_and_what_is_left_to_torch(calls):
    w, b = random(40, 24).requires_grad_(), random(40, seed=1)
    x = random(2, 35, 24, seed=2)
    torch.testing.assert_close(linear(x, w, b), F.linear(x, w, b))
    with torch.no_grad():
        torch.testing.assert_close(linear(x, w, b), F.linear(x, w, b))
    assert calls == [True, True]
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w, b).dtype == torch.bfloat16
    assert torch.func.vmap(lambda row: linear(row, w, b))(x).shape == (2, 35, 40)
    assert torch.compile(linear, fullgraph=True, backend="eager")(x, w, b).shape == (2, 35, 40)
    assert linear(x.double(), w.double(), b.double()).dtype == torch.float64
    assert linear(x[0, 0], w, b).shape == (40,)
    assert linear(x[:, :0], w, b).shape == (2, 0, 40)
    assert linear(x[:, :10], w, b).shape == (2, 10, 40)  # too few rows for oneDNN, too many for the kernel of few
    assert calls == [True, True]
    torch.testing.assert_close(linear(x[:, :5], w, b), F.linear(x[:, :5], w, b))
    assert calls == [True, True, False]  # by the kernel of few rows
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x, w[:, 1:], b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_few_rows_in_sixteen_bits_and_their_gradients(dtype):
    x, w, b = (random(*shape, seed=n).to(dtype).requires_grad_() for n, shape in enumerate([(3, 24), (40, 24), (40,)]))
    assert products.for_few_rows(x, w) is products.few_rows()
    for got, expected in zip(
        torch.autograd.grad(linear(x, w, b).sum(), (x, w, b)),
        torch.autograd.grad(F.linear(x, w, b).sum(), (x, w, b)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", products.FLOATS)
def test_up_to_sixteen_rows_reach_the_kernel(monkeypatch, dtype):
    reached = []

    def kernel(x, w, bias):
        reached.append(x.shape[0])
        return F.linear(x, w, bias)

    monkeypatch.setattr(products, "few_rows", lambda: kernel)
    monkeypatch.setattr("undivided.ops.direct.POSSIBLE", False)
    w = random(9, 24).to(dtype)
    for rows in (1, 16, 17):
        linear(random(rows, 24).to(dtype), w)
        linear(random(1, rows, 24).to(dtype), w)
    assert reached == [1, 1, 16, 16]


def test_large_weights_take_onednn_with_any_number_of_rows(monkeypatch):
    monkeypatch.setattr(products, "_processor", lambda: AMD)
    large, medium, small = (torch.empty(n, 1024) for n in (1024, 256, 128))
    one, many = torch.empty(1, 1024), torch.empty(64, 1024)
    expected = [(one, large, True), (one, medium, False), (many, medium, True), (many, small, False)]
    assert [products.by_onednn(x, w) for x, w, _ in expected] == [found and products.ONEDNN for *_, found in expected]
    assert not products.by_onednn(many.bfloat16(), large.bfloat16())
    monkeypatch.setattr(products, "_processor", products.Processor)
    assert not products.by_onednn(many, large)  # Intel's own processors: MKL is faster


@needs_onednn
def test_where_mkl_runs_at_half_rate_the_number_of_products_decides(monkeypatch):
    monkeypatch.setattr(products, "_processor", lambda: HALVED)
    x, w = torch.empty(128, 128), torch.empty(128, 128)
    assert products.by_onednn(x, w) and not products.by_onednn(x[:127], w)
    dy, of_x = torch.empty(512, 128), torch.empty(512, 128)
    assert products.by_onednn(dy.T, of_x.T) and not products.by_onednn(dy[:511].T, of_x[:511].T)


@needs_onednn
@pytest.mark.parametrize(("rows", "columns"), [(512, 64), (64, 512)])
def test_of_two_transposes_the_smaller_is_copied(monkeypatch, rows, columns):
    monkeypatch.setattr(products, "_processor", lambda: HALVED)
    first = []
    by_onednn = products._by_onednn
    monkeypatch.setattr(products, "_by_onednn", lambda x, *rest: first.append(x.shape[0]) or by_onednn(x, *rest))
    dy, x = random(800, rows, seed=1), random(800, columns, seed=2)
    out = products.product(dy.T, x.T)
    assert first == [64] and out.is_contiguous()
    assert torch.allclose(out, dy.T @ x, rtol=1e-4, atol=1e-3)


@pytest.fixture
def widens(monkeypatch):
    """Whether each product was widened, as on a processor that is slow in bfloat16; small ones are too."""
    monkeypatch.setattr(products, "_processor", lambda: SLOW_BFLOAT16)
    monkeypatch.setattr(products, "WORTH_WIDENING", 1.0)
    taken = []

    def counted(x, w, bias, dtype):
        taken.append(dtype)
        return products.widened(x, w, bias, dtype)

    monkeypatch.setattr(module, "widened", counted)
    return taken


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_widened_bfloat16_is_torchs_linear_more_exactly(widens, autocast, bias):
    for name, x in layouts(70, 24, 1):
        for of_w, w in layouts(40, 24, 2):
            values = [x, w, random(40, seed=4)] if bias else [x, w]
            dtype = torch.float32 if autocast else torch.bfloat16
            given = [value.to(dtype).detach().requires_grad_() for value in values]
            wide = [value.detach().double().requires_grad_() for value in given]
            dy = random(70, 40, seed=3).bfloat16()
            found = []
            for function in (linear, F.linear):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    out = function(*given)
                assert out.dtype == torch.bfloat16
                found.append((out, *torch.autograd.grad(out, given, dy)))
            exact = F.linear(*wide)
            expected = (exact, *torch.autograd.grad(exact, wide, dy.double()))
            for own, honest, right in zip(*found, expected, strict=True):
                assert own.dtype == honest.dtype
                error, budget = ((one.double() - right).abs().max().item() for one in (own, honest))
                assert error <= budget * 1.01 + 1e-6, f"{name} {of_w}: {error} against {budget}"
    assert torch.bfloat16 in widens


def test_autocast_leaves_float64_as_it_is(widens):
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(random(70, 24).double(), random(40, 24).double()).dtype == torch.float64
    assert not widens


def test_widened_derivatives_of_derivatives(widens):
    x, w, b = random(64, 8).requires_grad_(), random(9, 8, seed=1).requires_grad_(), random(9, seed=2).requires_grad_()

    def penalty(function):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x, w, b)
        (dx,) = torch.autograd.grad(y.float().pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, w, b))

    own, torchs = penalty(linear), penalty(F.linear)
    exact_x, exact_w, exact_b = (value.detach().double().requires_grad_() for value in (x, w, b))
    (dx,) = torch.autograd.grad(F.linear(exact_x, exact_w, exact_b).pow(3).sum(), exact_x, create_graph=True)
    for got, honest, right in zip(
        own, torchs, torch.autograd.grad(dx.square().sum(), (exact_x, exact_w, exact_b)), strict=True
    ):
        assert (got - right).norm() <= 2 * (honest - right).norm() + 1e-3 * right.norm()
    assert widens


def test_what_is_worth_widening(monkeypatch):
    def asked(rows, columns, outputs, dtype=torch.bfloat16):
        return products.by_widening(torch.empty(rows, columns), torch.empty(outputs, columns), dtype)

    monkeypatch.setattr(products, "_processor", lambda: SLOW_BFLOAT16)
    assert asked(128, 512, 512) and asked(2048, 1024, 4096) and asked(512, 512, 32000) and asked(512, 16384, 512)
    assert not asked(64, 512, 512) and not asked(512, 16385, 512) and not asked(0, 512, 512) and not asked(9, 0, 9)
    assert not asked(128, 512, 512, torch.float16) and not asked(128, 512, 512, torch.float32)
    with batch_invariant():
        assert not asked(2048, 1024, 4096)
    monkeypatch.setattr(products, "_processor", products.Processor)
    assert not asked(2048, 1024, 4096)


@pytest.mark.parametrize(("rows", "outputs"), [(70, 40), (70, 3), (3, 40)])
def test_widened_in_parts(monkeypatch, rows, outputs):
    x, w, b = random(rows, 24).bfloat16(), random(outputs, 24, seed=1).bfloat16(), random(outputs, seed=2).bfloat16()
    whole = products.widened(x, w, b, torch.bfloat16)
    monkeypatch.setattr(products, "MOST_WIDENED", 250)  # 10 rows of x, or outputs
    torch.testing.assert_close(products.widened(x, w, b, torch.bfloat16), whole, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(products.widened(x, w, None, torch.float32), F.linear(x.float(), w.float()))
