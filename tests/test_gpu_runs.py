"""What only a GPU can show: other devices and streams, graphs, large tensors, and the same bits a hundred times.

The case tables run on a GPU in the tests of each op, which use one where there is one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import undivided
from kernel_backend import needs_cuda
from undivided import RelativeBias

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
HALF = torch.bfloat16


def draw(*shape: int, seed: int = 0, device: str = DEVICE) -> Tensor:
    """On a stream of its own the numbers come late: what is launched on another stream reads too early."""
    wide = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    if torch.cuda.current_stream() != torch.cuda.default_stream():
        torch.cuda._sleep(20_000_000)  # cycles: ten milliseconds
    return wide.to(HALF).requires_grad_()


def attention(device: str = DEVICE, backend: str = "triton") -> list[Tensor]:
    """out and gradients: tiles that are ragged, masked and whole, and several blocks of each."""
    q, k, v = draw(2, 300, 4, 64, device=device), *(draw(2, 420, 2, 64, seed=n, device=device) for n in (1, 2))
    table = draw(32, 4, seed=3, device=device)
    lengths = torch.tensor([420, 190], dtype=torch.int32, device=device)
    leaves = [q, k, v]
    if backend == "cuda":  # which has no gradient of the table
        table = table.detach()
    else:
        leaves.append(table)
    words = dict(bias=RelativeBias(table), key_lengths=lengths, causal=True)
    out = undivided.attention(q, k, v, **words, backend=backend)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)]


def cuda_attention(device: str = DEVICE) -> list[Tensor]:
    """dq, whose last bits differ from run to run, is checked here and left out."""
    out, dq, *rest = attention(device, "cuda")
    expected = attention(device, "triton")[1]
    scale = expected.float().abs().max()
    assert (dq.float() - expected.float()).abs().max() < 0.02 * scale
    return [out, *rest]


def norm(device: str = DEVICE) -> list[Tensor]:
    x, residual, weight, bias = (draw(*shape, device=device) for shape in ((999, 640), (999, 640), (640,), (640,)))
    y, summed = undivided.layer_norm(x, weight, bias, residual=residual, backend="triton")
    grads = torch.autograd.grad((y.float().square().sum(), summed.float().sum()), (x, residual, weight, bias))
    return [y.detach(), summed.detach(), *grads]


def feed_forward(device: str = DEVICE) -> list[Tensor]:
    shapes = dict(x=(700, 512), w_in=(1024, 512), b_in=(1024,), w_out=(512, 1024), b_out=(512,), w_gate=(1024, 512))
    values = {name: draw(*shape, device=device) for name, shape in shapes.items()}
    out = undivided.feed_forward(**values, activation="silu", backend="triton")
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), list(values.values()))]


def decode(device: str = DEVICE) -> list[Tensor]:
    q = draw(3, 1, 8, 64, device=device)
    caches = [draw(3, 5000, 2, 64, seed=n, device=device) for n in (1, 2)]
    lengths = torch.tensor([5000, 1, 777], dtype=torch.int32, device=device)
    with torch.no_grad():
        return [undivided.attention_decode(q, *caches, lengths, backend="triton")]


def rotary(device: str = DEVICE) -> list[Tensor]:
    x = draw(2, 300, 4, 64, device=device)
    out = undivided.rotary(x, *undivided.reference.rotary_tables(300, 64, device=device), backend="triton")
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), x)]


RUNS = [attention, pytest.param(cuda_attention, marks=needs_cuda), norm, feed_forward, decode, rotary]
every = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))


@every
def test_a_hundred_runs_agree_to_the_bit(run):
    """In between other work: a race or a value that was never written shows as another result."""
    expected = run()
    assert all(result.isfinite().all() for result in expected)
    noise = torch.empty(64, 2**20, device=DEVICE)
    for seed in range(100):
        noise.normal_() if seed % 2 else noise.fill_(float("nan"))
        assert same(run(), expected), seed


@every
def test_on_a_stream_of_its_own(run):
    expected = run()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        got = run()
    stream.synchronize()
    assert same(got, expected)


@every
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_device_than_the_current_one(run):
    expected = run()
    with torch.cuda.device(0):
        got = run("cuda:1")
        assert torch.cuda.current_device() == 0
    assert all(result.device.index == 1 for result in got) and same(got, expected)


def small_calls(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> dict[str, Callable[[], Tensor]]:
    """By the name of a run: the same op on tensors that exist already, as a graph needs it."""
    x, w_in = q.flatten(2), k[0].flatten(1)
    cos, sin = undivided.reference.rotary_tables(200, 64, device=q.device)
    return {
        "attention": lambda: undivided.attention(q, k, v, causal=True, backend="triton"),
        "cuda_attention": lambda: undivided.attention(q, k, v, causal=True, backend="cuda"),
        "norm": lambda: undivided.rms_norm(x, w_in[0], backend="triton"),
        "feed_forward": lambda: undivided.feed_forward(x, w_in, None, w_in.T, backend="triton"),
        "decode": lambda: undivided.attention_decode(q[:, :1], k, v, lengths, backend="triton"),
        "rotary": lambda: undivided.rotary(q, cos, sin, backend="triton"),
    }


@every
def test_in_a_graph(run):
    """Captured after one call outside, which compiles; replayed on other numbers in the same places."""
    q, k, v = (draw(2, 200, 4, 64, seed=n).detach() for n in range(3))
    lengths = torch.tensor([200, 77], dtype=torch.int32, device=DEVICE)
    call = small_calls(q, k, v, lengths)[run.__name__]
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(3):
        for tensor in (q, k, v):
            tensor.normal_()
        lengths -= 1
        expected = call()
        graph.replay()
        assert torch.equal(captured, expected)


@pytest.mark.parametrize("backend", ["triton", pytest.param("cuda", marks=needs_cuda)])
def test_offsets_beyond_32_bits(backend):
    """Batch rows and positions 2**31 elements apart, of which only those that are read exist twice."""
    free, _ = torch.cuda.mem_get_info()
    memory = 3 * 2**31
    if free < 1.2 * 2 * memory:
        pytest.skip(f"needs {memory * 2 / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} are free")
    whole = torch.empty(memory, dtype=HALF, device=DEVICE)
    near = [draw(3, 140, 2, 64, seed=n).detach() for n in range(3)]
    for strides in ((2**31 - 2**24, 128, 64), (2**20, 2**24, 64)):  # batch rows, then positions, far apart
        far = [whole.as_strided((3, 140, 2, 64), (*strides, 1), n * 2**18) for n in range(3)]
        for target, source in zip(far, near, strict=True):
            target.copy_(source)
        assert max((size - 1) * stride for size, stride in zip((3, 140), strides, strict=False)) > 2**31
        got, expected = (undivided.attention(*t, causal=True, backend=backend) for t in (far, near))
        assert torch.equal(got, expected)
