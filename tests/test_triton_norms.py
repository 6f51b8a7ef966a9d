"""The Triton norms in the interpreter (or on a GPU): the shared case table, and what it cannot show."""

import importlib.util
import os
import subprocess
import sys
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

import undivided
from kernel_backend import needs_interpreter
from rows import same_numbers
from undivided.testing import NORM_CASES, NormCase, check, compare, poison

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = ["layer_norm", "rms_norm"]
both = pytest.mark.parametrize("op", OPS)
# Elements on either side of a fenced buffer: more than a tile of the interpreter's reaches past a short matrix.
FENCE = 2**14


@contextmanager
def fenced():
    """Every buffer of the launchers lies between stretches of NaN, which must still be NaN at the end."""
    original, buffers = torch.Tensor.new_empty, []

    def new_empty(self, size, **words):
        shape = torch.Size([size] if isinstance(size, int) else size)
        whole = original(self, shape.numel() + 2 * FENCE, **words).fill_(torch.nan)
        buffers.append(whole)
        return whole[FENCE : FENCE + shape.numel()].view(shape)

    with mock.patch.object(torch.Tensor, "new_empty", new_empty):
        yield
    assert buffers
    for whole in buffers:
        assert whole[:FENCE].isnan().all() and whole[-FENCE:].isnan().all()


def call(op, x, weight, bias, **words):
    both = (weight, bias) if op == "layer_norm" else (weight,)
    return getattr(undivided, op)(x, *both, eps=1e-5, backend="triton", **words)


def inputs(rows=37, columns=70, dtype=torch.float32, seed=0):
    """x, residual, weight, bias, dy, dsummed."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, columns), (rows, columns), (columns,), (columns,), (rows, columns), (rows, columns)]
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def results(op, x, residual, weight, bias, dy, dsummed):
    """y, summed and the gradients of x, residual, weight and, for layer norm, bias."""
    leaves = [t.detach().requires_grad_() for t in (x, residual, weight, bias)][: 4 if op == "layer_norm" else 3]
    y, summed = call(op, leaves[0], leaves[2], leaves[-1], residual=leaves[1])
    return [y.detach(), summed.detach(), *torch.autograd.grad((y, summed), leaves, (dy, dsummed))]


def same_bits(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def alike(first, second):
    for a, b in zip(first, second, strict=True):
        same_numbers("triton", a, b)


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", NORM_CASES, ids=lambda case: case.name)
def test_forward_and_backward(case, dtype, op):
    with poison():
        verdicts = compare.norm(op, case, dtype, "triton", DEVICE)
    assert not [verdict for verdict in verdicts if not verdict.ok]


# The interpreter gives each of 4 programs (2 for each of 3 chunks) blocks of 8 rows: one row; one over a block; one
# over a round of all programs; a last block of 7. 20000 columns go by chunks on a GPU too, the last one short.
@both
@pytest.mark.parametrize("rows, columns", [(1, 40), (9, 40), (33, 40), (39, 1), (23, 2100), (3, 20000)])
def test_every_row_is_counted_and_no_other_is_written(rows, columns, op):
    with fenced():
        verdicts = compare.norm(op, NormCase("ragged", rows, columns, residual=True), torch.float32, "triton", DEVICE)
    assert not [verdict for verdict in verdicts if not verdict.ok]


@both
@pytest.mark.parametrize("columns", [70, 2100])
def test_two_runs_agree_to_the_bit(columns, op):
    given = inputs(columns=columns)
    assert same_bits(results(op, *given), results(op, *given))


@both
@pytest.mark.parametrize("columns", [70, 2100])
def test_a_row_does_not_depend_on_its_neighbours(columns, op):
    x, residual, weight, bias, dy, dsummed = inputs(11, columns)
    together = results(op, x, residual, weight, bias, dy, dsummed)
    rows = slice(10, 11)
    alone = results(op, x[rows], residual[rows], weight, bias, dy[rows], dsummed[rows])
    assert same_bits([t[rows] for t in together[:4]], alone[:4])


@both
@pytest.mark.parametrize("columns", [70, 2100])
def test_rows_may_lie_any_distance_apart(columns, op):
    given = inputs(columns=columns)
    wanted = results(op, *given)

    def apart(t):
        if t.dim() == 1:
            return torch.stack([t, t + 1], 1)[:, 0]
        return torch.cat([torch.full_like(t, torch.nan), t, torch.full_like(t, torch.nan)], 1)[:, columns : 2 * columns]

    strided = [apart(t) for t in given]
    assert strided[0].stride() == (3 * columns, 1) and strided[2].stride() == (2,)
    alike(results(op, *strided), wanted)
    transposed = [t if t.dim() == 1 else t.t().contiguous().t() for t in given]
    assert transposed[0].stride() == (1, 37)
    alike(results(op, *transposed), wanted)


@both
def test_an_expanded_gradient(op):
    """`y.sum().backward()` gives a dy whose strides are 0."""
    x, residual, weight, bias, _, _ = inputs()
    one, row = torch.ones(1, 1, device=DEVICE), torch.ones(1, 70, device=DEVICE)
    wanted = results(op, x, residual, weight, bias, one.repeat(37, 70), one.repeat(37, 70))
    for expanded in (one.expand(37, 70), row.expand(37, 70)):
        alike(results(op, x, residual, weight, bias, expanded, expanded), wanted)


@both
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [70, 2100])
def test_the_rounded_sum_is_what_is_normalised(columns, dtype, op):
    x, residual, weight, bias, dy, _ = inputs(columns=columns, dtype=dtype)
    y, summed = call(op, x, weight, bias, residual=residual)
    assert torch.equal(summed, x + residual)
    assert torch.equal(y, call(op, summed, weight, bias))


@both
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_any_of_the_inputs_may_be_frozen(wanted, op):
    """wanted: which of x, residual and weight need a gradient."""
    x, residual, weight, bias, dy, dsummed = inputs()
    full = results(op, x, residual, weight, bias, dy, dsummed)
    leaves = [t.detach().requires_grad_(n in wanted) for n, t in enumerate((x, residual, weight))]
    outputs = call(op, leaves[0], leaves[2], bias, residual=leaves[1])
    grads = torch.autograd.grad(outputs, [leaves[n] for n in wanted], (dy, dsummed))
    assert same_bits(grads, [full[2 + n] for n in wanted])


@both
def test_a_gradient_of_the_sum_alone_passes_through(op):
    x, residual, weight, bias, _, dsummed = inputs()
    x.requires_grad_()
    _, summed = call(op, x, weight, bias, residual=residual)
    assert torch.equal(torch.autograd.grad(summed, x, dsummed)[0], dsummed)


@pytest.mark.parametrize("columns", [500, 4000])
def test_a_large_mean_keeps_its_digits(columns):
    """Also where the statistics of chunks are merged."""
    x = inputs(5, columns)[0] + 4096.0
    expected, honest = (torch.nn.functional.layer_norm(t, (columns,)) for t in (x.double(), x))
    verdict = check("y", call("layer_norm", x, None, None), expected, honest)
    assert verdict.ok, verdict


@both
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("columns", [70, 2100])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_with_nan_or_infinity_stay_alone(bad, columns, op):
    x, residual, weight, bias, dy, dsummed = inputs(11, columns)
    clean = results(op, x, residual, weight, bias, dy, dsummed)
    x[2, 5] = bad
    dirty = results(op, x, residual, weight, bias, dy, dsummed)
    others = torch.arange(11, device=DEVICE) != 2
    assert same_bits([t[others] for t in dirty[:4]], [t[others] for t in clean[:4]])
    assert dirty[0][2].isnan().any() and dirty[2][2].isnan().any()


@both
def test_weights_in_float64(op):
    case = NormCase("float64 weights", 9, 70, weight_dtype="float64")
    assert all(verdict.ok for verdict in compare.norm(op, case, torch.float32, "triton", DEVICE))


# The memory is committed when it is touched: 4 GiB of address space, a few pages of memory. An offset of 32 bits
# would end the process, which is why it is one of its own.
FAR_APART = """
import torch
from undivided.ops import triton_layer_norm, triton_rms_norm

