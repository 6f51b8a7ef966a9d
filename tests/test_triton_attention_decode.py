"""The Triton decode kernel in the interpreter (or on a GPU), against float64 attention on the gathered caches."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernel_backend import needs_interpreter
from rows import same_numbers
from undivided import reference
from undivided.reference import ALiBi, RelativeBias
from undivided.testing import check, honest, poison

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """`why` is the reason for the sizes. A cache of 200 tokens is three key blocks of the interpreter and a part."""

    why: str
    lengths: tuple[int, ...] = (150, 37)
    seqlen_q: int = 1
    seqlen_new: int = 1
    longest: int = 200
    nheads: int = 4
    nheads_kv: int = 2
    head_dim: int = 16
    head_dim_v: int = 16
    block_size: int = 0
    window: tuple[int | None, int | None] = (None, 0)
    bias: str | None = None
    softcap: float | None = None
    sinks: bool = False
    splits: int = 1


CASES = [
    Case("a decode step"),
    Case("a decode step, keys split", splits=3),
    Case("more parts than key blocks", splits=8),
    Case("cross attention to a memory, one row empty", lengths=(200, 0), seqlen_new=0, window=(None, None)),
    Case("the same, split", lengths=(200, 0), seqlen_new=0, window=(None, None), splits=2, sinks=True),
    Case("lengths at the edges of a key block", lengths=(63, 64, 65, 128), nheads=2, nheads_kv=1),
    Case("the first token", lengths=(0, 1), splits=2),
    Case("the last place of the cache", lengths=(199, 198)),
    Case("speculative decoding", seqlen_q=4, seqlen_new=4, splits=2),
    Case("fewer new tokens than queries", seqlen_q=4, seqlen_new=1),
    Case("more new tokens than queries, more than one copy", lengths=(100, 0), seqlen_q=2, seqlen_new=70, splits=2),
    Case("more queries than tokens: the first see nothing", lengths=(0, 2), seqlen_q=4, seqlen_new=1),
    Case("not causal", seqlen_q=3, seqlen_new=3, window=(None, None)),
    Case("one key head, rows in two blocks", nheads=24, nheads_kv=1, seqlen_q=3, seqlen_new=3, lengths=(70,)),
    Case("one look-up a key block", block_size=64, longest=256, splits=2),
    Case("a look-up a token", block_size=16, longest=208, seqlen_q=2, seqlen_new=17, splits=2),
    Case("blocks of no power of two", block_size=5, seqlen_q=2, seqlen_new=7),
    Case("window", window=(70, 0), seqlen_q=2, seqlen_new=2, splits=2),
    Case("window shorter than the new tokens", window=(2, 0), seqlen_q=5, seqlen_new=5),
    Case("window both ways", window=(20, 1), seqlen_q=3, seqlen_new=3),
    Case("T5 decoder", bias="relative_causal", seqlen_q=2, seqlen_new=2, splits=2),
    Case("T5's two-sided buckets", bias="relative", seqlen_q=3, seqlen_new=3, window=(None, None)),
    Case("ALiBi", bias="alibi", seqlen_q=2, seqlen_new=2),
    Case("ALiBi by batch row", bias="alibi_rows"),
    Case("softcap", softcap=3.0, splits=2),
    Case("sinks", sinks=True, seqlen_q=2, seqlen_new=2),
    Case("head_dim 40, narrower values", head_dim=40, head_dim_v=24),
    Case("everything", seqlen_q=3, seqlen_new=2, nheads=6, block_size=16, longest=208, window=(90, 0), sinks=True,
         bias="relative_causal", softcap=5.0, splits=3),
]  # fmt: skip
EVERYTHING = CASES[-1]


@pytest.fixture
def split(monkeypatch):
    def force(parts):
        monkeypatch.setattr("undivided.kernels.attention_decode.plan.splits_of", lambda *_: parts)

    return force


def launch(q, **words):
    from undivided.ops.triton_attention_decode import attention_decode

    return attention_decode(q, **words)


def inputs(case, dtype):
    """Tensors by name, the keywords of the launcher and those of the reference.

    Everything that no token stands in is NaN. Positions of a paged cache are spread over blocks in a random order.
    """
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    batch, lengths = len(case.lengths), torch.tensor(case.lengths, dtype=torch.int32, device=DEVICE)
    tensors = {"q": draw(batch, case.seqlen_q, case.nheads, case.head_dim)}
    for name, width in (("k", case.head_dim), ("v", case.head_dim_v)):
        cache = draw(batch, case.longest, case.nheads_kv, width)
        for row, length in enumerate(case.lengths):
            cache[row, length:] = NAN
        tensors[f"{name}_cache"] = cache
        if case.seqlen_new:
            tensors[name] = draw(batch, case.seqlen_new, case.nheads_kv, width)
    words = dict(window=case.window, softcap=case.softcap, scale=case.head_dim**-0.5, sinks=None)
    shared = dict(words, key_lengths=lengths + case.seqlen_new, query_offset=lengths + case.seqlen_new - case.seqlen_q)
    if case.sinks:
        words["sinks"] = shared["sinks"] = draw(case.nheads)
    if case.bias in ("relative", "relative_causal"):
        table, both = draw(32, case.nheads), case.bias == "relative"
        words |= dict(relative_table=table, max_distance=64, bidirectional=both)
        shared["bias"] = RelativeBias(table, 64, both)
    elif case.bias is not None:
        slopes = torch.rand(batch, case.nheads, generator=generator).to(DEVICE)
        slopes = slopes if case.bias == "alibi_rows" else slopes[0]
        words["alibi_slopes"] = slopes
        shared["bias"] = ALiBi(slopes)
    words["cache_lengths"] = lengths
    if case.block_size:
        each = case.longest // case.block_size
        table = torch.randperm(batch * each + 3, generator=generator)[: batch * each].view(batch, each)
        words["block_table"] = table.to(DEVICE, torch.int32)
    return tensors, words, shared


def paged(cache, case, table):
    """The cache (batch, longest, ...) in blocks (num_blocks, block_size, ...), NaN in blocks that nobody has."""
    blocks = cache.new_full((table.numel() + 3, case.block_size, *cache.shape[2:]), NAN)
    blocks[table.long()] = cache.unflatten(1, (table.shape[1], case.block_size))
    return blocks


def run(case, dtype):
    """(out, lse, the caches after the call by position), with poison in whatever the launcher allocates."""
    tensors, words, _ = inputs(case, dtype)
    names = ("k_cache", "v_cache")
    if case.block_size:
        tensors |= {name: paged(tensors[name], case, words["block_table"]) for name in names}
    with poison():
        out, lse = launch(**tensors, **words)
    caches = [tensors[name] for name in names]
    if case.block_size:
        table = words["block_table"].long()
        unused = torch.ones(caches[0].shape[0], dtype=torch.bool, device=DEVICE).index_fill_(0, table.flatten(), False)
        assert all(cache[unused].isnan().all() for cache in caches)
        caches = [cache[table].flatten(1, 2) for cache in caches]
    return out, lse, caches


def appended(case, dtype):
    """What the caches must hold after the call."""
    tensors, _, _ = inputs(case, dtype)
    for row, length in enumerate(case.lengths):
        for name in "kv" if case.seqlen_new else "":
            tensors[f"{name}_cache"][row, length : length + case.seqlen_new] = tensors[name][row]
    return tensors["q"], [tensors["k_cache"], tensors["v_cache"]]


def same(a, b):
    return torch.equal(a.nan_to_num(12345.0), b.nan_to_num(12345.0)) and torch.equal(a.isnan(), b.isnan())


def verdicts(case, dtype):
    out, lse, caches = run(case, dtype)
    q, expected_caches = appended(case, dtype)
    assert all(same(got, expected) for got, expected in zip(caches, expected_caches, strict=True))
    _, _, words = inputs(case, dtype)
    bias = words.get("bias")
    exact, plain = dict(words), dict(words)
    exact["sinks"] = None if words["sinks"] is None else words["sinks"].double()
    if isinstance(bias, RelativeBias):
        exact["bias"] = replace(bias, table=bias.table.double())
    elif bias is not None:
        exact["bias"] = ALiBi(bias.slopes.double())
    expected = reference.attention(*(t.double() for t in (q, *expected_caches)), return_lse=True, **exact)
    rough = honest.attention(q, *expected_caches, **plain)
    assert out.dtype == dtype and lse.dtype == torch.float32 and out.is_contiguous()
    named = zip(("out", "lse"), (out, lse), expected, rough, strict=True)
    return [check(name, got, right, near, scale=4.0) for name, got, right, near in named]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_against_the_reference(case, split):
    split(case.splits)
    assert not [verdict for verdict in verdicts(case, torch.float32) if not verdict.ok]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [CASES[1], EVERYTHING], ids=lambda case: case.why)
def test_low_precision(case, dtype, split):
    split(case.splits)
    assert not [verdict for verdict in verdicts(case, dtype) if not verdict.ok]


def test_how_many_parts_depends_on_shapes_and_the_device():
    from undivided.kernels.attention.launch import Launch
    from undivided.kernels.attention.split import LEAST_KEYS, MOST_SPLITS, per_multiprocessor, splits_of
    from undivided.kernels.common.host import multiprocessors

    for per_sm in (1, 2):
        slots = multiprocessors(DEVICE) * per_sm
        assert splits_of(slots, 10**6, per_sm, DEVICE) == 1 == splits_of(10 * slots, 10**6, per_sm, DEVICE)
        assert splits_of(slots // 2, 10**6, per_sm, DEVICE) == 2
        assert splits_of(1, 2 * LEAST_KEYS - 1, per_sm, DEVICE) == 1
        assert splits_of(1, 2 * LEAST_KEYS, per_sm, DEVICE) == 2
        assert splits_of(1, 10**6, per_sm, DEVICE) == min(slots, MOST_SPLITS)
        assert splits_of(0, 0, per_sm, DEVICE) == 1
    # Two stages of 64 keys and values of 128 elements are 64 KiB: enough for one program on each multiprocessor.
    enough = Launch(32, 64, 4, 3)
    assert per_multiprocessor(enough, 128, torch.bfloat16) == 1
    assert per_multiprocessor(enough, 64, torch.bfloat16) == 2 == per_multiprocessor(enough, 96, torch.bfloat16)


def test_a_call_that_splits_by_itself():
    """One program without splitting, and a cache of several times the fewest keys of a part."""
    case = Case("alone", lengths=(600,), longest=640, nheads=2, nheads_kv=1)
    tensors, words, _ = inputs(case, torch.float32)
    from undivided.kernels.attention_decode.plan import make_plan

    assert make_plan(**tensors, **words).splits > 1
    assert not [verdict for verdict in verdicts(case, torch.float32) if not verdict.ok]


@pytest.mark.parametrize("block_size", [16, 64])
def test_a_paged_cache_gives_the_same_bits(block_size, split):
    split(2)
    case = Case("", longest=256, seqlen_q=2, seqlen_new=2)
    whole, parts = run(case, torch.float32), run(replace(case, block_size=block_size), torch.float32)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1])


def test_two_runs_agree_to_the_bit(split):
    split(3)
    first, second = (run(EVERYTHING, torch.float32) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_strides_of_a_larger_cache_and_of_a_projection():
    """q, k and v as views of one projection; heads before positions in the cache; every second row of the table."""
    case = Case("", block_size=16, longest=208, nheads=2, nheads_kv=2)
    tensors, words, _ = inputs(case, torch.float32)
    caches = {name: paged(tensors[name], case, words["block_table"]) for name in ("k_cache", "v_cache")}
    expected = launch(**tensors | {name: cache.clone() for name, cache in caches.items()}, **words)
    views = dict(zip("qkv", torch.stack([tensors[name] for name in "qkv"], 2).unbind(2), strict=True))
    views |= {name: cache.transpose(1, 2).contiguous().transpose(1, 2) for name, cache in caches.items()}
    table = torch.stack([words["block_table"], words["block_table"] + 1], 2)[:, :, 0]
    assert table.stride(1) == 2 and views["k_cache"].stride(1) < views["k_cache"].stride(2)
    got = launch(**views, **words | {"block_table": table})
    for a, b in zip(got, expected, strict=True):
        same_numbers("triton", a, b)
    launch(**tensors | caches, **words)
    assert all(same(caches[name], views[name]) for name in caches)


def test_a_memory_shared_by_the_batch():
    case = Case("", lengths=(90, 90), seqlen_new=0, window=(None, None))
    tensors, words, _ = inputs(case, torch.float32)
    shared = tensors | {name: tensors[name][:1].expand(2, -1, -1, -1) for name in ("k_cache", "v_cache")}
    copied = {name: value.contiguous() for name, value in shared.items()}
    assert shared["k_cache"].stride(0) == 0
    same_numbers("triton", launch(**shared, **words)[0], launch(**copied, **words)[0])


@pytest.mark.parametrize("block_size", [0, 16])
def test_tokens_that_do_not_fit_are_not_written(block_size):
    """The second and third of three new tokens have no place; neither does one whose block does not exist."""
    case = Case("", lengths=(31, 16), longest=32, seqlen_new=3, block_size=block_size)
    tensors, words, _ = inputs(case, torch.float32)
    names = ("k_cache", "v_cache")
    if block_size:
        tensors |= {name: paged(tensors[name], case, words["block_table"]) for name in names}
        words["block_table"][1, 1] = -1
    before = {name: tensors[name].clone() for name in names}
    for name in names:  # between fences, in which a write would show
        fenced = torch.full((tensors[name].numel() + 8192,), NAN, device=DEVICE)
        inner = fenced[4096:-4096].view(tensors[name].shape)
        inner.copy_(tensors[name])
        tensors[name], before[f"{name}_fence"] = inner, fenced
    launch(**tensors, **words)
    for name in names:
        assert before[f"{name}_fence"][:4096].isnan().all() and before[f"{name}_fence"][-4096:].isnan().all()
        expected, new = before[name], tensors[name[0]]
        if block_size:
            expected[words["block_table"][0, 1].long(), 15] = new[0, 0]
        else:
            expected[0, 31] = new[0, 0]
            expected[1, 16:19] = new[1]
        assert same(tensors[name], expected)


def test_lengths_that_the_cache_cannot_have_stay_inside_it():
    case = Case("", lengths=(200, 0), seqlen_new=0, window=(None, None))
    tensors, words, _ = inputs(case, torch.float32)
    expected = launch(**tensors, **words)
    got = launch(**tensors, **words | {"cache_lengths": torch.tensor([5000, -3], dtype=torch.int32, device=DEVICE)})
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_nan_reaches_those_who_see_it_and_nobody_else(split):
    """Values of a cached and of a new token: with a window of 3, query 0 (position 150) sees 147 to 150."""
    split(2)
    case = Case("", seqlen_q=4, seqlen_new=4, window=(3, 0))
    tensors, words, _ = inputs(case, torch.float32)
    clean, _ = launch(**{name: value.clone() for name, value in tensors.items()}, **words)
    tensors["v_cache"][0, 148, 0, 5] = NAN  # seen by queries 0 and 1 of heads 0 and 1
    tensors["v"][0, 3, 1, 2] = NAN  # position 153: seen by query 3 of heads 2 and 3
    dirty, _ = launch(**tensors, **words)
    hit = torch.zeros_like(dirty, dtype=torch.bool)
    hit[0, :2, :2, 5] = True
    hit[0, 3, 2:, 2] = True
    assert torch.equal(dirty.isnan(), hit) and torch.equal(dirty[~hit], clean[~hit])


def test_nothing_to_do():
    case = Case("", lengths=())
    tensors, words, _ = inputs(case, torch.float32)
    out, lse = launch(**tensors, **words)
    assert out.shape == (0, 1, 4, 16) and lse.shape == (0, 4, 1)
    tensors, words, _ = inputs(Case("", seqlen_q=0, seqlen_new=2), torch.float32)
    assert launch(**tensors, **words)[0].shape == (2, 0, 4, 16)
    assert torch.equal(tensors["k_cache"][1, 37:39], tensors["k"][1])  # without a query the append remains


class NoValues(TorchDispatchMode):
    """Fails where a value of a tensor is read on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value is read on the host"
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_on_the_host(monkeypatch):
    """The launcher alone, as the interpreter reads tensors to run the kernels."""
    from undivided.kernels.attention_decode import forward

    class Kernel:
        def __getitem__(self, grid):
            return lambda **words: None

    monkeypatch.setattr(forward, "decode_kernel", Kernel())
    tensors, words, _ = inputs(EVERYTHING, torch.float32)
    tensors |= {name: paged(tensors[name], EVERYTHING, words["block_table"]) for name in ("k_cache", "v_cache")}
    with NoValues():
        launch(**tensors, **words)
        with pytest.raises(AssertionError, match="a value is read on the host"):
            words["cache_lengths"].max().item()


