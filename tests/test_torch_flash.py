"""Our kernels in torch's registry of flash attention: coming and going, and the four functions, called on their own."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from kernel_backend import needs_kernels
from rows import random
from undivided.dispatch import BackendRefused
from undivided.integrations import torch_flash
from undivided.testing.compare import compare

REGISTRY = getattr(nn.attention, "restore_flash_attention_impl", None)
needs_registry = pytest.mark.skipif(REGISTRY is None, reason="torch has no registry of flash attention")
aten = torch.ops.aten
OPS = {
    "_scaled_dot_product_flash_attention": torch_flash.flash_forward,
    "_scaled_dot_product_flash_attention_backward": torch_flash.flash_backward,
    "_scaled_dot_product_efficient_attention": torch_flash.efficient_forward,
    "_scaled_dot_product_efficient_attention_backward": torch_flash.efficient_backward,
}


def overridden() -> list[str]:
    """Which of the ops have a CUDA kernel from Python."""
    return [name for name in OPS if f"aten/{name}/CUDA" in torch.library._impls]


@needs_registry
def test_activation_overrides_and_restoring_removes(recwarn):
    assert "undivided" in nn.attention.list_flash_attention_impls()
    assert nn.attention.current_flash_attention_impl() is None and not overridden()
    nn.attention.activate_flash_attention_impl("undivided")
    try:
        assert nn.attention.current_flash_attention_impl() == "undivided" and overridden() == list(OPS)
        q = random(1, 2, 5, 16)
        nn.functional.scaled_dot_product_attention(q, q, q)
    finally:
        nn.attention.restore_flash_attention_impl()
    assert nn.attention.current_flash_attention_impl() is None and not overridden()
    nn.attention.activate_flash_attention_impl("undivided")  # again, as nothing is left of the first time
    nn.attention.restore_flash_attention_impl()
    assert not overridden()


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has kernels of its own")
def test_the_dispatcher_has_the_kernels_while_the_handle_lives():
    has = lambda: [torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CUDA") for name in OPS]  # noqa: E731
    assert not any(has())
    handle = torch_flash.override()
    assert all(has())
    handle.remove()
    assert not any(has())


def test_an_older_torch_is_left_alone(monkeypatch):
    monkeypatch.delattr(nn.attention, "restore_flash_attention_impl", raising=False)
    assert torch_flash.register() is False


@pytest.mark.parametrize("name", OPS)
def test_the_arguments_are_those_of_the_op(name):
    arguments = getattr(aten, name).default._schema.arguments
    parameters = inspect.signature(OPS[name]).parameters.values()
    assert [p.name.rstrip("_") for p in parameters] == [a.name.rstrip("_") for a in arguments]
    for parameter, argument in zip(parameters, arguments, strict=True):
        assert (parameter.kind is parameter.KEYWORD_ONLY) == argument.kwarg_only
        default = argument.default_value if argument.has_default_value() else parameter.empty
        assert parameter.default == default


class Flash(torch.autograd.Function):
    """The formula by which torch's autograd calls the pair."""

    @staticmethod
    def forward(ctx, query, key, value, is_causal):
        out, lse, *_ = torch_flash.flash_forward(query, key, value, 0.0, is_causal, scale=0.3)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.is_causal = is_causal
        return out

    @staticmethod
    def backward(ctx, dout):
        query, key, value, out, lse = ctx.saved_tensors
        unused = torch.empty(0)
        rest = (None, None, query.shape[2], key.shape[2], 0.0, ctx.is_causal, unused, unused)
        return *torch_flash.flash_backward(dout, query, key, value, out, lse, *rest, scale=0.3), None


class Efficient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, bias, is_causal):
        out, lse, *_ = torch_flash.efficient_forward(query, key, value, bias, True, 0.0, is_causal, scale=0.3)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.is_causal = is_causal
        return out

    @staticmethod
    def backward(ctx, dout):
        *inputs, out, lse = ctx.saved_tensors
        unused, needed = torch.empty(0), [*ctx.needs_input_grad[:3], inputs[3] is not None and ctx.needs_input_grad[3]]
        rest = (unused, unused, 0.0, needed, ctx.is_causal)
        return *torch_flash.efficient_backward(dout, *inputs, out, lse, *rest, scale=0.3), None


