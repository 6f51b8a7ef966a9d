"""The CUDA C++ attention: on a Hopper GPU where there is one, else emulated on a CPU."""

from __future__ import annotations

import importlib
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import undivided
from emulated import emulated
from kernel_backend import CUDA as CUDA_RUNS
from undivided import BackendRefused, RelativeBias
from undivided.dispatch import AttentionCall
from undivided.ops.attention_table import ATTENTION, CUDA, cuda_words
from undivided.rules import OF_THE_MACHINE
from undivided.testing import ATTENTION_CASES, AttentionCase, compare, poison

pytest.importorskip("undivided._C", reason="the launcher passes addresses to the compiled extension")
DEVICE = "cuda" if CUDA_RUNS else "cpu"
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The emulated extension in place of the real one, and a table that lets tensors on a CPU through."""
    if CUDA_RUNS:
        yield None
        return
    launcher = importlib.import_module("undivided.cuda.attention")
    module = emulated()
    monkeypatch.setattr(launcher, "_C", module)
    monkeypatch.setattr(launcher, "stream_of", lambda device: 0)
    row = replace(CUDA, rules=tuple(rule for rule in CUDA.rules if rule not in OF_THE_MACHINE))
    monkeypatch.setattr(importlib.import_module("undivided.ops.attention"), "ATTENTION", (row, *ATTENTION[1:]))
    module.set_seed(0)
    module.set_multiprocessors(3)
    yield module


def failures(case: AttentionCase, dtype: torch.dtype) -> list:
    with poison():
        verdicts = compare.attention(case, dtype, "cuda", DEVICE, backward=not no_gradient(case))
    return [verdict for verdict in verdicts if not verdict.ok]


def no_gradient(case: AttentionCase) -> bool:
    return case.softcap is not None


def inputs(batch=1, seqlen_q=300, seqlen_k=300, nheads=2, nheads_kv=1, head_dim=64, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(4)
    sizes = (seqlen_q, nheads), (seqlen_k, nheads_kv), (seqlen_k, nheads_kv)
    return [torch.randn(batch, *size, head_dim, generator=generator).to(DEVICE, dtype) for size in sizes]


def attend(q, k, v, **words):
    return undivided.attention(q, k, v, backend="cuda", return_lse=True, **words)


def has_no_word(case: AttentionCase) -> bool:
    return bool(case.mask or case.dropout_p or case.bias and set(case.bias) <= set("bhqk"))


TABLE = [replace(case, head_dim=64, head_dim_v=None) for case in ATTENTION_CASES if not has_no_word(case)]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_the_case_table(case):
    """With a head_dim that the kernel has; dtypes by turns, as the next test has both."""
    assert not failures(case, DTYPES[TABLE.index(case) % 2])


# Tiles are 128 queries by 128 keys, and a warpgroup has 64 of the queries.
BASE = AttentionCase("", "", batch=1, seqlen_q=300, seqlen_k=300, nheads=2, nheads_kv=1)
TILES = [
    replace(BASE, name="128 x 128", why="exactly one tile", seqlen_q=128, seqlen_k=128, causal=True),
    replace(BASE, name="64 x 129", why="one warpgroup has nothing; one key over a tile", seqlen_q=64, seqlen_k=129),
    replace(BASE, name="causal", why="tiles without, on and above the diagonal", causal=True),
    replace(BASE, name="more queries", why="whole tiles of queries that see nothing", seqlen_k=130, causal=True),
    replace(BASE, name="window", why="masked on both sides, whole ones in between", window=(250, 20)),
    replace(BASE, name="narrow", why="first tiles are skipped", window=(30, None), causal=True),
    replace(BASE, name="offset", why="every row elsewhere", batch=2, query_offset=(150, -170), causal=True),
    replace(BASE, name="lengths", why="tiles past the end", batch=3, key_lengths=(300, 129, 0),
            query_lengths=(64, 300, 130)),
    replace(BASE, name="relative", why="far tiles on both sides, near ones between", seqlen_k=560, bias="relative",
            query_offset=140),
    replace(BASE, name="alibi", why="across tiles", bias="alibi", softcap=4.0),
    replace(BASE, name="packed", why="sequences begin inside of tiles", packed_q=(130, 0, 1, 200), causal=True,
            packed_k=(200, 40, 129, 1)),
    replace(BASE, name="heads", why="groups of three, more tiles than multiprocessors", nheads=6, nheads_kv=2,
            seqlen_q=129, seqlen_k=140, sinks=True),
]  # fmt: skip


def set_seed(kernels, seed: int) -> None:
    """Of the emulator: with 0 everything happens at once, else late."""
    if kernels is not None:
        kernels.set_seed(seed)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("case", TILES, ids=lambda case: case.name)
def test_across_tiles(case, head_dim, kernels):
    set_seed(kernels, 1 if head_dim == 64 else 2)
    assert not failures(replace(case, head_dim=head_dim), DTYPES[(TILES.index(case) + head_dim // 64) % 2])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_across_tiles_in_many_orders(seed, dtype, kernels):
    set_seed(kernels, 1000 * seed)
    for case in TILES:
        for head_dim in (64, 128):
            assert not failures(replace(case, head_dim=head_dim), dtype), (case.name, head_dim)


@pytest.mark.parametrize("words", [dict(causal=True), dict(causal=True, softcap=5.0)], ids=["plain", "softcap"])
def test_the_bits_do_not_depend_on_the_order_of_things(words, kernels):
    q, k, v = inputs(nheads_kv=2)
    out, lse = attend(q, k, v, **words)
    for seed in range(1, 5):
        if kernels is not None:
            kernels.set_seed(seed)
            kernels.set_multiprocessors(seed)
        again, lse_again = attend(q, k, v, **words)
        assert torch.equal(out, again) and torch.equal(lse, lse_again)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_hidden_key_or_value_reaches_no_row(head_dim, bad, kernels):
    """In a masked tile and in the padding; a row that does see the value shows it."""
    q, k, v = inputs(batch=2, head_dim=head_dim, dtype=DTYPES[head_dim // 128])
    words = dict(causal=True, key_lengths=torch.tensor([300, 200], dtype=torch.int32, device=DEVICE), query_offset=0)
    clean, clean_lse = attend(q, k, v, **words)
    k[1, 200:], v[1, 200:] = bad, bad
    v[0, 140, 0, 5] = bad
    k[0, 141, 0, 7] = bad
    set_seed(kernels, 5)
    out, lse = attend(q, k, v, **words)
    assert torch.equal(out[1], clean[1]) and torch.equal(lse[1], clean_lse[1])
    assert torch.equal(out[0, :140], clean[0, :140]) and torch.equal(lse[0, :, :141], clean_lse[0, :, :141])
    assert not out[0, 140:].isfinite().all(-1).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_hidden_key_or_value_reaches_no_gradient(head_dim, bad, kernels):
    """In padding, hidden from all; and a key of the future, hidden from the queries before it. What stands in the rows
    of queries outside of the sequence reaches nothing either."""
    q, k, v = inputs(batch=2, head_dim=head_dim, dtype=DTYPES[head_dim // 128])
    lengths = torch.tensor([300, 200], dtype=torch.int32, device=DEVICE)
    words = dict(causal=True, key_lengths=lengths, query_lengths=lengths, query_offset=0, backend="cuda")

    def gradients() -> list[torch.Tensor]:
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        out = undivided.attention(*leaves, **words)
        dout = torch.ones_like(out)
        dout[1, 200:] = bad
        return list(torch.autograd.grad(out, leaves, dout))

    clean = gradients()
    k[1, 200:], v[1, 200:], q[1, 200:] = bad, bad, bad
    k[0, 141, 0, 7] = bad
    set_seed(kernels, 5)
    dq, dk, dv = gradients()
    assert torch.equal(dk[1], clean[1][1]) and torch.equal(dv[1], clean[2][1])
    # On a GPU the sums of dq come in any order.
    exactly = dict(rtol=1e-2, atol=1e-3) if CUDA_RUNS else dict(rtol=0, atol=0)
    torch.testing.assert_close(dq[1], clean[0][1], **exactly)
    torch.testing.assert_close(dq[0, :141], clean[0][0, :141], **exactly)
    assert not dq[0, 141:].isfinite().all(-1).any() and dk[0, 141].isnan().any() and dv[0, 141].isnan().any()


def test_values_of_the_next_sequence_reach_no_row():
    q, k, v = (t[0] for t in inputs())
    starts = torch.tensor([0, 100, 300], dtype=torch.int32, device=DEVICE)
    words = dict(cu_seqlens_q=starts, cu_seqlens_k=starts, backend="cuda")
    clean = undivided.attention_packed(q, k, v, **words)
    v[100] = math.nan
    dirty = undivided.attention_packed(q, k, v, **words)
    assert torch.equal(clean[:100], dirty[:100]) and dirty[100:].isnan().all()


def layouts(t: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers at other strides, or of another layout of the same numbers."""
    batch, seqlen, nheads, head_dim = t.shape
    wide = t.new_full((batch, seqlen, 2 * nheads, head_dim + 3), math.nan)
    wide[:, :, ::2, 1:-2] = t
    return {
        "head first": t.transpose(1, 2).contiguous().transpose(1, 2),
        "at odd addresses": wide[:, :, ::2, 1:-2],
        "slice of heads": torch.cat([t, torch.full_like(t, math.nan)], 2)[:, :, :nheads],
        "expanded batch": t[:1].expand(t.shape),
        "expanded heads": t[:, :, :1].expand(t.shape),
        "expanded sequence": t[:, :1].expand(t.shape),
    }


