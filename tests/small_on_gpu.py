"""One small call of every kernel that runs on a GPU, for compute-sanitizer, under which everything is slow.

It checks little itself: that results are finite. The tests compare them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import undivided
from kernel_backend import CUDA
from undivided import RelativeBias

DEVICE = "cuda"


def draw(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).requires_grad_(grad)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, device=DEVICE, dtype=torch.int32)


def attention(backend: str, head_dim: int) -> Iterator[Tensor]:
    """Two blocks of queries and three of keys, the last ones ragged: causal, padded with a bias, and packed."""
    q = draw(2, 150, 2, head_dim)
    k, v = (draw(2, 260, 1, head_dim) for _ in range(2))
    yield undivided.attention(q, k, v, causal=True, backend=backend)
    learned = backend != "cuda"  # which has no gradient of the table, and none with softcap
    words = dict(key_lengths=ints(260, 70), bias=RelativeBias(draw(32, 2, grad=learned)))
    yield undivided.attention(q, k, v, **words, backend=backend)
    with torch.set_grad_enabled(learned):
        capped = undivided.attention(q, k, v, **words, softcap=20.0, backend=backend)
    yield capped
    starts, ends = ints(0, 0, 130, 150), ints(0, 9, 139, 260)
    yield undivided.attention_packed(
        q[0], k[0], v[0], cu_seqlens_q=starts, cu_seqlens_k=ends, window=(50, 3), backend=backend
    )


def decode() -> Iterator[Tensor]:
    q, k, v = draw(2, 1, 4, 64, grad=False), draw(2, 1, 2, 64, grad=False), draw(2, 1, 2, 64, grad=False)
    caches = [draw(2, 200, 2, 64, grad=False) for _ in range(2)]
    yield undivided.attention_decode(q, *caches, ints(150, 3), k=k, v=v, backend="triton")
    blocks = [draw(8, 64, 2, 64, grad=False) for _ in range(2)]
    table = torch.arange(8, device=DEVICE, dtype=torch.int32).reshape(2, 4)
    yield undivided.attention_decode(q, *blocks, ints(150, 3), k=k, v=v, block_table=table, backend="triton")


def norms() -> Iterator[Tensor]:
    for columns in (100, 20000):  # a row in one piece, and in chunks
        x, residual, weight, bias = draw(5, columns), draw(5, columns), draw(columns), draw(columns)
        for y, summed in (
            undivided.layer_norm(x, weight, bias, residual=residual, backend="triton"),
            undivided.rms_norm(x, weight, residual=residual, backend="triton"),
        ):
            yield y + summed


def rotary() -> Iterator[Tensor]:
    cos, sin = undivided.reference.rotary_tables(150, 64, device=DEVICE)
    yield undivided.rotary(draw(2, 150, 3, 64), cos, sin, backend="triton")


def feed_forward() -> Iterator[Tensor]:
    for rows, d_model, d_ff in ((70, 40, 72), (512, 512, 2048)):  # the library's products, and our own
        x, w_in, w_gate, w_out = draw(rows, d_model), draw(d_ff, d_model), draw(d_ff, d_model), draw(d_model, d_ff)
        yield undivided.feed_forward(x, w_in, None, w_out, None, "silu", w_gate, backend="triton")


def main() -> None:
    calls = [decode(), norms(), rotary(), feed_forward()]
    if not CUDA:
        print("no CUDA C++ kernels: the GPU is no Hopper, or the extension was built without nvcc")
    for head_dim in (64, 128):
        calls += [attention(backend, head_dim) for backend in ("triton", "cuda")[: 1 + CUDA]]
    for outputs in calls:
        for out in outputs:
            if out.requires_grad:
                out.float().square().sum().backward()
            assert out.isfinite().all()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