def tensors(seqlen_q: int, seqlen_k: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    sizes = {"query": seqlen_q, "key": seqlen_k, "value": seqlen_k}
    # seqlen before nheads in memory, as a projection leaves it
    return {name: random(2, n, 4, 16, seed=i, dtype=dtype).transpose(1, 2) for i, (name, n) in enumerate(sizes.items())}


def agree(made: dict[str, torch.Tensor], function, **words) -> None:
    def own(**values):
        return (nn.functional.scaled_dot_product_attention(**values, **words, scale=0.3),)

    verdicts = compare(("out",), made, function, own, own, backward=True)
    assert len(verdicts) == 1 + len(made) and all(verdict.ok for verdict in verdicts), verdicts


@needs_kernels
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_flash_pair(is_causal, dtype):
    run = lambda query, key, value: (Flash.apply(query, key, value, is_causal),)  # noqa: E731
    agree(tensors(19, 19, dtype), run, is_causal=is_causal)


@needs_kernels
@pytest.mark.parametrize("sizes", [(19, 19), (7, 19), (33, 19)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_efficient_pair(sizes, is_causal):
    run = lambda query, key, value: (Efficient.apply(query, key, value, None, is_causal),)  # noqa: E731
    agree(tensors(*sizes), run, is_causal=is_causal)


@needs_kernels
@pytest.mark.parametrize("shape", [(2, 4, 7, 19), (1, 4, 7, 19), (1, 1, 7, 19), (2, 1, 1, 19)], ids=str)
def test_the_efficient_pair_with_a_bias(shape):
    """torch hands the bias over expanded, and sums its gradient where it was expanded."""
    run = lambda attn_mask, **t: (Efficient.apply(*t.values(), attn_mask.expand(2, 4, 7, 19), False),)  # noqa: E731
    agree({"attn_mask": random(*shape, seed=5)} | tensors(7, 19), lambda **t: run(**t))


@needs_kernels
def test_outputs_are_laid_out_as_torch_says_of_its_own():
    """By the fakes of torch's ops, which torch.compile plans memory by."""
    made = tensors(7, 7)
    meta = [t.to("meta") for t in made.values()]
    bias = random(2, 4, 7, 7).to("meta")
    pairs = [
        (torch_flash.flash_forward(*made.values()), aten._scaled_dot_product_flash_attention(*meta)),
        (
            torch_flash.efficient_forward(*made.values(), random(2, 4, 7, 7), True),
            aten._scaled_dot_product_efficient_attention(*meta, bias, True),
        ),
        (
            torch_flash.efficient_forward(*made.values(), None, False),
            aten._scaled_dot_product_efficient_attention(*meta, None, False),
        ),
    ]
    for ours, theirs in pairs:
        for a, b in zip(ours, theirs, strict=True):
            if isinstance(b, torch.Tensor):
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
            else:
                assert a == b


@needs_kernels
def test_what_the_kernels_cannot_do_is_refused():
    made = tensors(7, 7)
    with pytest.raises(NotImplementedError, match=r"dropout_p = 0.1: through torch's registry .* undivided.sdpa"):
        torch_flash.flash_forward(*made.values(), 0.1)
    with pytest.raises(NotImplementedError, match="dropout_p = 0.1"):
        torch_flash.efficient_forward(*made.values(), None, True, 0.1)
    with pytest.raises(NotImplementedError, match="probabilities are never stored"):
        torch_flash.flash_forward(*made.values(), return_debug_mask=True)
    with pytest.raises(BackendRefused, match="(?s)no kernel of undivided runs this call.*float64"):
        torch_flash.flash_forward(*tensors(7, 7, torch.float64).values())


@pytest.mark.gpu
@needs_registry
def test_torch_runs_our_kernels_on_a_gpu():
    q = random(2, 4, 64, 64, dtype=torch.bfloat16).requires_grad_()
    expected = nn.functional.scaled_dot_product_attention(q, q, q)
    (expected_grad,) = torch.autograd.grad(expected.float().sum(), q)
    nn.attention.activate_flash_attention_impl("undivided")
    try:
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.FLASH_ATTENTION):
            out = nn.functional.scaled_dot_product_attention(q, q, q)
            (grad,) = torch.autograd.grad(out.float().sum(), q)
    finally:
        nn.attention.restore_flash_attention_impl()
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(grad, expected_grad, atol=5e-2, rtol=5e-2)
