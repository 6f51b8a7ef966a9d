"""torch.compile and the registered ops."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

import undivided
from rows import DEVICE, qkv, random, same
from undivided import RelativeBias
from undivided.ops.attention_plain import Numbers, Tensors
from undivided.ops.attention_table import ATTENTION
from undivided.ops.feed_forward_table import FEED_FORWARD
from undivided.ops.norm_table import LAYER_NORM
from undivided.rules import EXTENSION_MISSING, INTERPRETING, TRITON_MISSING

TRITON = TRITON_MISSING is None and (INTERPRETING or DEVICE.type == "cuda")
needs_triton = pytest.mark.skipif(not TRITON, reason="needs Triton and a GPU or its interpreter")
D_MODEL, D_FF = 32, 48


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def parameters() -> dict[str, torch.Tensor]:
    shapes = dict(weight=(D_MODEL,), w_in=(D_FF, D_MODEL), b_in=(D_FF,), w_out=(D_MODEL, D_FF), w_gate=(D_FF, D_MODEL))
    shapes |= dict(bias=(D_MODEL,), table=(8, 4), sinks=(4,))
    return {name: (random(*shape, seed=n) * 0.2).requires_grad_() for n, (name, shape) in enumerate(shapes.items())}


def block(x, lengths, p, backend="auto"):
    """Attention, norms and the feed-forward network."""
    normed, summed = undivided.layer_norm(x, p["weight"], p["bias"], residual=x)
    heads = normed.unflatten(-1, (4, 8))
    words = dict(causal=True, key_lengths=lengths, bias=RelativeBias(p["table"], 16, False), backend=backend)
    out = undivided.attention(heads, heads, heads, **words)
    x = undivided.rms_norm(summed + out.flatten(-2), p["weight"])
    return undivided.feed_forward(x, p["w_in"], p["b_in"], p["w_out"], None, "silu", p["w_gate"])


def turned(x, lengths, p, backend="auto"):
    """Rotary positions, and two parts of the keys merged."""
    cos, sin = undivided.reference.rotary_tables(x.shape[1], 8, device=x.device)
    heads = undivided.rotary(x.unflatten(-1, (4, 8)), cos, sin)
    words = dict(sinks=p["sinks"], softcap=5.0, return_lse=True, backend=backend)
    parts = [
        undivided.attention(heads, heads[:, :3], heads[:, :3], key_lengths=lengths - 3, **words),
        undivided.attention(heads, heads[:, 3:], heads[:, 3:], window=(2, 3), query_offset=-3, **words),
    ]
    return undivided.merge_attention(*zip(*parts, strict=True))[0].flatten(-2)


def batch(seqlen: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random(2, seqlen, D_MODEL), torch.tensor([6, 4], dtype=torch.int32, device=DEVICE)


def results(function, seqlen: int, p: dict[str, torch.Tensor], *rest) -> list[torch.Tensor]:
    """The output and every gradient."""
    x, lengths = batch(seqlen)
    x.requires_grad_()
    out = function(x, lengths, p, *rest)
    return [
        out.detach(),
        *torch.autograd.grad((out * random(*out.shape, seed=9)).sum(), [x, *p.values()], materialize_grads=True),
    ]


def agree(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for n, (a, b) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(a, b, msg=lambda text, n=n: f"result {n}: {text}")


every_backend = pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=needs_triton)])


@pytest.mark.parametrize("part", [block, turned])
@every_backend
def test_fullgraph_gives_the_same_result_and_gradients(backend, part):
    p = parameters()
    compiled = torch.compile(part, fullgraph=True, backend="aot_eager")
    agree(results(compiled, 7, p, backend), results(part, 7, p, backend))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("part", [block, turned], ids=["block", "turned"])
def test_a_graph_of_torch_jit_trace_gives_the_result_for_other_inputs(part):
    (x, lengths), p = batch(7), {name: value.detach() for name, value in parameters().items()}
    other = random(*x.shape, seed=1)
    traced = torch.jit.trace(lambda x: part(x, lengths, p), x, check_trace=False)
    torch.testing.assert_close(traced(other), part(other, lengths, p))


@pytest.mark.slow
def test_inductor_gives_the_same_result_and_gradients():
    p = parameters()
    agree(results(torch.compile(block, fullgraph=True), 7, p), results(block, 7, p))


def test_a_new_sequence_length_does_not_recompile():
    """Forward and backward, with every op of kernels: a second graph of either raises."""
    p, backend = parameters(), "triton" if TRITON else "auto"
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seqlen in (7, 9, 31):
            agree(results(compiled, seqlen, p, backend), results(block, seqlen, p, backend))


def test_autocast_is_compiled_too():
    p = parameters()

    def run(x, lengths, p):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return block(x, lengths, p)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    out, expected = compiled(*batch(7), p), run(*batch(7), p)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("name", ["causal", "mask", "key_lengths"])
def test_a_hidden_nan_reaches_no_row_of_a_compiled_call(name):
    """A graph cannot look at values, so it takes another way than an eager call does."""
    q, k, v = (t.detach() for t in qkv())
    mask = torch.ones(19, 19, dtype=torch.bool, device=DEVICE).tril()
    words = {
        "causal": dict(causal=True),
        "mask": dict(mask=mask),
        "key_lengths": dict(key_lengths=torch.tensor([19, 9], dtype=torch.int32, device=DEVICE)),
    }[name]
    compiled = torch.compile(lambda *t: undivided.attention(*t, **words), fullgraph=True, backend="aot_eager")
    clean = compiled(q, k, v)
    torch.testing.assert_close(clean, undivided.attention(q, k, v, **words))
    k[:, 13], v[:, 13] = math.nan, math.nan
    dirty = compiled(q, k, v)
    hidden = slice(0, 13) if name != "key_lengths" else slice(0, 19)
    assert torch.equal(clean[1, hidden], dirty[1, hidden])
    assert dirty[0, 13:].isnan().all()


@needs_triton
def test_dropout_draws_a_seed_a_call_and_keeps_it_for_the_backward():
    """out is linear in v: with the same elements dropped, sum(dv * v) is sum(out * weights)."""
    q, k, v = qkv()
    attend = lambda q, k, v: undivided.attention(q, k, v, dropout_p=0.5, backend="triton")  # noqa: E731
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    first, second = compiled(q, k, v), compiled(q, k, v)
    assert not torch.equal(first, second)
    for out in (first, second):
        weights = random(*out.shape, seed=9)
        dv = torch.autograd.grad((out * weights).sum(), v)[0]
        torch.testing.assert_close((dv * v).sum(), (out * weights).sum())


@needs_triton
def test_a_packed_batch_compiles():
    q, k, v = (t.detach()[0].requires_grad_() for t in qkv())
    starts = torch.tensor([0, 5, 5, 19], dtype=torch.int32, device=DEVICE)

    def attend(q, k, v, starts):
        words = dict(cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=14, max_seqlen_k=14)
        return undivided.attention_packed(q, k, v, causal=True, backend="triton", **words)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    got, expected = compiled(q, k, v, starts), attend(q, k, v, starts)
    torch.testing.assert_close(got, expected)
    for a, b in zip(*(torch.autograd.grad(out.sum(), (q, k, v)) for out in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


# The checks of torch.library.opcheck on every registered op, by the module of every backend of kernels.


def modules(table) -> list[str]:
    missing = {"cpu": EXTENSION_MISSING is not None or DEVICE.type != "cpu", "triton": not TRITON}
    missing["cuda"] = True  # neither float32 nor a backward
    rows = [row for row in table if row.name not in ("sdpa", "reference") and not missing.get(row.name, False)]
    return [row.module for row in rows if importlib.util.find_spec(row.module) is not None]


def numbers(**changes) -> tuple:
    return tuple(Numbers(scale=0.3, **changes))


def dense_call() -> tuple[Tensors, tuple]:
    """A bias at permuted strides, sinks, a mask that broadcasts, lengths: every gradient but the table's."""
    bias = random(9, 11, 2).permute(2, 0, 1)[None].requires_grad_()
    ints = lambda *values: torch.tensor(values, dtype=torch.int32, device=DEVICE)  # noqa: E731
    mask = torch.ones(2, 1, 1, 11, dtype=torch.bool, device=DEVICE)
    q, k, v = qkv(seqlen_q=9, seqlen_k=11, nheads=2, nheads_kv=1)
    words = dict(sinks=random(2).requires_grad_(), mask=mask, key_lengths=ints(11, 5), query_lengths=ints(9, 3))
    return Tensors(q, k, v, bias, **words), numbers(right=0, softcap=5.0, offset=2)


