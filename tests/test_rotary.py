"""The rotary kernels, Triton's in the interpreter (or on a GPU) and C++, against the float64 reference."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

import undivided
from kernel_backend import needs_cpu, needs_triton
from rows import DEVICE
from undivided import reference
from undivided.dispatch import load
from undivided.ops.rotary_table import ROTARY
from undivided.testing import ROTARY_CASES, compare, poison

MODULES = {row.name: row.module for row in ROTARY}


@pytest.fixture(params=[pytest.param("triton", marks=needs_triton), pytest.param("cpu", marks=needs_cpu)])
def backend(request):
    return request.param


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def tables(head_dim, longest=9):
    return [table.to(DEVICE) for table in reference.rotary_tables(longest, head_dim)]


@pytest.fixture
def turned(backend):
    return partial(undivided.rotary, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ROTARY_CASES, ids=lambda case: case.name)
def test_forward_and_backward(case, dtype, backend):
    with poison():
        verdicts = compare.rotary(case, dtype, backend, DEVICE)
    assert len(verdicts) == 2 and not [verdict for verdict in verdicts if not verdict.ok]


def test_any_strides(turned):
    """Views of a projection, columns of wider tables, every second position, and the gradient of a sum (stride 0)."""
    x = draw(2, 5, 3, 3, 8)[:, :, 1]
    cos, sin = (draw(9, 7, seed=seed)[:, 2:6] for seed in (1, 2))
    positions = torch.tensor([[1, 9, 3, 9, 5, 9, 7, 9, 0, 9]], device=DEVICE)[:, ::2].expand(2, 5)
    assert x.stride() == (360, 72, 8, 1) and cos.stride(0) == 7 and positions.stride() == (0, 2)
    leaf = x.detach().requires_grad_()
    got = turned(leaf, cos, sin, positions)
    got.sum().backward()
    assert torch.equal(got, turned(x.contiguous(), cos.contiguous(), sin.contiguous(), positions.contiguous()))
    torch.testing.assert_close(got.detach(), reference.rotary(x, cos, sin, positions))
    other = x.detach().requires_grad_()
    reference.rotary(other, cos, sin, positions).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)
    assert torch.equal(turned(x.transpose(2, 3).contiguous().transpose(2, 3), cos, sin, positions), got)


def test_second_derivatives(turned):
    """The gradient is linear in dy, and its own gradient is the turn forward."""
    cos, sin = tables(8)
    x, dy = draw(1, 3, 2, 8).requires_grad_(), draw(1, 3, 2, 8, seed=1).requires_grad_()
    (dx,) = torch.autograd.grad(turned(x, cos, sin), x, dy, create_graph=True)
    (second,) = torch.autograd.grad(dx, dy, draw(1, 3, 2, 8, seed=2))
    torch.testing.assert_close(second, reference.rotary(draw(1, 3, 2, 8, seed=2), cos, sin))


def test_a_position_that_the_tables_do_not_have_gives_nan(backend, turned):
    """On a GPU, and compiled, the op does not look at the values, so the kernel must not read beyond the tables."""
    cos, sin = tables(8)
    x, positions = draw(1, 4, 2, 8), torch.tensor([8, 9, -1, 2**40], device=DEVICE)
    y = load(MODULES[backend]).rotary_forward(x, cos, sin, positions)
    assert y[0, 1:].isnan().all() and torch.equal(y[:, :1], turned(x[:, :1], cos, sin, positions[:1]))


def test_nothing_to_do(turned):
    cos, sin = tables(8)
    assert turned(draw(0, 4, 2, 8), cos, sin).shape == (0, 4, 2, 8)
    assert turned(draw(2, 0, 2, 8), cos, sin).shape == (2, 0, 2, 8)


@pytest.mark.parametrize("positions", [None, (2, 0, 8), ((1, 1, 3),)], ids=str)
def test_the_registered_op(positions, backend):
    x, (cos, sin) = draw(1, 3, 2, 8).requires_grad_(), tables(8)
    positions = None if positions is None else torch.tensor(positions, device=DEVICE)
    arguments = (MODULES[backend], x, cos, sin, positions, False)
    torch.library.opcheck(torch.ops.undivided.rotary, arguments)


def test_compiled_in_one_graph(turned):
    x, (cos, sin) = draw(1, 3, 2, 8).requires_grad_(), tables(8)
    compiled = torch.compile(lambda x: turned(x, cos, sin), fullgraph=True, backend="aot_eager")
    grads = [
        torch.autograd.grad(function(x).square().sum(), x)[0] for function in (compiled, lambda x: turned(x, cos, sin))
    ]
    assert torch.equal(compiled(x), turned(x, cos, sin)) and torch.equal(*grads)


def test_what_it_refuses(turned):
    x, (cos, sin) = draw(1, 3, 2, 8), tables(8)
    with pytest.raises(undivided.BackendRefused, match="dtype float64 is not one of float32, bfloat16, float16"):
        turned(x.double(), cos, sin)
    with pytest.raises(undivided.BackendRefused, match="cos or sin require a gradient.*detach them"):
        turned(x, cos.requires_grad_(), sin)
    with pytest.raises(NotImplementedError, match="rotary: the kernels do not take part in torch.func's transforms"):
        torch.func.grad(lambda x: turned(x, cos.detach(), sin).sum())(x)


# Address space that is not touched costs no memory. An offset of 32 bits would end the process.
FAR_APART = """
import sys
from importlib import import_module
import torch
from undivided import reference

