"""undivided.sdpa() under torch.compile: graphs of its own, inside and outside."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.backends import mha

import undivided
from kernel_backend import KERNEL, needs_kernels
from rows import DEVICE, random  # noqa: F401  (with a DEVICE these run on the GPU where there is one)
from sdpa_modules import NHEADS, SEQLEN, TORCH, attention_module, decode, inputs, layer

# torch.compile and torch's own modules use parts of torch that torch calls deprecated, or prototypes.
pytestmark = [
    needs_kernels,
    pytest.mark.filterwarnings("ignore:.torch.jit.script"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


@pytest.fixture
def compiler():
    """What AOTAutograd hands to the compiler, graph by graph, as the names of attention's ops."""
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[list[str]] = []

    def record(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if "attention" in str(node.target)])
        return graph

    torch.compiler.reset()
    backend = aot_autograd(fw_compiler=record)
    backend.graphs = graphs
    return backend


OURS = "undivided.attention_forward.default"


def test_a_compiled_function_is_ours_inside_and_torchs_outside(compiler):
    """A graph that was made outside is not used inside, nor the reverse."""
    compiled = torch.compile(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), backend=compiler)
    q = random(2, NHEADS, SEQLEN, 16)
    expected = TORCH(q, q, q, is_causal=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(q), expected)
        with undivided.sdpa(KERNEL):
            torch.testing.assert_close(compiled(q), expected)
    assert len(compiler.graphs) == 2
    assert OURS not in compiler.graphs[0] and compiler.graphs[1] == [OURS]


@pytest.mark.parametrize("fastpath", [True, False])
def test_a_compiled_module_is_ours_inside_and_torchs_outside(compiler, fastpath):
    """torch.compile takes F.multi_head_attention_forward whole, and has guards on the fast path's switch alone."""
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(fastpath)
    try:
        module, x = attention_module(), inputs()["x"]
        compiled = torch.compile(lambda x: module(x, x, x, need_weights=False)[0], fullgraph=True, backend=compiler)
        expected = module(x, x, x, need_weights=False)[0]
        for _ in range(2):
            torch.testing.assert_close(compiled(x), expected)
            with undivided.sdpa(KERNEL) as report:
                torch.testing.assert_close(compiled(x), expected)
        assert not report.calls  # the second time the graph is there
        assert len(compiler.graphs) == 2
        assert OURS not in compiler.graphs[0] and compiler.graphs[1] == [OURS]
        assert mha.get_fastpath_enabled() is fastpath
    finally:
        mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_compiled_layer_in_training(dropout):
    torch.compiler.reset()
    decoder, given = layer(nn.TransformerDecoderLayer, dropout=dropout), inputs()
    run = lambda x, memory: decode(decoder, x, memory)  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")

    def gradients(function):
        torch.manual_seed(7)
        leaves = [t.clone().requires_grad_() for t in given.values()]
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad((out * random(*out.shape, seed=9)).sum(), leaves)]

    with undivided.sdpa(KERNEL) as report:
        expected = gradients(run)
        assert report.calls == {KERNEL: 2}
        got = gradients(compiled)
        assert report.calls[KERNEL] > 2 and set(report.calls) == {KERNEL}
        again = gradients(compiled)
    for a, b, c in zip(got, expected, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert torch.equal(a, c)


def test_compiled_dropout_breaks_no_graph_and_draws_as_eager_does(compiler):
    """Not even without fullgraph, with which torch.compile reads a number that is drawn."""
    compiled = torch.compile(lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5), backend=compiler)
    q = random(2, NHEADS, SEQLEN, 16)
    with undivided.sdpa(KERNEL):
        torch.manual_seed(4)
        first, second = compiled(q), compiled(q)
        torch.manual_seed(4)
        assert torch.equal(first, F.scaled_dot_product_attention(q, q, q, dropout_p=0.5))
    assert compiler.graphs == [[OURS]] and not torch.equal(first, second)


def test_a_bias_and_a_reason_under_compile():
    torch.compiler.reset()
    q, bias = random(2, NHEADS, SEQLEN, 16), random(1, NHEADS, SEQLEN, SEQLEN, seed=3).requires_grad_()
    attend = lambda q, bias: F.scaled_dot_product_attention(q, q, q, attn_mask=bias)  # noqa: E731
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    with undivided.sdpa(KERNEL) as report:
        out = compiled(q, bias)
        assert report.calls == {KERNEL: 1}
        compiled(q.double(), bias.double())
        assert report.calls == {KERNEL: 1, "torch": 1} and "float64" in next(iter(report.reasons))
    expected = TORCH(q, q, q, attn_mask=bias)
    torch.testing.assert_close(out, expected)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), bias) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_compiled_graphs_have_other_keys_in_torchs_caches():
    from torch.compiler import config

    before = config.cache_key_tag
    with undivided.sdpa(KERNEL):
        assert config.cache_key_tag != before and KERNEL in config.cache_key_tag
        with undivided.sdpa("reference"):
            assert "reference" in config.cache_key_tag
    assert config.cache_key_tag == before


@pytest.mark.slow
def test_no_cache_of_inductor_mixes_the_two_up(monkeypatch, tmp_path):
    """The same module, compiled outside and then anew inside: the graph of the first must not come from the cache."""
    from undivided.ops import attention_autograd

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    runs = []
    forward = attention_autograd.run_forward
    monkeypatch.setattr(attention_autograd, "run_forward", lambda *a: runs.append(1) or forward(*a))
    module, x = attention_module(), inputs()["x"]
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        for inside in (False, True, False, True):
            torch.compiler.reset()
            runs.clear()
            compiled = torch.compile(lambda x: module(x, x, x, need_weights=False)[0], fullgraph=True)
            with torch.no_grad(), undivided.sdpa(KERNEL) if inside else nullcontext():
                compiled(x)
                compiled(x)
            assert len(runs) == (2 if inside else 0)
    finally:
        mha.set_fastpath_enabled(before)