# The memory is committed when it is touched: 8 GiB of address space, a few pages of memory. An offset of 32 bits would
# end the process, which is why it is one of its own.
FAR_APART = """
import torch
from undivided.ops.triton_attention_decode import attention_decode

memory = torch.empty(2**32 + 2**20, dtype=torch.float16)
q, k, v = (torch.randn(2, 1, 1, 16, dtype=torch.float16) for _ in range(3))
lengths = torch.tensor([5, 20], dtype=torch.int32)

def results(k_cache, v_cache, **words):
    out, lse = attention_decode(q, k_cache, v_cache, lengths, k=k, v=v, scale=0.25, **words)
    return out, lse, k_cache.clone(), v_cache.clone()

def check(shape, strides, **words):
    far = [memory.as_strided(shape, strides, 4096 * n) for n in (0, 1)]
    for cache in far:
        cache.copy_(torch.randn(shape))
    near = [cache.clone() for cache in far]
    assert max((n - 1) * stride for n, stride in zip(shape, strides)) >= 2**31
    assert all(torch.equal(a, b) for a, b in zip(results(*far, **words), results(*near, **words), strict=True))

check((2, 32, 1, 16), (2**31, 16, 16, 1))  # batch rows
check((2, 32, 1, 16), (16, 2**27, 16, 1))  # positions
check((3, 16, 1, 16), (2**30 + 16, 16, 16, 1), block_table=torch.tensor([[0, 1], [2, 1]], dtype=torch.int32))  # blocks
print("agree")
"""


@needs_interpreter
def test_offsets_beyond_32_bits():
    environment = dict(os.environ, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run([sys.executable, "-c", FAR_APART], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "agree"), done.stderr[-2000:]


@pytest.mark.gpu
def test_a_graph_follows_the_lengths():
    case = Case("", bias="relative_causal")
    tensors, words, _ = inputs(case, torch.float16)
    launch(**{name: value.clone() for name, value in tensors.items()}, **words)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = launch(**tensors, **words)
    for _ in range(3):
        expected, _ = launch(**{name: value.clone() for name, value in tensors.items()}, **words)
        graph.replay()
        assert torch.equal(out, expected)
        words["cache_lengths"] += 1
