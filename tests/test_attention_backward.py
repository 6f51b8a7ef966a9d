"""The public attention, backward, on every backend that runs here."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.autograd import forward_ad

import undivided
from rows import DEVICE, LOW, backends, qkv, random, run, same
from undivided import ALiBi, RelativeBias
from undivided.ops.attention_table import ATTENTION

BACKENDS = backends(ATTENTION)
KERNELS = [row.name for row in ATTENTION if row.name not in ("sdpa", "reference")]
SEQLEN = 19


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def loss(out: torch.Tensor) -> torch.Tensor:
    return (out.float() * random(*out.shape, seed=9)).sum()


# What else is learned, beside q, k and v of 2 heads: a bias for each score, one that they share, a table, sinks.
LEARNED = {
    "nothing": {},
    "bias": dict(bias=random(1, 2, SEQLEN, SEQLEN)),
    "shared bias": dict(bias=random(1, 1, SEQLEN)),
    "table and sinks": dict(table=random(8, 2), sinks=random(2)),
}


SMALL = qkv(batch=1, nheads=2, nheads_kv=1)


def call(backend: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    words = dict(tensors)
    if "table" in words:
        words["bias"] = RelativeBias(words.pop("table"), 9)
    return run(undivided.attention, backend=backend, **words)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_subset_of_inputs_may_be_frozen(backend, name):
    """What is learned gets the gradient that it has when all are learned; what is frozen gets none."""
    made = {**dict(zip("qkv", (t.detach() for t in SMALL), strict=True)), **LEARNED[name]}

    def gradients(learned: tuple[str, ...]) -> dict[str, torch.Tensor | None]:
        leaves = {key: value.clone().requires_grad_(key in learned) for key, value in made.items()}
        out = call(backend, leaves)
        assert out.requires_grad == bool(learned)
        if learned:
            loss(out).backward()
        return {key: leaf.grad for key, leaf in leaves.items()}

    full = gradients(tuple(made))
    assert all(grad is not None and grad.abs().max() > 0 for key, grad in full.items() if name != "shared bias")
    for count in range(len(made)):
        for learned in itertools.combinations(made, count):
            for key, grad in gradients(learned).items():
                if key not in learned:
                    assert grad is None
                else:
                    torch.testing.assert_close(
                        grad, full[key], msg=lambda text, key=key, on=learned: f"{key} {on} {text}"
                    )


UPSTREAM = {
    "sum": lambda out: torch.ones((), device=DEVICE).expand(out.shape),  # what out.sum() sends back: stride 0
    "rows": lambda out: random(out.shape[0], 1, 1, 1).expand(out.shape),
    "transposed": lambda out: random(*out.transpose(1, 3).shape).transpose(1, 3),
    "head first": lambda out: random(*out.transpose(1, 2).shape).transpose(1, 2),
}


@pytest.mark.parametrize("name", UPSTREAM)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_of_the_gradient_that_arrives(backend, name):
    tensors = qkv()
    out = run(undivided.attention, *tensors, backend=backend, causal=True)
    dout = UPSTREAM[name](out)
    copied = dout.clone(memory_format=torch.contiguous_format)
    assert dout.stride() != copied.stride()
    got, expected = (torch.autograd.grad(out, tensors, d, retain_graph=True) for d in (dout, copied))
    assert all(same(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs_sum_their_gradients_once(backend):
    """One row of keys for the whole batch, one query for all, a bias that the caller expanded."""
    q, k, v = qkv()
    bias = random(1, 1, 1, SEQLEN).requires_grad_()
    leaves = [t.detach().narrow(dim, 0, 1).requires_grad_() for t, dim in ((q, 1), (k, 0), (v, 0))]

    def gradients(backend: str):
        wide = [leaf.expand(t.shape) for leaf, t in zip(leaves, (q, k, v), strict=True)]
        out = run(undivided.attention, *wide, bias=bias.expand(2, 4, SEQLEN, SEQLEN), backend=backend)
        return torch.autograd.grad(loss(out), (*leaves, bias))

    for got, expected in zip(gradients(backend), gradients("reference"), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_permuted_bias_gets_its_gradient(backend):
    """As (seqlen, seqlen, nheads) of an embedding: its strides are those of no contiguous tensor."""
    tensors = qkv()
    bias = random(SEQLEN, SEQLEN, 4).requires_grad_()

    def gradient(backend: str):
        out = run(undivided.attention, *tensors, bias=bias.permute(2, 0, 1), backend=backend)
        return torch.autograd.grad(loss(out), bias)[0]

    torch.testing.assert_close(gradient(backend), gradient("reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_lse_alone_has_a_gradient(backend):
    tensors = qkv()
    results = []
    for name in (backend, "reference"):
        _, lse = run(undivided.attention, *tensors, causal=True, return_lse=True, backend=name)
        results.append(torch.autograd.grad(lse.sin().sum(), tensors[:2]))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


HIDING = {
    "lengths": dict(key_lengths=ints(9, 9)),
    "lengths and mask": dict(key_lengths=ints(13, 9), mask=random(2, 1, SEQLEN, SEQLEN) > -0.3),
    "mask of keys": dict(mask=(torch.arange(SEQLEN, device=DEVICE) != 13)),
    "offset": dict(causal=True, query_offset=-6),
    "window": dict(window=(2, 0), query_offset=-6),
}


@pytest.mark.parametrize(
    ("dtype", "bad"), [(torch.float32, math.nan), (torch.float32, math.inf), *((dtype, math.nan) for dtype in LOW)]
)
@pytest.mark.parametrize("name", HIDING)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hidden_key_or_value_reaches_no_gradient(backend, name, dtype, bad):
    """Key 13 is hidden from every query: its gradient is 0 and the others do not know of it, to the bit."""
    results = []
    for value in (None, bad):
        tensors = qkv(seqlen_q=SEQLEN, dtype=dtype)
        if value is not None:
            with torch.no_grad():
                tensors[1][:, 13], tensors[2][:, 13] = value, value
        out = run(undivided.attention, *tensors, backend=backend, **HIDING[name])
        results.append((out, *torch.autograd.grad(loss(out), tensors)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all((grad[:, 13] == 0).all() for grad in results[1][2:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_later_key_reaches_no_gradient_of_an_earlier_query(backend):
    """A bad key that later queries see: the loss of the earlier ones and their dq stay as they were."""
    results = []
    for bad in (0.0, math.nan):
        q, k, v = qkv()
        with torch.no_grad():
            k[:, 13] += bad
            v[:, 13] += bad
        out = run(undivided.attention, q, k, v, backend=backend, causal=True)
        results.append((out[:, :13], torch.autograd.grad(loss(out[:, :13]), q)[0][:, :13]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("sizes", [dict(batch=0), dict(seqlen_q=0), dict(seqlen_k=0)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do(backend, sizes):
    tensors = qkv(**sizes)
    sinks = random(4).requires_grad_() if backend not in ("sdpa", "auto") else None
    words = {} if sinks is None else dict(sinks=sinks)
    out = run(undivided.attention, *tensors, backend=backend, **words)
    grads = torch.autograd.grad(out.sum(), [*tensors, *words.values()])
    assert [g.shape for g in grads] == [t.shape for t in (*tensors, *words.values())]
    assert all((g == 0).all() for g in grads)


DETERMINISTIC = {
    "causal": dict(causal=True),
    "dropout": dict(dropout_p=0.3, seed=11),
    "table": dict(bias=RelativeBias(random(8, 4).requires_grad_(), 9)),
    "bias": dict(bias=random(1, 4, 1, 90).requires_grad_()),
    "alibi": dict(bias=ALiBi(random(4).abs()), key_lengths=ints(5, 90)),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_two_runs_agree_to_the_bit(name):
    words = DETERMINISTIC[name]
    tensors = qkv(seqlen_q=70, seqlen_k=90, dtype=torch.bfloat16)
    learned = getattr(words.get("bias"), "table", words.get("bias"))
    leaves = [*tensors, *([learned] if isinstance(learned, torch.Tensor) else [])]
    runs = [torch.autograd.grad(loss(undivided.attention(*tensors, **words)), leaves) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_two_packed_runs_agree_to_the_bit():
    tensors = [t.detach()[0].requires_grad_() for t in qkv(seqlen_q=70, seqlen_k=90)]
    words = dict(cu_seqlens_q=ints(0, 30, 70), cu_seqlens_k=ints(0, 41, 90), causal=True)
    runs = [torch.autograd.grad(loss(undivided.attention_packed(*tensors, **words)), tensors) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_a_second_derivative_is_refused_not_lost(backend):
    """A gradient penalty beside a loss would otherwise be left out without a word."""
    q, k, v = qkv()
    out = run(undivided.attention, q, k, v, backend=backend)
    plain = torch.autograd.grad(loss(out), q, retain_graph=True)[0]
    dq = torch.autograd.grad(loss(out), q, create_graph=True)[0]
    assert same(dq.detach(), plain) and dq.requires_grad
    with pytest.raises(
        NotImplementedError, match="attention: the kernels have no second derivatives; pass backend='ref"
    ):
        (loss(out) + dq.square().sum()).backward()


def test_the_reference_has_second_derivatives():
    q, k, v = qkv(dtype=torch.float64)
    dq = torch.autograd.grad(loss(undivided.attention(q, k, v, backend="reference")), q, create_graph=True)[0]
    assert torch.autograd.grad(dq.square().sum(), k)[0].abs().max() > 0


@pytest.mark.parametrize("backend", KERNELS)
def test_torch_func_and_forward_mode_are_refused_not_ignored(backend):
    q, k, v = (t.detach() for t in qkv())
    op = lambda q: run(undivided.attention, q, k, v, backend=backend)  # noqa: E731
    text = "attention: the kernels do not take part in torch.func's transforms; pass backend='reference'"
    op(q)
    for transform in (
        lambda: torch.func.grad(lambda q: op(q).sum())(q),
        lambda: torch.func.vmap(op)(torch.stack([q, q])),
        lambda: torch.func.jvp(op, (q,), (q,)),
    ):
        with pytest.raises(NotImplementedError, match=text):
            transform()
    with forward_ad.dual_level():
        op(q)  # nothing here has a tangent
        with pytest.raises(NotImplementedError, match="attention: the kernels have no forward-mode derivatives"):
            op(forward_ad.make_dual(q, q))


def test_the_reference_takes_part_in_torch_func():
    q, k, v = (t.detach() for t in qkv(dtype=torch.float64))
    op = lambda q: undivided.attention(q, k, v, causal=True, backend="reference")  # noqa: E731
    leaf = q.clone().requires_grad_()
    expected = torch.autograd.grad(loss(op(leaf)), leaf)[0]
    torch.testing.assert_close(torch.func.grad(lambda q: (op(q) * random(*q.shape, seed=9)).sum())(q), expected)
    torch.testing.assert_close(torch.func.vmap(op)(torch.stack([q, 2 * q])), torch.stack([op(q), op(2 * q)]))
    step = 1e-6
    tangent = torch.func.jvp(op, (q,), (torch.ones_like(q),))[1]
    torch.testing.assert_close(tangent, (op(q + step) - op(q - step)) / (2 * step), rtol=1e-6, atol=1e-8)
