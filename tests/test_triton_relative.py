"""The relative bias inside the Triton kernels: a scalar far from the diagonal, the table near it, and its gradient."""

from __future__ import annotations

import pytest
import torch

from undivided import reference
from undivided.testing import compare
from undivided.testing.cases import AttentionCase

triton = pytest.importorskip("triton", reason="Triton is not installed")
import triton.language as tl  # noqa: E402

from undivided.kernels.attention.plan import buckets_on, relative_buckets  # noqa: E402
from undivided.kernels.attention.relative import add_bucket, add_near, add_relative, near_range  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAN = float("nan")
# Eight blocks of keys; beyond a span of 40 on either side lies more than one.
M, N, KEYS, SPAN = 16, 32, 256, 40
# Where the first of M queries stands: before all keys, so that all are far, after them, at edges of blocks and between.
AT = (-300, -56, -55, -1, 0, 1, 71, 72, 73, 130, 295, 296, 400)


@triton.jit
def row_kernel(
    starts,  # int32 (rows,): where the first query of each row of tiles stands
    values, buckets, span,  # (2 * span + 1,) twice
    ds,  # (M, KEYS)
    biased, parts, table,  # (rows, M, KEYS); int32 (rows, KEYS / N); (rows, BLOCK_B)
    M: tl.constexpr, N: tl.constexpr, KEYS: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The three stretches of a row of tiles: far before the queries (0), near (1), far after them (2)."""
    row, m = tl.program_id(0), 48
    at = tl.load(starts + row) - m
    low, high = near_range(m + at, M, span, 0, KEYS, N)
    stretches = (0, low, high, KEYS)
    i = m + tl.arange(0, M)
    sums = tl.zeros((BLOCK_B,), tl.float32)
    for part in tl.static_range(3):
        end = 2 * span if part == 2 else 0
        for n in range(stretches[part], stretches[part + 1], N):
            far: tl.constexpr = part != 1
            j = n + tl.arange(0, N)
            inner = tl.arange(0, M)[:, None] * KEYS + j[None, :]
            s = add_relative(tl.zeros((M, N), tl.float32), values, tl.load(values + end), i, j, at, span, far)
            tl.store(biased + row * M * KEYS + inner, s)
            tl.store(parts + row * (KEYS // N) + n // N, part)
            gradient = tl.load(ds + inner)
            if far:
                sums = add_bucket(sums, gradient, tl.load(buckets + end), BLOCK_B)
            else:
                sums = add_near(sums, gradient, buckets, m, n, at, span, M, N, BLOCK_B)
    tl.store(table + row * BLOCK_B + tl.arange(0, BLOCK_B), sums)


def run(values: torch.Tensor, buckets: torch.Tensor, ds: torch.Tensor) -> list[torch.Tensor]:
    """The bias (rows, M, KEYS), the stretch of each tile (rows, tiles), the sums of ds by bucket (rows, 32)."""
    starts = torch.tensor(AT, dtype=torch.int32, device=DEVICE)
    biased = torch.full((len(AT), M, KEYS), NAN, device=DEVICE)
    parts = torch.full((len(AT), KEYS // N), -1, dtype=torch.int32, device=DEVICE)
    table = torch.full((len(AT), 32), NAN, device=DEVICE)
    given = (t.to(DEVICE) for t in (values, buckets.int()))
    row_kernel[(len(AT),)](starts, *given, SPAN, ds.to(DEVICE), biased, parts, table, M, N, KEYS, 32)
    return [t.cpu() for t in (biased, parts, table)]


def distances() -> torch.Tensor:
    """(rows, M, KEYS)"""
    return torch.arange(KEYS) - torch.arange(M)[:, None] - torch.tensor(AT)[:, None, None]


def test_far_tiles_add_one_number_and_near_ones_look_theirs_up():
    """All numbers between the ends are NaN: a far tile that read any of them would show it."""
    values = torch.full((2 * SPAN + 1,), NAN)
    values[0], values[-1] = -3.0, 4.0
    nothing, d = torch.zeros(M, KEYS), distances()
    biased, parts, _ = run(values, torch.zeros(2 * SPAN + 1), nothing)
    tiles = d.unflatten(2, (-1, N)).transpose(1, 2).flatten(2)  # (rows, tiles, M * N)
    expected = torch.where((tiles >= SPAN).all(-1), 2, torch.where((tiles <= -SPAN).all(-1), 0, 1))
    assert torch.equal(parts.long(), expected) and set(expected.flatten().tolist()) == {0, 1, 2}
    numbers = torch.where(d >= SPAN, 4.0, torch.where(d <= -SPAN, -3.0, NAN))
    torch.testing.assert_close(biased, numbers, equal_nan=True, rtol=0, atol=0)
    biased, _, _ = run(torch.arange(-SPAN, SPAN + 1.0), torch.zeros(2 * SPAN + 1), nothing)
    assert torch.equal(biased, d.clamp(-SPAN, SPAN).float())


@pytest.mark.parametrize("num_buckets", [32, 7])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_each_gradient_is_added_to_its_bucket(num_buckets, bidirectional):
    """Whole numbers, whose sums are exact. In one direction all later keys share the bucket of distance 0."""
    ds = torch.randint(-9, 10, (M, KEYS), generator=torch.Generator().manual_seed(3)).float()
    buckets = relative_buckets(SPAN, num_buckets, SPAN, bidirectional)
    expected = torch.zeros(len(AT), 32)
    for row, d in enumerate(distances()):
        expected[row].index_add_(0, buckets[d.clamp(-SPAN, SPAN) + SPAN].flatten(), ds.flatten())
    assert torch.equal(run(torch.zeros(2 * SPAN + 1), buckets, ds)[2], expected)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 16), (7, 20), (4, 3), (128, 512), (33, 81)])
def test_the_span_is_where_the_last_bucket_begins(num_buckets, max_distance, bidirectional):
    buckets = buckets_on(DEVICE, num_buckets, max_distance, bidirectional).long().cpu()
    span = len(buckets) // 2
    d = torch.arange(-2 * max_distance, 2 * max_distance + 1)
    expected = reference.relative_buckets(d, num_buckets, max_distance, bidirectional)
    assert torch.equal(buckets[d.clamp(-span, span) + span], expected)
    assert len(buckets) == 2 * span + 1 and (buckets[0] != buckets[1] or buckets[-1] != buckets[-2])
    if (num_buckets, max_distance, bidirectional) == (32, 128, True):
        assert span == 91


@pytest.mark.parametrize("bias", ["relative", "relative_causal"])
def test_far_tiles_on_both_sides(bias):
    """200 is three blocks of 64 and a part: of the first and of the last, two are more than 64 positions away. The rule
    of a decoder runs without its causal mask too."""
    case = AttentionCase("far", "", batch=1, seqlen_q=200, seqlen_k=200, nheads_kv=1, head_dim=8, bias=bias)
    verdicts = compare.attention(case, torch.float32, "triton", str(DEVICE))
    assert {verdict.name for verdict in verdicts} == {"out", "lse", "dq", "dk", "dv", "dtable"}
    assert not [verdict for verdict in verdicts if not verdict.ok]


def test_memory_is_linear_in_seqlen(monkeypatch):
    """With a relative bias, forward and backward make no tensor as large as the scores."""
    from torch.utils._python_dispatch import TorchDispatchMode

    import undivided

    sizes = []
    # As if no mode were active: it would see the op as one, and not what is made inside.
    monkeypatch.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made = result if isinstance(result, tuple | list) else [result]
            sizes.extend(t.untyped_storage().nbytes() for t in made if isinstance(t, torch.Tensor))
            return result

    q, k, v = (torch.randn(1, 130, 1, 8, device=DEVICE).requires_grad_() for _ in range(3))
    table = torch.randn(32, 1, device=DEVICE).requires_grad_()
    bias = reference.RelativeBias(table, 64)
    with Sizes():
        out = undivided.attention(q, k, v, bias=bias, backend="triton")
        torch.autograd.grad(out.sum(), (q, k, v, table))
    assert sizes and max(sizes) < 4 * 130 * 130 // 4  # bytes: a quarter of the scores
