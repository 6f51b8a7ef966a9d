"""The public feed-forward network, backward, on every backend that runs here."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad

import undivided
from rows import DEVICE, backends, random, run
from undivided.ops.feed_forward_table import FEED_FORWARD

BACKENDS = backends(FEED_FORWARD)
KERNELS = [row.name for row in FEED_FORWARD if row.name != "reference"]


def inputs(rows: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    shapes = dict(x=(rows, 16), w_in=(24, 16), b_in=(24,), w_out=(16, 24), b_out=(16,), w_gate=(24, 16))
    return {name: random(*shape, seed=n, dtype=dtype) * 0.5 for n, (name, shape) in enumerate(shapes.items())}


def loss(out: torch.Tensor) -> torch.Tensor:
    return (out.float() * random(*out.shape, seed=9)).sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_subset_of_inputs_may_be_frozen(backend):
    made = inputs()

    def gradients(learned: tuple[str, ...]) -> dict[str, torch.Tensor | None]:
        leaves = {key: value.clone().requires_grad_(key in learned) for key, value in made.items()}
        out = run(undivided.feed_forward, backend=backend, activation="silu", **leaves)
        if learned:
            loss(out).backward()
        return {key: leaf.grad for key, leaf in leaves.items()}

    full = gradients(tuple(made))
    assert all(grad is not None and grad.abs().max() > 0 for grad in full.values())
    for count in range(len(made)):
        for learned in itertools.combinations(made, count):
            for key, grad in gradients(learned).items():
                if key not in learned:
                    assert grad is None, (key, learned)
                else:
                    torch.testing.assert_close(grad, full[key])


UPSTREAM = {
    "sum": lambda shape: torch.ones((), device=DEVICE).expand(shape),  # what out.sum() sends back: stride 0
    "rows": lambda shape: random(shape[0], 1).expand(shape),
    "transposed": lambda shape: random(*shape[::-1]).T,
}


@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_of_the_gradient_that_arrives(backend, upstream):
    leaves = {name: value.requires_grad_() for name, value in inputs().items()}
    out = run(undivided.feed_forward, backend=backend, **leaves)
    given = UPSTREAM[upstream](out.shape)
    copied = given.clone(memory_format=torch.contiguous_format)
    assert given.stride() != copied.stride()
    got, expected = (torch.autograd.grad(out, list(leaves.values()), d, retain_graph=True) for d in (given, copied))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_any_strides_get_their_gradients(backend):
    """A weight kept as its transpose, and a bias that is a column."""
    made = inputs()
    made["w_in"], made["w_gate"], made["w_out"] = (made[name].T.contiguous() for name in ("w_in", "w_gate", "w_out"))
    made["b_in"] = torch.stack([made["b_in"]] * 2, 1)

    def gradients(backend: str) -> tuple[torch.Tensor, ...]:
        leaves = {name: value.clone().requires_grad_() for name, value in made.items()}
        seen = {name: leaf.T if name[0] == "w" else leaf for name, leaf in leaves.items()}
        seen["b_in"] = leaves["b_in"][:, 0]
        out = run(undivided.feed_forward, backend=backend, **seen)
        return torch.autograd.grad(loss(out), list(leaves.values()))

    for got, expected in zip(gradients(backend), gradients("reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_zero_gradients(backend):
    leaves = {name: value.requires_grad_() for name, value in inputs(rows=0).items()}
    grads = torch.autograd.grad(
        run(undivided.feed_forward, backend=backend, **leaves).sum(), list(leaves.values()), materialize_grads=True
    )
    assert all(g.shape == t.shape and (g == 0).all() for g, t in zip(grads, leaves.values(), strict=True))


def test_two_runs_agree_to_the_bit():
    runs = []
    for _ in range(2):
        leaves = {name: value.requires_grad_() for name, value in inputs(300, torch.bfloat16).items()}
        runs.append(torch.autograd.grad(loss(undivided.feed_forward(**leaves)), list(leaves.values())))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_a_second_derivative_is_refused_not_lost(backend):
    leaves = {name: value.requires_grad_() for name, value in inputs().items()}
    out = run(undivided.feed_forward, backend=backend, **leaves)
    plain = torch.autograd.grad(loss(out), leaves["x"], retain_graph=True)[0]
    dx = torch.autograd.grad(loss(out), leaves["x"], create_graph=True)[0]
    torch.testing.assert_close(dx.detach(), plain)
    with pytest.raises(NotImplementedError, match="feed_forward: the kernels have no second derivatives; pass"):
        (out.sum() + dx.square().sum()).backward()


@pytest.mark.parametrize("backend", KERNELS)
def test_torch_func_and_forward_mode_are_refused_not_ignored(backend):
    values = inputs()
    x = values.pop("x")
    op = lambda x: run(undivided.feed_forward, x, backend=backend, **values)  # noqa: E731
    op(x)
    for transform in (lambda: torch.func.grad(lambda x: op(x).sum())(x), lambda: torch.func.vmap(op)(x[None])):
        with pytest.raises(NotImplementedError, match="feed_forward: the kernels do not take part in torch.func's"):
            transform()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="feed_forward: the kernels have no forward"):
        op(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(5, 16), (16,), (2, 3, 16)])
def test_the_result_may_be_changed_in_place(backend, shape):
    made = inputs() | dict(x=random(*shape))
    x = made["x"].requires_grad_()
    out = run(undivided.feed_forward, backend=backend, **made)
    (expected,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    out += 1
    out *= 2
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], 2 * expected)