memory = torch.empty(2**31 + 2**20, dtype=torch.float16)
x, residual, dy, dsummed = (memory.as_strided((3, 64), (2**30 + 64, 1), 64 * n) for n in (2, 4, 6, 8))
for tensor in (x, residual, dy, dsummed):
    tensor.copy_(torch.randn(3, 64))
weight, bias = torch.randn(64), torch.randn(64)

def results(x, residual, dy, dsummed):
    y, summed, mean, rstd = triton_layer_norm.layer_norm_forward(x, weight, bias, residual, 1e-5)
    y2, summed2, rstd2 = triton_rms_norm.rms_norm_forward(x, weight, residual, 1e-5)
    grads = triton_layer_norm.layer_norm_backward(dy, dsummed, x, weight, mean, rstd, True)
    return y, summed, y2, summed2, *grads, *triton_rms_norm.rms_norm_backward(dy, dsummed, x, weight, rstd2)

far = results(x, residual, dy, dsummed)
near = results(*(tensor.clone() for tensor in (x, residual, dy, dsummed)))
assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))
assert x.stride(0) * 2 > 2**31 and all(result.isfinite().all() for result in far)
print("agree")
"""


@needs_interpreter
def test_rows_further_apart_than_32_bits_reach():
    environment = dict(os.environ, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run([sys.executable, "-c", FAR_APART], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "agree"), done.stderr[-2000:]


@both
def test_the_registered_op(op):
    x, residual, weight, bias, _, _ = inputs(5, 16)
    x.requires_grad_()
    weight.requires_grad_()
    own = bias if op == "layer_norm" else None
    for extra in (None, residual):
        arguments = (op, f"undivided.ops.triton_{op}", x, weight, own, extra, 1e-5)
        torch.library.opcheck(torch.ops.undivided.norm_forward, arguments)


@both
def test_compiled_in_one_graph(op):
    x, residual, weight, bias, dy, dsummed = inputs(5, 16)
    wanted = results(op, x, residual, weight, bias, dy, dsummed)
    leaves = [t.requires_grad_() for t in (x, residual, weight)]
    compiled = torch.compile(lambda x, r, w: call(op, x, w, bias, residual=r), fullgraph=True, backend="aot_eager")
    y, summed = compiled(*leaves)
    grads = torch.autograd.grad((y, summed), leaves, (dy, dsummed))
    assert same_bits([y, summed, *grads], wanted[:5])


@both
def test_float64_is_refused_with_the_cure(op):
    x = torch.randn(2, 8, dtype=torch.float64, device=DEVICE)
    with pytest.raises(undivided.BackendRefused, match="dtype float64 is not one of float32, bfloat16, float16"):
        call(op, x, None, None)
