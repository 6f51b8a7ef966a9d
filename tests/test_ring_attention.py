"""Ring attention: four processes over gloo, started once, against attention over the whole sequence."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

import undivided
from rows import random, run
from undivided import reference
from undivided.dispatch import BackendRefused
from undivided.distributed import ring_attention, shard_zigzag, unshard_zigzag
from undivided.distributed.attention_autograd import RingCall, forward, gradients
from undivided.distributed.ring import Ring
from undivided.distributed.zigzag import block_of
from undivided.ops.attention_plain import Numbers
from undivided.ops.attention_table import ATTENTION
from undivided.testing import check, honest, largest_error, poison

WORLD = 4
PAIR = (1, 3)  # a group in which ranks are others than in the world
NAMES = ("out", "lse", "dq", "dk", "dv")
# Sizes of the whole sequence; what is left out is below. 40 tokens on 4 ranks: zigzag's chunks are of odd length.
CASES: dict[str, dict] = {
    "two ranks": dict(world=2),
    "two ranks, zigzag": dict(world=2, causal=True),
    "two ranks, float64": dict(world=2, causal=True, dtype=torch.float64),
    "four ranks": dict(),
    "cross attention": dict(seqlen_q=12, seqlen_k=28, head_dim_v=24),
    "zigzag": dict(causal=True),
    "zigzag, float64": dict(causal=True, dtype=torch.float64),
    "float64, softcap": dict(dtype=torch.float64, softcap=2.0, nheads_kv=1),
    "zigzag, the reference": dict(causal=True, backend="reference"),
    "zigzag, bfloat16": dict(causal=True, dtype=torch.bfloat16),
    "one token a chunk": dict(causal=True, seqlen_q=8, seqlen_k=8),
    "pieces": dict(causal=True, balanced=False, seqlen_q=20, seqlen_k=20),
    "softcap and scale": dict(causal=True, softcap=2.0, scale=0.7, nheads_kv=1),
    "unchecked": dict(causal=True, check_shards=False),
}
SIZES = dict(world=WORLD, batch=2, seqlen_q=40, seqlen_k=40, nheads=4, nheads_kv=2, head_dim=16, head_dim_v=16,
             dtype=torch.float32)  # fmt: skip


def settings(name: str) -> tuple[dict, dict]:
    """(sizes, the words of ring_attention) of a case."""
    given = CASES[name]
    return {key: given.get(key, value) for key, value in SIZES.items()}, {
        k: v for k, v in given.items() if k not in SIZES
    }


def whole(sizes: dict) -> dict[str, torch.Tensor]:
    """q, k, v, and the gradients of out and lse, on a CPU."""
    batch, q, k, heads, heads_kv, dim, dim_v = (sizes[n] for n in list(SIZES)[1:-1])
    shapes = dict(q=(batch, q, heads, dim), k=(batch, k, heads_kv, dim), v=(batch, k, heads_kv, dim_v),
                  dout=(batch, q, heads, dim_v), dlse=(batch, heads, q))  # fmt: skip
    made = {name: random(*shape, seed=n).cpu() for n, (name, shape) in enumerate(shapes.items())}
    kept = torch.float64 if sizes["dtype"] == torch.float64 else torch.float32
    return {name: t.to(kept if name == "dlse" else sizes["dtype"]) for name, t in made.items()}


def results(op, values: dict[str, torch.Tensor], **words) -> list[torch.Tensor]:
    """What NAMES names; both out and lse have gradients."""
    leaves = [values[name].detach().requires_grad_() for name in "qkv"]
    out, lse = op(*leaves, **words)
    grads = torch.autograd.grad((out, lse), leaves, (values["dout"].to(out.dtype), values["dlse"].to(lse.dtype)))
    return [out.detach(), lse.detach(), *grads]


def deal(values: dict[str, torch.Tensor], zigzag: bool, group) -> dict[str, torch.Tensor]:
    dims = {name: 2 if name == "dlse" else 1 for name in values}
    if zigzag:
        return {name: shard_zigzag(t, group, dims[name]) for name, t in values.items()}
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    return {name: t.chunk(world, dims[name])[rank] for name, t in values.items()}


def is_zigzag(words: dict) -> bool:
    return words.get("causal", False) and words.get("balanced", True)


def text_of(op, *values, **words) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        op(*values, **words)
    return str(caught.value)


def refusals(rank: int, pair) -> dict[str, str]:
    """Calls that fail on all ranks alike, whatever each of them gives."""
    x = torch.zeros(1, 6 if rank == 2 else 4, 2, 8)
    kind = torch.float64 if rank == 1 else torch.float32
    found = dict(
        lengths=text_of(ring_attention, x, x, x),
        zigzag_lengths=text_of(ring_attention, *(x[:, : 3 if rank == 3 else 4],) * 3, causal=True),
        dtypes=text_of(ring_attention, *(x[:, :4].to(kind),) * 3),
        words=text_of(ring_attention, *(x[:, :4],) * 3, causal=rank == 0, balanced=False),
        odd=text_of(ring_attention, *(x[:, :3],) * 3, causal=True),
        cross=text_of(ring_attention, x[:, :2], x[:, :4], x[:, :4], causal=True),
        gradient=text_of(ring_attention, *(x[:, :4].requires_grad_(rank == 2),) * 3),
        unshard=text_of(unshard_zigzag, x.detach()),
        cut=text_of(shard_zigzag, torch.zeros(2, 20)),
    )
    if rank not in PAIR:
        found["outside"] = text_of(ring_attention, x, x, x, group=pair)
    return found


def work(rank: int, folder: str) -> None:
    """One of the processes: every case, what it gives and what it refuses, into a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=300)
    )
    pair, found = dist.new_group(list(PAIR)), {}
    for name in CASES:
        sizes, words = settings(name)
        group = pair if sizes["world"] == 2 else None
        if group is None or rank in PAIR:
            shards = deal(whole(sizes), is_zigzag(words), group)
            with poison():
                found[name] = results(ring_attention, shards, group=group, return_lse=True, **words)
    tokens = torch.arange(24).reshape(3, 8)
    found["tokens"] = shard_zigzag(tokens)
    found["unsharded"] = [unshard_zigzag(found["tokens"].to(dtype)) for dtype in (torch.int64, torch.bfloat16)]
    found["refused"] = refusals(rank, pair)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ring")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(WORLD)]


