"""The public layer norm and RMS norm, backward, on every backend that runs here."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad

import undivided
from rows import DEVICE, backends, random, run, same_numbers
from undivided.ops.norm_table import LAYER_NORM, RMS_NORM

OPS = {"layer_norm": (undivided.layer_norm, LAYER_NORM), "rms_norm": (undivided.rms_norm, RMS_NORM)}
ROWS = [(name, backend) for name, (_, table) in OPS.items() for backend in backends(table)]
every_row = pytest.mark.parametrize(("name", "backend"), ROWS)
kernels = pytest.mark.parametrize(("name", "backend"), [row for row in ROWS if row[1] not in ("auto", "reference")])


def inputs(name: str, rows: int = 7, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    made = {"x": random(rows, 33, dtype=dtype), "residual": random(rows, 33, seed=1, dtype=dtype)}
    made |= {"weight": random(33, seed=2, dtype=dtype)}
    made |= {"bias": random(33, seed=3, dtype=dtype)} if name == "layer_norm" else {}
    return made


def losses(outputs: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    return [(out.float() * random(*out.shape, seed=9 + n)).sum() for n, out in enumerate(outputs)]


@every_row
def test_every_subset_of_inputs_may_be_frozen(name, backend):
    made = inputs(name)

    def gradients(learned: tuple[str, ...]) -> dict[str, torch.Tensor | None]:
        leaves = {key: value.clone().requires_grad_(key in learned) for key, value in made.items()}
        outputs = run(OPS[name][0], backend=backend, **leaves)
        if learned:
            sum(losses(outputs)).backward()
        return {key: leaf.grad for key, leaf in leaves.items()}

    full = gradients(tuple(made))
    assert all(grad is not None and grad.abs().max() > 0 for grad in full.values())
    for count in range(len(made)):
        for learned in itertools.combinations(made, count):
            for key, grad in gradients(learned).items():
                assert grad is None if key not in learned else torch.equal(grad, full[key]), (key, learned)


@pytest.mark.parametrize("which", [0, 1])
@every_row
def test_either_output_alone_has_a_gradient(name, backend, which):
    """y without the sum, and the sum without y: the other arrives as None."""
    results = []
    for row in (backend, "reference"):
        leaves = {key: value.clone().requires_grad_() for key, value in inputs(name).items()}
        loss = losses(run(OPS[name][0], backend=row, **leaves))[which]
        results.append(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


UPSTREAM = {
    "sum": lambda shape: torch.ones((), device=DEVICE).expand(shape),  # what y.sum() sends back: stride 0
    "rows": lambda shape: random(shape[0], 1).expand(shape),
    "columns": lambda shape: random(1, shape[1]).expand(shape),
    "transposed": lambda shape: random(*shape[::-1]).T,
}


@pytest.mark.parametrize("upstream", UPSTREAM)
@every_row
def test_any_strides_of_the_gradient_that_arrives(name, backend, upstream):
    leaves = {key: value.requires_grad_() for key, value in inputs(name).items()}
    outputs = run(OPS[name][0], backend=backend, **leaves)
    given = UPSTREAM[upstream](outputs[0].shape)
    copied = given.clone(memory_format=torch.contiguous_format)
    assert given.stride() != copied.stride()
    got, expected = (
        torch.autograd.grad(outputs, list(leaves.values()), (d, d), retain_graph=True) for d in (given, copied)
    )
    for a, b in zip(got, expected, strict=True):
        same_numbers(backend, a, b)


@every_row
def test_wider_weights_get_gradients_of_their_dtype(name, backend):
    x, weight = random(7, 33, dtype=torch.bfloat16), random(33, dtype=torch.float64).requires_grad_()
    y = run(OPS[name][0], x, weight, backend=backend)
    assert torch.autograd.grad(y.float().sum(), weight)[0].dtype == torch.float64


@pytest.mark.parametrize("name", OPS)
def test_two_runs_agree_to_the_bit(name):
    runs = []
    for _ in range(2):
        leaves = {key: value.requires_grad_() for key, value in inputs(name, 300, torch.bfloat16).items()}
        runs.append(torch.autograd.grad(sum(losses(OPS[name][0](**leaves))), list(leaves.values())))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@kernels
def test_a_second_derivative_is_refused_not_lost(name, backend):
    x, weight = random(7, 33).requires_grad_(), random(33).requires_grad_()
    y = run(OPS[name][0], x, weight, backend=backend)
    plain = torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
    dx = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
    assert torch.equal(dx.detach(), plain)
    with pytest.raises(NotImplementedError, match="the kernels have no second derivatives; pass backend='reference'"):
        (y.sum() + dx.square().sum()).backward()


@kernels
def test_torch_func_and_forward_mode_are_refused_not_ignored(name, backend):
    x = random(7, 33)
    op = lambda x: run(OPS[name][0], x, backend=backend)  # noqa: E731
    op(x)
    for transform in (lambda: torch.func.grad(lambda x: op(x).sum())(x), lambda: torch.func.vmap(op)(x[None])):
        with pytest.raises(NotImplementedError, match=f"{name}: the kernels do not take part in torch.func's"):
            transform()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{name}: the kernels have no forward-mode"):
        op(forward_ad.make_dual(x, x))
