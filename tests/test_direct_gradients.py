"""Gradients of calls that go to their kernel directly, and attention's backward where it cannot."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("undivided._C", reason="the compiled extension is not built")

from undivided import RelativeBias, ops  # noqa: E402
from undivided.ops import direct as permission  # noqa: E402
from undivided.testing import poison  # noqa: E402

launchers = importlib.import_module("undivided.cpu.attention")

pytestmark = pytest.mark.skipif(not permission.POSSIBLE, reason="this torch does not say where its tensors lie")


@pytest.fixture
def taken(monkeypatch):
    """For each backward that tried, whether it went directly."""
    found: list[bool] = []
    function = launchers.backward_directly

    def watched(*values: Any) -> Any:
        result = function(*values)
        found.append(result is not None)
        return result

    monkeypatch.setattr(launchers, "backward_directly", watched)
    return found


def inputs(seqlen_q: int = 5, seqlen_k: int = 7) -> list[Tensor]:
    """q, k, v, and the table of a relative bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, seqlen_q, 4, 16), (2, seqlen_k, 2, 16), (2, seqlen_k, 2, 16), (8, 4))
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor, **words: Any) -> Any:
    return ops.attention(q, k, v, bias=RelativeBias(table, 20), causal=True, **words)


def attend_to_itself(x: Tensor) -> Any:
    return ops.attention(*(x.view(1, 4, 1, 16),) * 3)


def gradients(values: list[Tensor], loss: Callable[[Any], Tensor], **words: Any) -> tuple[Tensor, ...]:
    with poison():
        return torch.autograd.grad(loss(attend(*values, **words)), values)


def usual(values: list[Tensor], loss: Callable[[Any], Tensor], **words: Any) -> tuple[Tensor, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permission, "POSSIBLE", False)
        return gradients(values, loss, **words)


def alike(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("lengths", [(5, 7), (1, 1), (33, 700)])  # the last one's keys in two chunks
@pytest.mark.parametrize("padded", [False, True])
def test_the_gradients_are_those_of_the_usual_way(variant, lengths, padded, taken):
    values = inputs(*lengths)
    words = dict(key_lengths=torch.tensor([lengths[1], 0], dtype=torch.int32)) if padded else {}
    found = gradients(values, lambda out: out.square().sum(), **words)
    assert taken == [True]
    assert alike(found, usual(values, lambda out: out.square().sum(), **words))


@pytest.mark.parametrize("loss", [lambda out: out.sum(), lambda out: out.mT.contiguous().square().sum()])
def test_the_gradient_of_out_may_have_any_strides(loss, taken):
    values = inputs()
    assert alike(gradients(values, loss), usual(values, loss)) and taken == [True]


@pytest.mark.parametrize("wanted", range(4))
def test_one_gradient_alone(wanted, taken):
    values = [value.detach().requires_grad_(at == wanted) for at, value in enumerate(inputs())]
    (found,) = torch.autograd.grad(attend(*values).square().sum(), values[wanted])
    assert taken == [True]
    assert torch.equal(found, usual(inputs(), lambda out: out.square().sum())[wanted])


def test_what_hooks_give_back_in_another_form_goes_the_usual_way(taken):
    def transposed(value: Tensor) -> Tensor:
        return value.mT.contiguous().mT if value.dim() == 4 else value

    values = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value.detach(), transposed):
        out = attend(*values)
    found = torch.autograd.grad(out.square().sum(), values)
    assert taken == [False]
    assert alike(found, usual(values, lambda out: out.square().sum()))


def test_what_hooks_give_back_in_another_dtype_is_refused():
    values = inputs()
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value.detach(), lambda value: value.double()):
        out = attend(*values)
    with pytest.raises(TypeError, match="attention: q was saved for the backward with dtype torch.float32"):
        out.sum().backward()


def test_what_hooks_give_back_with_fewer_buckets_is_not_read_beyond_them(monkeypatch):
    def watched(*values: Any, function: Any = launchers.backward_directly) -> Any:
        table, buckets = values[6][3:5]
        assert table.shape == (2, 4) and buckets.max() < 2
        return function(*values)

    monkeypatch.setattr(launchers, "backward_directly", watched)
    values = inputs()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: value.detach(), lambda value: value[:2] if value.dim() == 2 else value
    ):
        out = attend(*values)
    with pytest.raises(RuntimeError, match="invalid gradient at index 3"):
        out.sum().backward()


def test_with_gradients_nothing_is_checked_in_python(monkeypatch):
    for module in ("layer_norm", "rms_norm", "attention"):
        monkeypatch.delattr(importlib.import_module(f"undivided.ops.{module}"), "choose")
    x, w = torch.randn(4, 16).requires_grad_(), torch.randn(16).requires_grad_()
    q, table = torch.randn(1, 4, 2, 16).requires_grad_(), torch.randn(8, 2).requires_grad_()
    outs = [ops.layer_norm(x, w, w), ops.rms_norm(x, w), ops.attention(q, q, q, bias=RelativeBias(table))]
    sum(out.square().sum() for out in outs).backward()
    assert all(value.grad is not None for value in (x, w, q, table))