@pytest.mark.parametrize("name", list(layouts(torch.zeros(1, 1, 1, 8))))
def test_any_strides_give_the_same_bits(name):
    moved = [layouts(t)[name] for t in inputs(batch=2, seqlen_q=70, seqlen_k=150, nheads=4, nheads_kv=2)]
    copied = [t.clone(memory_format=torch.contiguous_format) for t in moved]
    assert torch.equal(attend(*moved, causal=True)[0], attend(*copied, causal=True)[0])


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_a_scale_that_is_not_positive(scale):
    q, k, v = inputs(seqlen_q=40, seqlen_k=150)
    out, lse = attend(q, k, v, scale=scale, causal=True)
    expected, lse_expected = undivided.reference.attention(
        q.double(), k.double(), v.double(), scale=scale, causal=True, return_lse=True
    )
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(lse.double(), lse_expected, rtol=1e-5, atol=1e-5)


def test_far_positions_do_not_wrap_around():
    q, k, v = inputs(seqlen_q=70, seqlen_k=140)
    far = 2**29
    everything = attend(q, k, v, window=(far, far), query_offset=0)[0]
    assert torch.equal(everything, attend(q, k, v)[0])
    nothing, lse = attend(q, k, v, window=(far, far), query_offset=-far, causal=True)
    assert (nothing == 0).all() and lse.isneginf().all()
    late = attend(q, k, v, window=(far, far), query_offset=far)[0]  # query i sees keys i and later
    assert torch.equal(late, attend(q, k, v, window=(0, None), query_offset=0)[0])


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_it_is_refused_with_the_reasons():
    q, k, v = inputs(seqlen_q=8, seqlen_k=8)
    for words, text in (
        (dict(mask=torch.ones(8, 8, dtype=torch.bool, device=DEVICE), dropout_p=0.1), "no mask, no dropout"),
        (dict(bias=torch.zeros(8, 8, device=DEVICE)), "no dense bias"),
    ):
        with pytest.raises(BackendRefused, match=f"cuda .*this kernel has {text}; leave it out"):
            undivided.attention(q, k, v, backend="cuda", **words)
    with pytest.raises(BackendRefused, match="cuda .*this kernel has no gradient with softcap; leave it out"):
        undivided.attention(q.requires_grad_(), k, v, backend="cuda", softcap=5.0)
    with torch.no_grad():
        undivided.attention(q, k, v, backend="cuda", softcap=5.0)
    far = RelativeBias(torch.zeros(32, 2, device=DEVICE, dtype=q.dtype), max_distance=2000)
    with pytest.raises(BackendRefused, match="no gradient of a relative bias with a max_distance of 2000, over 1024"):
        undivided.attention(q, k, v, backend="cuda", bias=far)
    with deterministic(), pytest.raises(BackendRefused, match="no deterministic gradient .torch.use_determ"):
        undivided.attention(q, k, v, backend="cuda")
    with pytest.raises(BackendRefused, match="dtype float32 is not one of bfloat16, float16; cast"):
        undivided.attention(q.detach().float(), k.float(), v.float(), backend="cuda")
    with pytest.raises(BackendRefused, match="head_dim 32 / head_dim_v 64 is not 64 or 128, the same for both"):
        undivided.attention(q.detach()[..., :32], k[..., :32], v, backend="cuda")