def gather(parts: list[torch.Tensor], dim: int, zigzag: bool) -> torch.Tensor:
    """The whole from its shards; written apart from the code that is tested."""
    if not zigzag:
        return torch.cat(parts, dim)
    size = parts[0].shape[dim] // 2
    chunks = {}
    for rank, part in enumerate(parts):
        chunks[rank] = part.narrow(dim, 0, size)
        chunks[2 * len(parts) - 1 - rank] = part.narrow(dim, size, size)
    return torch.cat([chunks[i] for i in sorted(chunks)], dim)


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_together_give_attention_over_the_whole_sequence(ranks, name):
    sizes, words = settings(name)
    members = [ranks[rank][name] for rank in (PAIR if sizes["world"] == 2 else range(WORLD))]
    got = [
        gather([member[n] for member in members], 2 if what == "lse" else 1, is_zigzag(words))
        for n, what in enumerate(NAMES)
    ]
    values = whole(sizes)
    plain = {key: words[key] for key in ("causal", "softcap", "scale") if key in words}
    exact = results(reference.attention, {key: t.double() for key, t in values.items()}, return_lse=True, **plain)
    if sizes["dtype"] == torch.float64:
        assert max(map(largest_error, got, exact)) < 1e-12
        return
    assert [t.dtype for t in got] == [sizes["dtype"], torch.float32, *[sizes["dtype"]] * 3]
    rough = results(honest.attention, values, **plain)
    scale = max(float(t.abs().max()) for t in exact)
    verdicts = [check(*columns, scale) for columns in zip(NAMES, got, exact, rough, strict=True)]
    assert all(verdict.ok for verdict in verdicts), verdicts


def test_zigzag_deals_chunks_from_both_ends(ranks):
    tokens = torch.arange(24).reshape(3, 8)
    assert [found["tokens"][0].tolist() for found in ranks] == [[0, 7], [1, 6], [2, 5], [3, 4]]
    for found in ranks:
        assert all(torch.equal(whole, tokens.to(whole.dtype)) for whole in found["unsharded"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "lengths",
            "seqlen_q is 4 on rank 0, 4 on rank 1, 6 on rank 2, 4 on rank 3; it must be the same on every rank",
        ),
        ("zigzag_lengths", "seqlen_q is 4 on rank 0, 4 on rank 1, 4 on rank 2, 3 on rank 3; it must be"),
        ("dtypes", "dtype is torch.float32 on rank 0, torch.float64 on rank 1, torch.float32 on rank 2"),
        ("words", "causal is True on rank 0, False on rank 1"),
        ("odd", "seqlen 3 of a shard is odd; a balanced one has two equal chunks, see shard_zigzag"),
        ("cross", "causal needs as many keys as queries in a shard: got seqlen_q 2, seqlen_k 4"),
        ("gradient", "requires_grad is False on rank 0, False on rank 1, True on rank 2"),
        ("unshard", "seqlen is 4 on rank 0, 4 on rank 1, 6 on rank 2"),
        ("cut", "seqlen 20 is not a multiple of 2 * world = 8; pad the sequence to 24"),
        ("outside", "this process is not in the group; only its members may call"),
    ],
)
def test_what_is_refused_is_refused_on_every_rank(ranks, name, text):
    texts = [found["refused"][name] for found in ranks if name in found["refused"]]
    assert len(texts) == (2 if name == "outside" else WORLD) and all(said.startswith(text) for said in texts), texts


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["zigzag", "zigzag, bfloat16", "cross attention"])
def test_a_rank_by_itself_gives_the_bits_of_attention(alone, name):
    sizes, words = settings(name)
    values = whole(sizes)
    got, expected = (results(op, values, return_lse=True, **words) for op in (ring_attention, undivided.attention))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_what_is_refused_by_a_rank_by_itself(alone):
    q = torch.zeros(1, 4, 2, 8, requires_grad=True)
    with pytest.raises(TypeError, match="group is a str; allowed: a torch.distributed process group, or None for all"):
        ring_attention(q, q, q, group="gloo")
    with pytest.raises(TypeError, match="balanced = 1 must be True or False"):
        ring_attention(q, q, q, balanced=1)
    with pytest.raises(BackendRefused, match="torch's kernel has no return_lse"):
        ring_attention(q, q, q, backend="sdpa")
    with pytest.raises(ValueError, match="seqlen 3 of a shard is odd"):
        unshard_zigzag(q[:, :3].detach())
    with pytest.raises(ValueError, match="x requires a gradient, which unshard_zigzag does not have; detach it"):
        unshard_zigzag(q)
    dq = torch.autograd.grad(ring_attention(q, q, q, causal=True).sum(), q, create_graph=True)[0]
    cure = "call attention with backend='reference' on the whole sequence"
    with pytest.raises(NotImplementedError, match=f"ring_attention: the kernels have no second derivatives; {cure}"):
        dq.sum().backward()
    with pytest.raises(NotImplementedError, match=f"take part in torch.func's transforms; {cure}"):
        torch.func.vmap(lambda q: ring_attention(q, q, q))(q[None])