def table_call() -> tuple[Tensors, tuple]:
    """A transposed table over a packed batch, with dropout."""
    q, k, v = (t.detach()[0].requires_grad_() for t in qkv(seqlen_q=9, seqlen_k=11, nheads=2, nheads_kv=1))
    starts = [torch.tensor(values, dtype=torch.int32, device=DEVICE) for values in ([0, 4, 9], [0, 7, 11])]
    table = random(2, 8).T.requires_grad_()
    words = dict(relative_table=table, cu_seqlens_q=starts[0], cu_seqlens_k=starts[1], drawn_seed=torch.tensor(6))
    return Tensors(q, k, v, **words), numbers(max_distance=9, dropout_p=0.2, seed=5, max_seqlen_q=5, max_seqlen_k=7)


CALLS = {"dense": dense_call, "table": table_call}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("module", modules(ATTENTION))
def test_opcheck_attention(module, call):
    tensors, rest = CALLS[call]()
    torch.library.opcheck(torch.ops.undivided.attention_forward, (module, *tensors, *rest))
    plain = [t if t is None else t.detach() for t in tensors]
    out, lse = torch.ops.undivided.attention_forward(module, *plain, *rest)
    needs = (call == "dense", call == "table", call == "dense")
    for dlse in (None, random(*lse.shape)):
        given = (module, random(*out.shape), dlse, out, lse, *plain, *rest, *needs)
        torch.library.opcheck(torch.ops.undivided.attention_backward, given)


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("module", modules(LAYER_NORM))
def test_opcheck_norms(module, op):
    module = module.replace("layer_norm", op)
    ops, layer = torch.ops.undivided, op == "layer_norm"
    x, weight, residual = random(5, 16).requires_grad_(), random(32)[::2].requires_grad_(), random(5, 16)
    bias = random(16).requires_grad_() if layer else None
    for given in ((weight, bias, residual), (weight, None, None), (None, None, residual)):
        torch.library.opcheck(ops.norm_forward, (op, module, x, *given, 1e-5))
    x, weight = x.detach(), weight.detach()
    _, summed, mean, rstd = ops.norm_forward(op, module, x, weight, None, residual, 1e-5)
    for dsummed, w, has_bias in ((None, weight, False), (random(5, 16), weight, layer), (None, None, False)):
        given = (op, module, random(5, 16), dsummed, summed, w, mean, rstd, has_bias)
        torch.library.opcheck(ops.norm_backward, given)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("module", modules(FEED_FORWARD))