def test_it_is_in_auto():
    call = AttentionCall("cuda", "bfloat16", 2, 9000, 9000, 4, 4, 128, 128, needs_grad=True)
    assert cuda_words(call) is None and not CUDA.auto_objections(call)


# ---- plain arithmetic that the kernel shares with the host ----


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("head_bytes", [1, 2**24, 2**40])  # all heads in one section, two groups in one, one in one
def test_every_tile_is_in_the_list_once(head_bytes, last_first):
    batch, nheads, group, blocks = 3, 6, 2, 4
    tiles = emulated().tiles(batch, nheads, group, 128 * (blocks - 1) + 1, head_bytes, last_first)
    assert sorted(tiles) == [(m, b, h) for m in range(blocks) for b in range(batch) for h in range(nheads)]
    section = {1: batch * nheads, 2**24: 4, 2**40: 2}[head_bytes]
    for first in range(0, len(tiles), section * blocks):
        part = tiles[first : first + section * blocks]
        order = [m for m, _, _ in part]
        assert order == sorted(order, reverse=last_first)  # the longest come first
        assert len({(b, h // group) for _, b, h in part}) == -(-len(part) // blocks // group)


def test_query_tiles_are_those_that_see():
    module = emulated()
    bounds = (-1, 0, 5, 127, 128, 200)
    for lenq, lenk in ((1, 1), (128, 128), (200, 300), (300, 200), (0, 129)):
        for left in bounds:
            for right in bounds:
                for shift in (lenk - lenq, 0, 130, -200):
                    for n in range(0, lenk, 128):
                        check_query_tiles(module, lenq, lenk, shift, left, right, n)
    assert module.visiting(300, 100, 0, -1, -1, 128)[:2] == (0, 0)  # the sequence has no such keys


def check_query_tiles(module, lenq, lenk, shift, left, right, n):
    """A tile that reaches beyond the last query is whole or not by the queries that it has: they are set to 0."""
    j = torch.arange(n, min(n + 128, lenk))[None, :]
    tiles = -(-lenq // 64)
    i = torch.arange(tiles * 64)[:, None] + shift
    seen = ((j >= i - left) | (left < 0)) & ((j <= i + right) | (right < 0))
    inside = torch.arange(tiles * 64) < lenq
    begin, end, whole_begin, whole_end = module.visiting(lenq, lenk, shift, left, right, n)
    for m in range(tiles):
        rows = slice(64 * m, 64 * m + 64)
        visible = seen[rows] & inside[rows, None]
        assert begin <= m < end or not visible.any()
        if whole_begin <= m < whole_end:
            assert visible.all() and j.shape[1] == 128
    touched = [m for m in range(tiles) if (seen & inside[:, None])[64 * m : 64 * m + 64].any()]
    if touched:
        assert (begin, end) == (touched[0], touched[-1] + 1)


def test_key_tiles_are_those_that_are_seen():
    module = emulated()
    bounds = (-1, 0, 5, 127, 128, 200)
    for lenq, lenk in ((1, 1), (128, 128), (200, 300), (300, 200), (129, 0)):
        for left in bounds:
            for right in bounds:
                for shift in (lenk - lenq, 0, 130, -200):
                    for m in range(0, lenq, 128):
                        check_key_tiles(module, lenq, lenk, shift, left, right, m)
    assert module.visited(100, 300, 0, -1, -1, 128)[:2] == (0, 0)  # the sequence has no such queries


def check_key_tiles(module, lenq, lenk, shift, left, right, m):
    i = torch.arange(m, min(m + 128, lenq))[:, None] + shift
    j = torch.arange(-(-lenk // 128) * 128)[None, :]
    seen = (j < lenk) & ((j >= i - left) | (left < 0)) & ((j <= i + right) | (right < 0))
    begin, end, whole_begin, whole_end = module.visited(lenq, lenk, shift, left, right, m)
    for n in range(j.shape[1] // 128):
        tile = seen[:, 128 * n : 128 * n + 128]
        assert begin <= n < end or not tile.any()
        assert bool(tile.all()) == (whole_begin <= n < whole_end)
    if seen.any():
        touched = [n for n in range(j.shape[1] // 128) if seen[:, 128 * n : 128 * n + 128].any()]
        assert (begin, end) == (touched[0], touched[-1] + 1)