rotary_forward = import_module(sys.argv[1]).rotary_forward

memory = torch.empty(2**31 + 2**20, dtype=torch.float16)
cos, sin = reference.rotary_tables(3, 16)
for strides in ((2**30 + 32, 16, 16, 1), (16, 2**30 + 32, 16, 1)):
    x = memory.as_strided((3, 3, 1, 16) if strides[1] == 16 else (1, 3, 1, 16), strides)
    x.copy_(torch.randn(x.shape))
    assert torch.equal(rotary_forward(x, cos, sin, None), rotary_forward(x.contiguous(), cos, sin, None))
print("agree")
"""


def test_offsets_beyond_32_bits(backend):
    environment = dict(os.environ, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        [sys.executable, "-c", FAR_APART, MODULES[backend]], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout.strip()) == (0, "agree"), done.stderr[-2000:]


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_instruction_set(dtype, variant):
    """Halves around a vector and a block of two, more tokens than one thread takes, and the same bits from any number
    of threads."""
    for half in (1, 3, 4, 8, 15, 16, 17, 31, 32, 33, 48, 128):
        x = draw(2, 23, 5, 2 * half, seed=half, dtype=dtype)
        cos, sin = tables(2 * half, longest=40)
        positions = torch.randint(40, (2, 23), generator=torch.Generator().manual_seed(half))
        got = undivided.rotary(x, cos, sin, positions, backend="cpu")
        # Rounded once from float32; a sum of two products may be rounded otherwise by an instruction that fuses them.
        wide = reference.rotary(x.double(), cos, sin, positions)
        small = dict(rtol=torch.finfo(dtype).eps, atol=1e-6)
        torch.testing.assert_close(got.double(), wide, **small)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        alone = undivided.rotary(x, cos, sin, positions, backend="cpu")
        torch.set_num_threads(before)
        assert torch.equal(got, alone)


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_streaming_stores_give_the_same_bits(dtype, variant):
    """Where x and y fill the last-level cache they take another store instruction."""
    x = draw(1, 4, 8, 128, dtype=dtype).repeat(1, 3200, 1, 1)
    cos, sin = tables(128, longest=x.shape[1])
    turned = undivided.rotary(x, cos, sin, backend="cpu")
    small = undivided.rotary(x[:, -9:], cos, sin, torch.arange(x.shape[1])[-9:], backend="cpu")
    assert turned.nbytes > 24 * 2**20 and torch.equal(turned[:, -9:], small)
