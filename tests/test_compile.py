"""torch.compile and the registered ops."""

import pytest
import torch

import undivided
from undivided.rules import EXTENSION_MISSING

pytestmark = pytest.mark.skipif(EXTENSION_MISSING is not None, reason="needs the compiled extension")


def parameters(d_model=32, d_ff=48):
    torch.manual_seed(0)
    shapes = dict(weight=(d_model,), w_in=(d_ff, d_model), b_in=(d_ff,), w_out=(d_model, d_ff), w_gate=(d_ff, d_model))
    shapes |= dict(bias=(d_model,), table=(8, 4))
    return {name: (torch.randn(shape) * 0.2).requires_grad_() for name, shape in shapes.items()}


def block(x, lengths, p):
    """A block that uses every op."""
    normed, summed = undivided.layer_norm(x, p["weight"], p["bias"], residual=x)
    heads = normed.unflatten(-1, (4, 8))
    out = undivided.attention(
        heads, heads, heads, causal=True, key_lengths=lengths, bias=undivided.RelativeBias(p["table"], 16, False)
    )
    x = summed + out.flatten(-2)
    x = undivided.rms_norm(x, p["weight"])
    return undivided.feed_forward(x, p["w_in"], p["b_in"], p["w_out"], None, "silu", p["w_gate"])


def test_fullgraph_gives_the_same_result_and_gradients():
    p = parameters()
    x, lengths = torch.randn(2, 7, 32), torch.tensor([7, 4], dtype=torch.int32)
    expected = block(x, lengths, p)
    grads = torch.autograd.grad(expected.square().sum(), list(p.values()))
    got = torch.compile(block, fullgraph=True, backend="aot_eager")(x, lengths, p)
    got_grads = torch.autograd.grad(got.square().sum(), list(p.values()))
    torch.testing.assert_close(got, expected)
    for name, a, b in zip(p, got_grads, grads, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_a_new_sequence_length_does_not_recompile():
    p = parameters()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=count)
    for seqlen in (7, 9, 12, 31):
        lengths = torch.tensor([seqlen, 4], dtype=torch.int32)
        x = torch.randn(2, seqlen, 32)
        torch.testing.assert_close(compiled(x, lengths, p), block(x, lengths, p))
    assert len(graphs) == 1


def opcheck(op, *args):
    torch.library.opcheck(op, args)


def test_opcheck_norms():
    x, w = torch.randn(5, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    module = "undivided.cpu.layer_norm"
    opcheck(torch.ops.undivided.norm_forward, "layer_norm", module, x, w, None, torch.randn(5, 16), 1e-5)
    opcheck(torch.ops.undivided.norm_forward, "rms_norm", "undivided.cpu.rms_norm", x, w, None, None, 1e-5)
