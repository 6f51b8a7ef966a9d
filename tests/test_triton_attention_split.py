"""How the Triton attention shares its work: keys split among programs, and packed blocks longest first."""

import importlib.util

import pytest
import torch

import undivided
from undivided.reference import visible
from undivided.testing import compare, poison
from undivided.testing.cases import ATTENTION_CASES

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Several key blocks and one, bounds on either side, rows and parts that see nothing, and what acts on the whole row.
SPLIT = ("one query", "127 x 257", "no keys", "head_dim_v 24", "window causal", "key lengths", "query lengths",
         "mask hqk", "sinks", "dropout", "packed cross", "everything")  # fmt: skip
CASES = {case.name: case for case in ATTENTION_CASES}


@pytest.fixture
def parts(monkeypatch):
    """How many parts the launcher cuts the keys into: those that it found itself, in order, or a given number."""
    from undivided.kernels.attention import forward

    found = []

    def force(number=None):
        original = forward.splits_of

        def splits_of(*sizes):
            found.append(original(*sizes) if number is None else number)
            return found[-1]

        monkeypatch.setattr(forward, "splits_of", splits_of)
        return found

    return force


@pytest.mark.parametrize("name", SPLIT)
def test_split_keys(name, parts):
    found = parts(3)
    with poison():
        verdicts = compare.attention(CASES[name], torch.float32, "triton", DEVICE, backward=False)
    assert found == [3] and not [verdict for verdict in verdicts if not verdict.ok]


def test_split_keys_in_low_precision(parts):
    parts(2)
    assert all(verdict.ok for verdict in compare.attention(CASES["sinks"], torch.bfloat16, "triton", DEVICE, False))


def qkv(batch, seqlen_q, seqlen_k, nheads=1, head_dim=16):
    generator = torch.Generator().manual_seed(3)
    shapes = [(batch, seqlen, nheads, head_dim) for seqlen in (seqlen_q, seqlen_k, seqlen_k)]
    return [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]


def test_few_queries_against_long_keys_split_by_themselves(parts):
    """Twice the fewest keys of a part: two parts. As many keys, of which a window shows few: one."""
    from undivided.kernels.attention.split import LEAST_KEYS

    found = parts()
    q, k, v = qkv(1, 3, 2 * LEAST_KEYS)
    for words in ({}, {"window": (20, 5)}, {"window": (20, None)}):
        out = undivided.attention(q, k, v, backend="triton", **words)
        torch.testing.assert_close(out, undivided.attention(q, k, v, backend="reference", **words))
    assert found == [2, 1, 2]


def test_training_gets_the_gradients_of_split_keys(parts):
    found = parts(3)
    verdicts = compare.attention(CASES["one query"], torch.float32, "triton", DEVICE, backward=True)
    assert found and not [verdict for verdict in verdicts if not verdict.ok]


def test_a_nan_in_one_part_reaches_its_row():
    """Key 200 is in the last part of four; query 0 does not see it, query 1 does, query 2's window has passed it."""
    q, k, v = qkv(1, 3, 256)
    k[0, 200] = float("nan")
    mask = torch.ones(3, 256, dtype=torch.bool, device=DEVICE)
    mask[0, 200] = mask[2, :201] = False
    out = undivided.attention(q, k, v, mask=mask, backend="triton")
    assert out.isnan().any(-1).flatten().tolist() == [False, True, False]


LENGTHS = ((150, 0, 3, 200, 64, 65), (40, 30, 0, 260, 300, 1))
WINDOWS = [(None, None), (None, 0), (70, 0), (5, 90)]


def starts(lengths):
    return torch.tensor([0, *lengths], dtype=torch.int32, device=DEVICE).cumsum(0, dtype=torch.int32)


@pytest.mark.parametrize("of_keys", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_blocks_are_ordered_by_what_they_visit(window, of_keys):
    """Against counting, for each block, the rows of the other side between the first and the last that it meets."""
    from undivided.kernels.attention.plan import make_plan
    from undivided.kernels.attention.schedule import longest_first

    block, longest = 32, (200, 300)
    rows = [torch.zeros(sum(lengths), 2, 8, device=DEVICE) for lengths in LENGTHS]
    words = dict(cu_seqlens_q=starts(LENGTHS[0]), cu_seqlens_k=starts(LENGTHS[1]), window=window, scale=1.0)
    plan = make_plan(rows[0], rows[1], rows[1], max_seqlen_q=longest[0], max_seqlen_k=longest[1], **words)
    blocks = -(-longest[of_keys] // block)
    order = longest_first(plan, block, 10**6, DEVICE, of_keys=of_keys)
    assert order.dtype == torch.int32 and sorted(order.tolist()) == list(range(6 * blocks))
    visited = []
    for entry in order.tolist():
        b, first = entry // blocks, entry % blocks * block
        seen = visible(LENGTHS[0][b], LENGTHS[1][b], window=window)[0, 0]
        seen = (seen.T if of_keys else seen)[first : first + block].any(0).nonzero()
        visited.append(int(seen.max() - seen.min()) + 1 if seen.numel() else 0)
    # A sequence's last block is counted as if it were whole, so it may stand earlier than it must.
    assert all(later <= earlier + block for earlier, later in zip(visited, visited[1:], strict=False))
    assert visited[0] >= max(visited) - block and visited[-1] == 0


def test_the_order_changes_no_bit(monkeypatch):
    """Forward and backward of packed sequences, in the order of their work and in that of their numbers."""
    from undivided.kernels.attention import schedule

    generator, lengths = torch.Generator().manual_seed(3), ((3, 70, 0, 64), (20, 130, 10, 1))
    shapes = [(sum(n), 1, 16) for n in (lengths[0], lengths[1], lengths[1])]
    q, k, v = (torch.randn(shape, generator=generator).to(DEVICE).requires_grad_() for shape in shapes)
    words = dict(cu_seqlens_q=starts(lengths[0]), cu_seqlens_k=starts(lengths[1]), causal=True, backend="triton")
    results = []
    for per_sm in (0, 10**6):
        monkeypatch.setattr(schedule, "PER_SM", per_sm)
        out = undivided.attention_packed(q, k, v, **words)
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_an_order_is_made_only_where_it_helps():
    from undivided.kernels.attention.plan import make_plan
    from undivided.kernels.attention.schedule import PER_SM, longest_first
    from undivided.kernels.common.host import multiprocessors

    x = torch.zeros(10, 1, 8, device=DEVICE)
    words = dict(cu_seqlens_q=starts((4, 6)), cu_seqlens_k=starts((4, 6)), max_seqlen_q=6, max_seqlen_k=6, scale=1.0)
    plan, at_once = make_plan(x, x, x, **words), multiprocessors(DEVICE) * PER_SM
    assert longest_first(plan, 64, at_once, DEVICE) is None
    assert longest_first(plan, 64, at_once + 1, DEVICE).tolist() == [1, 0]
    square = make_plan(x[None], x[None], x[None], scale=1.0)
    assert longest_first(square, 64, 10**6, DEVICE) is None