def test_opcheck_feed_forward(module, gated):
    """With a weight at transposed strides."""
    shapes = dict(x=(5, 16), w_in=(24, 16), b_in=(24,), w_out=(16, 24), b_out=(16,), w_gate=(24, 16))
    values = [random(*shape, seed=n) * 0.5 for n, shape in enumerate(shapes.values())]
    values[1] = random(16, 24).T
    values[5] = values[5] if gated else None
    leaves = [t if t is None else t.requires_grad_() for t in values]
    torch.library.opcheck(torch.ops.undivided.feed_forward_forward, (module, "silu", True, *leaves))
    x, w_in, b_in, w_out, b_out, w_gate = (t if t is None else t.detach() for t in leaves)
    torch.library.opcheck(
        torch.ops.undivided.feed_forward_forward, (module, "silu", False, x, w_in, b_in, w_out, b_out, w_gate)
    )
    _, h, g = torch.ops.undivided.feed_forward_forward(module, "silu", True, x, w_in, b_in, w_out, b_out, w_gate)
    for needs in ([True, True, True, True, True, gated], [False, True, False, False, True, False]):
        given = (module, "silu", random(5, 16), x, h, g if gated else None, w_in, w_out, w_gate, needs)
        torch.library.opcheck(torch.ops.undivided.feed_forward_backward, given)


def test_every_registered_op_is_checked_above():
    """A new op must come with its opcheck."""
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("undivided::")}
    checked = {f"{op}_{way}" for op in ("attention", "norm", "feed_forward") for way in ("forward", "backward")}
    checked |= {"attention_decode", "attention_decode_append"}  # in test_attention_decode.py
    checked |= {"rotary"}  # in test_rotary.py
    assert names == {f"undivided::{name}" for name in checked}


def test_bits_of_the_two_ways_agree():
    """Eager calls an autograd.Function, a graph the registered op: the same launcher, so the same bits."""
    x, weight = random(7, 33), random(33)
    compiled = torch.compile(undivided.rms_norm, fullgraph=True, backend="aot_eager")
    assert same(compiled(x, weight), undivided.rms_norm(x, weight))
