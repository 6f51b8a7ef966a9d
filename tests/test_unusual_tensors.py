"""Tensors that are not plain values in memory, and modes that see what is done to any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

pytest.importorskip("undivided._C", reason="the compiled extension is not built")

from undivided import RelativeBias, ops  # noqa: E402
from undivided.cpu import attention, layer_norm, rms_norm  # noqa: E402
from undivided.ops import direct  # noqa: E402


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = random(2, 5, 4, 16), random(2, 7, 2, 16, seed=1), random(2, 7, 2, 16, seed=2)
X, W, SQUARE, ANGLES = random(4, 16, seed=3), random(16, seed=4), random(16, 16, seed=5), random(7, 8, seed=6)
LENGTHS, TABLE = torch.tensor([3, 4], dtype=torch.int32), random(8, 4, seed=7)

# name: (an op of tensors alone, what it is given)
CALLS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "attention": (lambda q, k, v: ops.attention(q, k, v, causal=True), (Q, K, V)),
    "attention_bias": (lambda q, k, v, table: ops.attention(q, k, v, bias=RelativeBias(table)), (Q, K, V, TABLE)),
    "attention_dense": (lambda q, k, v, bias: ops.attention(q, k, v, bias=bias), (Q, K, V, random(5, 7))),
    "attention_decode": (lambda q, k, v: ops.attention_decode(q, k, v, LENGTHS), (Q, K, V)),
    "layer_norm": (lambda x, w, b: ops.layer_norm(x, w, b), (X, W, W + 1)),
    "layer_norm_residual": (lambda x, r, w: ops.layer_norm(x, w, residual=r)[0], (X, X + 1, W)),
    "rms_norm": (lambda x, w: ops.rms_norm(x, w), (X, W)),
    "feed_forward": (
        lambda x, w_in, b, w_out, gate: ops.feed_forward(x, w_in, b, w_out, w_gate=gate),
        (X, SQUARE, W, SQUARE - 1, SQUARE + 1),
    ),
    "linear": (lambda x, w, b: ops.linear(x, w, b), (X, SQUARE, W)),
    "rotary": (lambda x, cos, sin: ops.rotary(x, cos, sin), (Q, ANGLES.cos(), ANGLES.sin())),
}
every_call = pytest.mark.parametrize("name", CALLS)


class Wrapped(Tensor):
    """A tensor without memory of its own, whose values another one has: as sharded and quantised ones are."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        like = dict(strides=inner.stride(), dtype=inner.dtype, device=inner.device)
        return Tensor._make_wrapper_subclass(cls, inner.shape, **like)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(value: Any) -> Any:
            return value.inner if isinstance(value, Wrapped) else value

        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))


@every_call
def test_a_subclass_keeps_its_rules_as_any_argument(name):
    function, values = CALLS[name]
    expected = function(*values)
    for place in range(len(values)):
        given = [Wrapped(value) if at == place else value for at, value in enumerate(values)]
        torch.testing.assert_close(function(*given), expected)


def without_memory(value: Tensor) -> Tensor:
    value = value.clone()
    value.untyped_storage().resize_(0)
    return value


def all_zero(value: Tensor) -> Tensor:
    return torch._efficientzerotensor(value.shape)


@every_call
@pytest.mark.parametrize("empty", [without_memory, all_zero, torch._to_functional_tensor])
@pytest.mark.parametrize("possible", [True, False])
def test_a_tensor_without_memory_is_refused(name, possible, empty, monkeypatch):
    """By C++, which leaves it to the launchers, by those, or by torch where it looks first."""
    if not possible:
        monkeypatch.setattr(direct, "POSSIBLE", False)
        for launcher in (attention, layer_norm, rms_norm):
            monkeypatch.setattr(launcher, "READS_TENSORS", False)
    function, values = CALLS[name]
    for place in range(len(values)):
        given = [empty(value) if at == place else value for at, value in enumerate(values)]
        with pytest.raises((ValueError, RuntimeError), match="has no memory|requiring a storage"):
            function(*given)


def leaves(values: tuple[Tensor, ...]) -> list[Tensor]:
    return [value.clone().requires_grad_() for value in values]


def differentiable(name: str) -> bool:
    return name not in ("attention_decode", "rotary")


@every_call
def test_a_graph_of_make_fx_gives_the_result_for_other_inputs(name):
    """In its default mode the tensors are real ones, and nothing but the active mode says that they are traced."""
    function, values = CALLS[name]
    graph = make_fx(function)(*values)
    others = [value.roll(1, 0) for value in values]
    torch.testing.assert_close(graph(*others), function(*others))


class Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@every_call
def test_a_mode_sees_the_ops(name):
    function, values = CALLS[name]
    expected = function(*values)
    with Log() as log:
        torch.testing.assert_close(function(*values), expected)
    assert any(op.startswith("aten.addmm" if name == "linear" else "undivided.") for op in log.names)
    if differentiable(name):
        given, plain = leaves(values), leaves(values)
        with Log() as log:
            found = torch.autograd.grad(function(*given).sum(), given)
        torch.testing.assert_close(found, torch.autograd.grad(function(*plain).sum(), plain))
        assert any(op.startswith("aten.mm" if name == "linear" else "undivided.") for op in log.names)