def test_without_a_process_group_the_cure_is_named():
    q = torch.zeros(1, 4, 2, 8)
    for op in (shard_zigzag, unshard_zigzag, lambda q: ring_attention(q, q, q)):
        with pytest.raises(RuntimeError, match="no process group; call torch.distributed.init_process_group first"):
            op(q)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_blocks_are_what_the_diagonal_leaves_visible(world, balanced):
    """Every score of every pair of shards; zigzag gives all ranks as many."""
    seqlen, computed = 6, []
    order = torch.arange(world * seqlen).chunk(2 * world if balanced else world)
    shards = [torch.cat([order[r], order[-1 - r]]) if balanced else order[r] for r in range(world)]
    for rank, rows in enumerate(shards):
        count = 0
        for source, keys in enumerate(shards):
            block, seen = block_of(rank, source, seqlen, True, balanced), torch.zeros(seqlen, seqlen, dtype=torch.bool)
            if block is not None:
                here = seen[block.rows, block.keys]
                here |= torch.ones_like(here).tril() if block.causal else True
            assert torch.equal(seen, rows[:, None] >= keys)
            count += int(seen.sum())
        computed.append(count)
    assert not balanced or len(set(computed)) == 1


class Lined(Ring):
    """A ring in one process: its group is the keys and the values of all ranks."""

    def visits(self, *shards):
        for step in range(self.world):
            source = (self.rank - step) % self.world
            yield source, [parts[source] for parts in self.group]


@pytest.mark.parametrize("backend", [row.name for row in ATTENTION if row.name != "sdpa"])
def test_blocks_of_every_backend_add_up(backend):
    """Forward, and the gradients of each block from the whole's out and lse, on three ranks in one process."""
    sizes = {**SIZES, "batch": 1, "nheads": 2, "nheads_kv": 1, "seqlen_q": 36, "seqlen_k": 36}
    values = whole(sizes)
    row = next(row for row in ATTENTION if row.name == backend)
    run(undivided.attention, *(values[name] for name in "qkv"), backend=backend)
    order = torch.arange(36).chunk(6)
    places = [torch.cat([order[rank], order[5 - rank]]) for rank in range(3)]
    qs, ks, vs, douts = ([values[name][:, place] for place in places] for name in ("q", "k", "v", "dout"))
    numbers = Numbers(scale=0.25, right=0)
    got = [torch.zeros_like(values[name]) for name in ("dout", "q", "k", "v")]
    for rank, place in enumerate(places):
        call = RingCall(Lined((ks, vs), rank, 3), row, numbers, True, True)
        out, lse = forward(call, qs[rank], ks[rank], vs[rank])
        got[0][:, place] = out
        for source in range(3):
            block = call.block(source, 12)
            assert block is not None
            dlse = values["dlse"][:, :, place]
            grads = gradients(call, block, qs[rank], ks[source], vs[source], out, lse, douts[rank], dlse)
            for total, part, rows in zip(
                got[1:], grads, (place[block.rows], *[places[source][block.keys]] * 2), strict=True
            ):
                total[:, rows] += part
    exact, rough = (
        results(op, {key: t.to(dtype) for key, t in values.items()}, causal=True, **words)
        for op, dtype, words in (
            (reference.attention, torch.float64, dict(return_lse=True)),
            (honest.attention, torch.float32, {}),
        )
    )
    scale = max(float(t.abs().max()) for t in exact)
    for name, mine, n in zip(("out", "dq", "dk", "dv"), got, (0, 2, 3, 4), strict=True):
        verdict = check(name, mine, exact[n], rough[n], scale)
        assert verdict.ok, verdict
