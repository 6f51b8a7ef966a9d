"""undivided.sdpa() around torch's modules, under torch.compile and checkpointing; and that it leaves nothing behind."""

from __future__ import annotations

import doctest
import threading
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.backends import mha
from torch.utils.checkpoint import checkpoint

import undivided
from kernel_backend import KERNEL, needs_kernels
from rows import DEVICE, random
from undivided.testing.compare import compare

# torch.compile and torch's own modules use parts of torch that torch calls deprecated, or prototypes.
pytestmark = [
    needs_kernels,
    pytest.mark.filterwarnings("ignore:.torch.jit.script"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
TORCH = torch._C._nn.scaled_dot_product_attention
D_MODEL, NHEADS, SEQLEN, SEQLEN_MEMORY = 32, 4, 7, 9
LENGTHS = {SEQLEN: torch.tensor([7, 4]), SEQLEN_MEMORY: torch.tensor([5, 9])}


def padding(seqlen: int) -> torch.Tensor:
    """True is padding, as torch's modules have it."""
    return (torch.arange(seqlen) >= LENGTHS[seqlen][:, None]).to(DEVICE)


def causal() -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(SEQLEN, device=DEVICE)


def inputs(dtype=torch.float32) -> dict[str, torch.Tensor]:
    return {
        "x": random(2, SEQLEN, D_MODEL, dtype=dtype),
        "memory": random(2, SEQLEN_MEMORY, D_MODEL, seed=1, dtype=dtype),
    }


def attention_module(**words) -> nn.MultiheadAttention:
    torch.manual_seed(2)
    return nn.MultiheadAttention(D_MODEL, NHEADS, batch_first=True, device=DEVICE, **words)


def layer(kind, **words) -> nn.Module:
    torch.manual_seed(2)
    words = dict(dropout=0.0, batch_first=True, device=DEVICE) | words
    return kind(D_MODEL, NHEADS, 48, **words)


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


def decode(run, x, memory):
    masks = dict(tgt_key_padding_mask=padding(SEQLEN), memory_key_padding_mask=padding(SEQLEN_MEMORY))
    return run(x, memory, tgt_mask=causal() < 0, **masks)


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


# torch.compile.


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


# Coming and going.


def own_state() -> tuple:
    from torch.compiler import config

    return F.scaled_dot_product_attention, mha.get_fastpath_enabled(), config.cache_key_tag


def attend() -> torch.Tensor:
    q = random(1, 2, 5, 16)
    return F.scaled_dot_product_attention(q, q, q)


def test_everything_is_as_before_afterwards():
    before = own_state()
    assert before[0] is TORCH
    with undivided.sdpa(KERNEL) as report:
        held = F.scaled_dot_product_attention
        assert held is not TORCH and not mha.get_fastpath_enabled()
        attend()
    assert own_state() == before
    q = random(1, 2, 5, 16)
    torch.testing.assert_close(held(q, q, q), TORCH(q, q, q), atol=0, rtol=0)  # whoever kept it has torch's
    assert report.calls == {KERNEL: 1} and undivided.sdpa_report() is report


def test_an_exception_inside_leaves_nothing_behind():
    before = own_state()
    with pytest.raises(ZeroDivisionError), undivided.sdpa(KERNEL):
        1 / 0  # noqa: B018
    assert own_state() == before


def test_blocks_nest_and_the_inner_backend_holds():
    before = own_state()
    with undivided.sdpa(KERNEL) as outer:
        attend()
        with undivided.sdpa("reference") as inner:
            attend()
        attend()
    assert own_state() == before
    assert inner is outer and outer.calls == {KERNEL: 2, "reference": 1}
    with undivided.sdpa(KERNEL) as later:
        assert later is not outer and not later.calls


def test_blocks_may_end_in_another_order():
    before = own_state()
    first, second = undivided.sdpa(KERNEL), undivided.sdpa("reference")
    report = first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    attend()
    assert report.calls == {"reference": 1}
    second.__exit__(None, None, None)
    assert own_state() == before


def test_the_same_block_as_a_decorator():
    @undivided.sdpa(KERNEL)
    def run():
        attend()
        return undivided.sdpa_report()

    assert run().calls == run().calls == {KERNEL: 1}


def test_install_and_uninstall():
    before = own_state()
    try:
        report = undivided.install_sdpa(KERNEL)
        attend()
        assert undivided.install_sdpa("reference") is report
        attend()
        with undivided.sdpa(KERNEL):
            attend()
            undivided.uninstall_sdpa()
            attend()
        assert report.calls == {KERNEL: 3, "reference": 1}
    finally:
        undivided.uninstall_sdpa()
    assert own_state() == before
    undivided.uninstall_sdpa()
    assert own_state() == before


def test_it_holds_for_every_thread():
    with undivided.sdpa(KERNEL) as report:
        threads = [threading.Thread(target=attend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert report.calls == {KERNEL: 4}


def test_what_somebody_else_put_there_is_called_and_kept(monkeypatch):
    calls = []

    def theirs(*values, **words):
        calls.append(words)
        return TORCH(*values, **words)

    monkeypatch.setattr(F, "scaled_dot_product_attention", theirs)
    q = random(1, 2, 5, 16, dtype=torch.float64)
    with undivided.sdpa(KERNEL) as report:
        F.scaled_dot_product_attention(q, q, q)
    assert report.calls == {"torch": 1} and len(calls) == 1 and F.scaled_dot_product_attention is theirs
    with undivided.sdpa(KERNEL):
        F.scaled_dot_product_attention = TORCH
    assert F.scaled_dot_product_attention is TORCH


def test_a_default_device_does_not_disturb():
    """torch.device as a context is a mode that overrides functions."""
    with undivided.sdpa(KERNEL) as report, torch.device(DEVICE):
        attend()
    assert report.calls == {KERNEL: 1}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_jit_keeps_torchs_function():
    x = inputs()["x"]
    with undivided.sdpa(KERNEL) as report:
        module = attention_module()
        scripted = torch.jit.script(module)
        expected = module(x, x, x, need_weights=False)[0]
        assert report.calls.pop(KERNEL) == 1
        torch.testing.assert_close(scripted(x, x, x, need_weights=False)[0], expected)
        assert not report.calls
        traced = torch.jit.trace(lambda q: F.scaled_dot_product_attention(q, q, q), random(1, 2, 5, 16))
        (reason,) = report.reasons
    assert "scaled_dot_product_attention" in str(traced.graph) and "torch.jit.trace" in reason


@pytest.mark.parametrize("activate", [undivided.install_sdpa, lambda name: undivided.sdpa(name).__enter__()])
def test_an_unknown_backend_is_refused(activate):
    before = own_state()
    for name in ("fast", "sdpa"):
        with pytest.raises(
            ValueError, match=f"backend='{name}' is unknown here; allowed: auto, .*triton, cpu, reference"
        ):
            activate(name)
    assert own_state() == before


@pytest.mark.skipif(KERNEL != "cpu", reason="auto takes torch's kernels on this machine")
def test_the_example_and_a_reason_in_full():
    """Of a machine without a GPU: what backends for another one say would hide the cause."""
    example = doctest.DocTestFinder().find(undivided.sdpa, "sdpa", globs={"torch": torch, "undivided": undivided})[0]
    assert doctest.DocTestRunner().run(example).failed == 0 and example.examples
    with undivided.sdpa() as report:
        F.scaled_dot_product_attention(*(random(1, 2, 5, 16, dtype=torch.float64),) * 3)
    (reason,) = report.reasons
    assert "cpu: dtype float64 is not one of" in reason and "cuda" not in reason


def test_a_report_without_calls_says_so():
    with undivided.sdpa(KERNEL) as report:
        pass
    assert str(report).splitlines() == ["scaled_dot_product_attention: calls by backend", "  none"]