@every_call
def test_real_inputs_of_fake_tensor_mode(name):
    """Nothing of the mode is left for the calls after it."""
    function, values = CALLS[name]
    for _ in range(2):
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert isinstance(function(*values), FakeTensor)
        with FakeTensorMode(), pytest.raises((AssertionError, RuntimeError), match="to Fake"):
            function(*values)
        function(*values)
    table = random(9, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        ops.attention(Q, K, V, bias=RelativeBias(table, 77))
    words = dict(bias=RelativeBias(table, 77))
    torch.testing.assert_close(ops.attention(Q, K, V, **words), ops.attention(Q, K, V, backend="reference", **words))


@every_call
@pytest.mark.parametrize("possible", [True, False])
def test_the_negative_bit_is_heeded(name, possible, monkeypatch):
    """The imaginary part of a conjugate has it; with stride 1 only torch's own operator makes it."""
    if not possible:
        monkeypatch.setattr(direct, "POSSIBLE", False)
    function, values = CALLS[name]
    for place in range(len(values) if not possible else 1):
        given, expected = list(values), list(values)
        given[place] = torch._neg_view(values[place])
        expected[place] = -values[place]
        torch.testing.assert_close(function(*given), function(*expected))
    if differentiable(name):
        given = leaves(values)
        out = function(*given)
        dout = out.detach().cos()
        found = torch.autograd.grad(out, given, torch._neg_view(dout), retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(out, given, -dout))


def test_the_imaginary_part_of_a_conjugate():
    z = torch.complex(random(1, 1), random(1, 1, seed=1)).conj().imag
    assert z.is_neg() and z.is_contiguous()
    for found, expected in (
        (ops.rms_norm(z), ops.rms_norm(z.clone())),
        (ops.linear(z, torch.ones(3, 1)), z.clone().expand(1, 3)),
    ):
        assert torch.equal(found, expected) and found[0, 0] < 0


def other_strides(value: Tensor) -> Tensor:
    """The same values; rows apart, and in a row too."""
    wide = torch.full((*value.shape, 2), torch.nan if value.is_floating_point() else 0, dtype=value.dtype)
    wide[..., 0] = value
    return wide[..., 0]


@pytest.mark.parametrize("name", [name for name in CALLS if name != "attention_decode"])
@pytest.mark.parametrize("possible", [True, False])
def test_saved_tensors_may_come_back_with_other_strides(name, possible, monkeypatch):
    monkeypatch.setattr(direct, "POSSIBLE", possible and direct.POSSIBLE)
    function, values = CALLS[name]
    given = leaves(values) if differentiable(name) else [values[0].clone().requires_grad_(), *values[1:]]
    wanted = [value for value in given if value.requires_grad]
    expected = torch.autograd.grad(function(*given).square().sum(), wanted)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value.detach(), other_strides):
        out = function(*given)
    torch.testing.assert_close(torch.autograd.grad(out, wanted, 2 * out.detach()), expected)


@pytest.mark.parametrize("name", [name for name in CALLS if differentiable(name) and name != "linear"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_saved_tensors_that_come_back_in_another_dtype_are_refused(name, dtype):
    """One at a time; weights of a norm and a bias may have any."""
    function, values = CALLS[name]
    refused, given = 0, leaves(values)
    expected = torch.autograd.grad(function(*given).sum(), given)
    for changed in range(32):
        order = iter(range(32))

        def unpack(value: Tensor, changed: int = changed, order: Iterator[int] = order) -> Tensor:
            return value.to(dtype) if next(order) == changed else value

        with torch.autograd.graph.saved_tensors_hooks(lambda value: value.detach(), unpack):
            out = function(*given).sum()
        try:
            torch.testing.assert_close(torch.autograd.grad(out, given), expected, atol=0.1, rtol=0.1)
        except TypeError as error:
            assert "comes back from the saved-tensor" in str(error)
            refused += 1
        if next(order) <= changed:
            break
    assert refused


@pytest.mark.parametrize("name", [name for name in CALLS if name != "attention_decode"])
@pytest.mark.parametrize("possible", [True, False])
def test_batches_of_gradients_are_refused(name, possible, monkeypatch):
    """But for those of linear, which torch's own product takes."""
    monkeypatch.setattr(direct, "POSSIBLE", possible and direct.POSSIBLE)
    function, (first, *rest) = CALLS[name]
    first = first.clone().requires_grad_()
    out = function(first, *rest)
    many = torch.stack([out.detach(), 2 * out.detach()])

    def gradient(dout: Tensor) -> Tensor:
        return torch.autograd.grad(out, first, dout, retain_graph=True)[0]

    for call in (
        lambda: torch.autograd.grad(out, first, many, is_grads_batched=True, retain_graph=True)[0],
        lambda: torch.func.vmap(gradient)(many),
    ):
        if name == "linear":
            torch.testing.assert_close(call(), torch.stack([gradient(dout) for dout in many]))
            continue
        with pytest.raises(NotImplementedError, match="no batches of gradients.*backend='reference'"):
            call()


@pytest.mark.parametrize("name", [name for name in CALLS if differentiable(name) and name != "linear"])
def test_there_are_no_second_derivatives_under_a_mode(name):
    function, values = CALLS[name]
    given = leaves(values)
    with Log():
        (grad,) = torch.autograd.grad(function(*given).square().sum(), given[0], create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            grad.sum().backward()
