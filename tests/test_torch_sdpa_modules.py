"""undivided.sdpa() around torch's modules, and under checkpointing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import undivided
from kernel_backend import KERNEL, needs_kernels
from rows import DEVICE, random
from sdpa_modules import (
    D_MODEL,
    NHEADS,
    SEQLEN,
    SEQLEN_MEMORY,
    attention_module,
    causal,
    decode,
    inputs,
    layer,
    padding,
)
from undivided.testing.compare import compare

# torch.compile and torch's own modules use parts of torch that torch calls deprecated, or prototypes.
pytestmark = [
    needs_kernels,
    pytest.mark.filterwarnings("ignore:.torch.jit.script"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


def agree(module: nn.Module, call, names: tuple[str, ...], calls: int, dtype=torch.float32) -> None:
    """Output and the gradient of every input and parameter, against torch's own module in float64.

    call: takes the module's function and inputs; calls: how many attentions must have run on ours.
    """
    module = module.to(dtype)
    parameters = {name: t.detach() for name, t in module.named_parameters()}
    tensors = {name: inputs(dtype)[name] for name in names} | parameters
    reports = []

    def own(**values):
        given = {name: values.pop(name) for name in names}
        run = lambda *a, **w: torch.func.functional_call(module, values, a, w)  # noqa: E731
        return (call(run, **given),)

    def ours(**values):
        with undivided.sdpa(KERNEL) as report:
            reports.append(report)
            return own(**values)

    verdicts = compare(("out",), tensors, ours, own, own, backward=True)
    assert all(verdict.ok for verdict in verdicts), verdicts
    assert reports[0].calls == ({KERNEL: calls} if calls else {}), reports[0]


# Attention by torch's module: how it is called, and with which inputs.
ATTENTIONS = {
    "self": (lambda run, x, **w: run(x, x, x, **w)[0], ("x",)),
    "cross": (lambda run, x, memory, **w: run(x, memory, memory, **w)[0], ("x", "memory")),
    "padding": (lambda run, x, **w: run(x, x, x, key_padding_mask=padding(SEQLEN), **w)[0], ("x",)),
    "padding of the memory": (
        lambda run, x, memory, **w: run(x, memory, memory, key_padding_mask=padding(SEQLEN_MEMORY), **w)[0],
        ("x", "memory"),
    ),
    "bool mask": (lambda run, x, **w: run(x, x, x, attn_mask=causal() < 0, **w)[0], ("x",)),
    "float mask": (lambda run, x, **w: run(x, x, x, attn_mask=random(SEQLEN, SEQLEN, seed=4).to(x), **w)[0], ("x",)),
    "a mask for each head": (
        lambda run, x, **w: run(x, x, x, attn_mask=random(2 * NHEADS, SEQLEN, SEQLEN, seed=4).to(x), **w)[0],
        ("x",),
    ),
    "causal": (lambda run, x, **w: run(x, x, x, attn_mask=causal().to(x), is_causal=True, **w)[0], ("x",)),
    "no batch": (lambda run, x, **w: run(x[0], x[0], x[0], **w)[0], ("x",)),
}


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_multihead_attention(name, training):
    call, names = ATTENTIONS[name]
    agree(attention_module().train(training), lambda run, **g: call(run, need_weights=False, **g), names, calls=1)


def test_multihead_attention_that_returns_its_weights_is_torchs():
    """Weights come from a product that torch's module makes itself, without scaled_dot_product_attention."""
    call, names = ATTENTIONS["padding"]
    agree(attention_module(), lambda run, **g: call(run, need_weights=True, **g), names, calls=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transformer_layers(dtype, training):
    encoder = layer(nn.TransformerEncoderLayer).train(training)
    agree(encoder, lambda run, x: run(x, src_key_padding_mask=padding(SEQLEN)), ("x",), calls=1, dtype=dtype)
    decoder = layer(nn.TransformerDecoderLayer, norm_first=True).train(training)
    agree(decoder, decode, ("x", "memory"), calls=2, dtype=dtype)


def test_a_whole_transformer():
    torch.manual_seed(2)
    model = nn.Transformer(D_MODEL, NHEADS, 2, 2, 48, dropout=0.0, batch_first=True, device=DEVICE)

    def call(run, memory, x):
        return run(memory, x, tgt_mask=causal().to(x), tgt_is_causal=True)

    agree(model, call, ("x", "memory"), calls=6)


def test_the_fused_inference_path_does_not_bypass_us():
    """Without gradients torch's encoder would run as one op over nested tensors; its padding is then 0."""
    encoder = nn.TransformerEncoder(layer(nn.TransformerEncoderLayer), 2).eval()
    x, hidden = inputs()["x"], padding(SEQLEN)
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=hidden)
        with undivided.sdpa(KERNEL) as report:
            out = encoder(x, src_key_padding_mask=hidden)
    assert report.calls == {KERNEL: 2}
    torch.testing.assert_close(out[~hidden], expected[~hidden], atol=1e-5, rtol=1e-5)


def test_autocast_reaches_the_kernel():
    encoder, x = layer(nn.TransformerEncoderLayer), inputs()["x"]
    with torch.autocast(DEVICE.type, torch.bfloat16):
        expected = encoder(x)
        with undivided.sdpa(KERNEL) as report:
            out = encoder(x)
            out.float().sum().backward()
    assert report.calls == {KERNEL: 1} and encoder.self_attn.in_proj_weight.grad.abs().max() > 0
    torch.testing.assert_close(out, expected, atol=3e-2, rtol=3e-2)


def test_checkpointing_draws_the_same_dropout_again():
    encoder = layer(nn.TransformerEncoderLayer, dropout=0.3)

    def gradient(run):
        torch.manual_seed(5)
        x = inputs()["x"].requires_grad_()
        return torch.autograd.grad(run(x).square().sum(), x)[0]

    with undivided.sdpa(KERNEL) as report:
        plain = gradient(encoder)
        assert report.calls == {KERNEL: 1}
        again = gradient(lambda x: checkpoint(encoder, x, use_reentrant=False))
        assert report.calls == {KERNEL: 3}
    assert torch.equal(plain, again)


@pytest.mark.parametrize("corner", ["causal_lower_right", "causal_upper_left"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_torchs_causal_biases(corner, dtype):
    from torch.nn.attention import bias

    q, k = random(2, NHEADS, SEQLEN, 16, dtype=dtype), random(2, NHEADS, SEQLEN_MEMORY, 16, seed=1, dtype=dtype)
    mask = getattr(bias, corner)(SEQLEN, SEQLEN_MEMORY)
    expected = F.scaled_dot_product_attention(q, k, k, mask)
    with undivided.sdpa(KERNEL) as report:
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, k, mask), expected, atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="should not be used with causal"):
            F.scaled_dot_product_attention(q, k, k, mask, is_causal=True)
    assert report.calls == {KERNEL if dtype is torch.float32 else "torch": 1}