def test_there_are_no_second_derivatives_that_are_wrong():
    x = torch.randn(4, 16).requires_grad_()
    for function in (ops.layer_norm, ops.rms_norm, attend_to_itself):
        (grad,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            grad.sum().backward()


def norm_gradients(dy: Tensor, dsummed: Tensor | None) -> tuple[Tensor, ...]:
    x, weight, bias = (torch.randn(shape).requires_grad_() for shape in ((4, 16), (16,), (16,)))
    outs = ops.layer_norm(x, weight, bias, residual=x.detach())
    grads = (dy,) if dsummed is None else (dy, dsummed)
    with poison():
        return torch.autograd.grad(outs[: len(grads)], (x, weight, bias), grads)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("kind", ["plain", "expanded", "transposed", "negative"])
def test_the_gradient_of_a_norms_output_may_have_any_form(kind, second, monkeypatch):
    dy = {
        "plain": torch.randn(4, 16),
        "expanded": torch.randn(16).expand(4, 16),
        "transposed": torch.randn(16, 4).T,
        "negative": torch.randn(4, 16, dtype=torch.complex64).conj().imag,
    }[kind]
    assert dy.is_neg() == (kind == "negative")
    grads = (torch.randn(4, 16), dy) if second else (dy, None)
    torch.manual_seed(1)
    found = norm_gradients(*grads)
    monkeypatch.setattr(permission, "POSSIBLE", False)
    torch.manual_seed(1)
    assert alike(found, norm_gradients(grads[0].clone(), None if grads[1] is None else grads[1].clone()))


def test_the_gradient_of_the_sum_alone():
    x = torch.randn(4, 16).requires_grad_()
    _, summed = ops.layer_norm(x, residual=x)
    (found,) = torch.autograd.grad(summed.sum(), x)
    assert torch.equal(found, torch.full_like(x, 2.0))


@pytest.mark.parametrize("function", [ops.layer_norm, attend_to_itself, ops.rms_norm])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("again", [False, True])  # whether a derivative of the gradients is wanted
def test_hooks_are_asked_once_for_each_saved_tensor(function, transposed, again):
    asked: list[Any] = []
    x = torch.randn(4, 16).requires_grad_()

    def unpack(value: Tensor) -> Tensor:
        asked.append(value)
        return value.mT.contiguous().mT if transposed and value.dim() > 1 else value

    with torch.autograd.graph.saved_tensors_hooks(lambda value: value.detach(), unpack):
        out = function(x)
    torch.autograd.grad(out, x, torch.randn(out.shape), create_graph=again)
    assert asked and len({id(value) for value in asked}) == len(asked)


def test_rotary_turns_a_negative_gradient_back():
    x, (cos, sin) = torch.randn(1, 4, 2, 8).requires_grad_(), torch.randn(2, 4, 4).unbind(0)
    dy = torch.randn(1, 4, 2, 8, dtype=torch.complex64).conj().imag
    (found,) = torch.autograd.grad(ops.rotary(x, cos, sin), x, dy)
    (expected,) = torch.autograd.grad(ops.rotary(x, cos, sin, backend="reference"), x, dy)
    assert dy.is_neg()
    torch.testing.assert_close(found, expected)


def test_rotary_has_second_derivatives():
    torch.manual_seed(0)
    x, (cos, sin) = torch.randn(1, 4, 2, 8).requires_grad_(), torch.randn(2, 4, 4).unbind(0)

    def second(backend: str) -> Tensor:
        (grad,) = torch.autograd.grad(ops.rotary(x, cos, sin, backend=backend).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.pow(3).sum(), x)[0]

    torch.testing.assert_close(second("cpu"), second("reference"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changed", [False, True])
def test_a_packed_batch_with_dropout_may_come_back_from_hooks_in_another_form(changed, taken):
    offsets = torch.tensor([0, 3, 3, 9], dtype=torch.int32)
    values = [torch.randn(9, heads, 16).requires_grad_() for heads in (4, 2, 2)]

    def attend() -> Any:
        words: dict[str, Any] = dict(cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=20)
        return ops.attention_packed(*values, **words, causal=True, dropout_p=0.4, seed=7)

    def unpack(value: Tensor) -> Tensor:
        return value.mT.contiguous().mT if changed and value.dim() == 3 else value

    with torch.autograd.graph.saved_tensors_hooks(lambda value: value.detach(), unpack):
        out = attend()
    found = torch.autograd.grad(out.square().sum(), values)
    assert taken == [not changed]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permission, "POSSIBLE", False)
        assert alike(found, torch.autograd.grad(attend().square().sum(), values))


@pytest.mark.parametrize("possible", [True, False])
def test_what_is_not_kept_may_be_changed_in_place(possible, monkeypatch):
    monkeypatch.setattr(permission, "POSSIBLE", possible and permission.POSSIBLE)
    x, tables = torch.randn(1, 4, 2, 8).requires_grad_(), torch.randn(2, 4, 4).unbind(0)
    for function in (lambda x: ops.rotary(x, *tables), ops.layer_norm, lambda x: ops.rms_norm(x, residual=x)[0]):
        weight = torch.randn(x.shape)
        (expected,) = torch.autograd.grad((function(x) * 2 * weight).sum(), x)
        (found,) = torch.autograd.grad((function(x).mul_(2) * weight).sum(), x)
        torch.testing.assert_close(found, expected)
