"""The functions with flash-attention's signatures: against plain PyTorch in float64, and the signatures themselves."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import undivided
from rows import DEVICE, random
from undivided import ALiBi
from undivided.integrations.flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from undivided.testing import honest
from undivided.testing.compare import compare
from undivided.testing.tolerance import check

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
NHEADS, NHEADS_KV, HEAD_DIM = 4, 2, 16

COMMON = "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None"
SIGNATURES = {
    flash_attn_func: f"q, k, v, {COMMON}, deterministic=False, return_attn_probs=False",
    flash_attn_varlen_func: "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, "
    f"{COMMON}, deterministic=False, return_attn_probs=False, block_table=None",
    flash_attn_with_kvcache: "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, "
    "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, "
    "window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0, "
    "return_softmax_lse=False",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_names_order_and_defaults_of_the_arguments(function):
    parameters = inspect.signature(function).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    text = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    assert text == SIGNATURES[function]


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def slopes(*shape: int) -> torch.Tensor:
    return random(*shape, seed=8).abs()


# Flash-attention's words, and ours for the same.
WORDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({"causal": True}, {"causal": True}),
    "window": ({"window_size": (3, 1)}, {"window": (3, 1)}),
    "window to the left": ({"window_size": (4, -1), "causal": True}, {"window": (4, None), "causal": True}),
    "softcap and scale": ({"softcap": 2.0, "softmax_scale": 0.5}, {"softcap": 2.0, "scale": 0.5}),
    "slopes": ({"alibi_slopes": slopes(NHEADS)}, {"bias": ALiBi(slopes(NHEADS))}),
    "slopes of each row": (
        {"alibi_slopes": slopes(2, NHEADS), "causal": True},
        {"bias": ALiBi(slopes(2, NHEADS)), "causal": True},
    ),
}


def agree(tensors: dict[str, torch.Tensor], theirs, exact) -> None:
    """Output and gradients, by a budget that plain PyTorch in the same dtype sets."""
    verdicts = compare(("out", "lse"), tensors, theirs, exact, exact, backward=True)
    assert len(verdicts) == 2 + len(tensors) and all(verdict.ok for verdict in verdicts), verdicts


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("sizes", [(19, 19), (7, 19), (19, 7)], ids=str)
def test_a_batch(name, sizes):
    theirs, ours = WORDS[name]
    shapes = dict(q=(sizes[0], NHEADS), k=(sizes[1], NHEADS_KV), v=(sizes[1], NHEADS_KV))
    tensors = {key: random(2, *shape, HEAD_DIM, seed=n) for n, (key, shape) in enumerate(shapes.items())}
    agree(
        tensors,
        lambda **t: flash_attn_func(*t.values(), return_attn_probs=True, **theirs)[:2],
        lambda **t: honest.attention(**t, **ours),
    )
    alone = flash_attn_func(*tensors.values(), **theirs)
    assert torch.equal(alone, flash_attn_func(*tensors.values(), deterministic=True, **theirs))


@dtypes
@pytest.mark.parametrize("name", [name for name in WORDS if name != "slopes of each row"])
def test_a_packed_batch(name, dtype):
    theirs, ours = WORDS[name]
    starts = dict(cu_seqlens_q=ints(0, 5, 5, 12), cu_seqlens_k=ints(0, 3, 8, 19))
    shapes = dict(q=(12, NHEADS), k=(19, NHEADS_KV), v=(19, NHEADS_KV))
    tensors = {key: random(*shape, HEAD_DIM, seed=n, dtype=dtype) for n, (key, shape) in enumerate(shapes.items())}
    agree(
        tensors,
        lambda **t: flash_attn_varlen_func(*t.values(), *starts.values(), 7, 11, return_attn_probs=True, **theirs)[:2],
        lambda **t: honest.attention_packed(**t, **starts, **ours),
    )
    assert isinstance(flash_attn_varlen_func(*tensors.values(), *starts.values(), 7, 11), torch.Tensor)


def test_dropout_is_seeded_from_torchs_generator():
    q = random(2, 9, NHEADS, HEAD_DIM)
    torch.manual_seed(3)
    first, second = (flash_attn_func(q, q, q, 0.4) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, flash_attn_func(q, q, q, dropout_p=0.4)) and not torch.equal(first, second)
    packed = (ints(0, 9, 18), ints(0, 9, 18), 9, 9)
    assert not torch.equal(*(flash_attn_varlen_func(*(q.flatten(0, 1),) * 3, *packed, 0.4) for _ in range(2)))


def test_the_third_result_is_empty():
    q = random(2, 9, NHEADS, HEAD_DIM)
    assert flash_attn_func(q, q, q, return_attn_probs=True)[2].numel() == 0
    for function, rest in ((flash_attn_func, ()), (flash_attn_varlen_func, (ints(0, 9), ints(0, 9), 9, 9))):
        values = (q if not rest else q[0],) * 3
        with pytest.raises(NotImplementedError, match="return_attn_probs with dropout_p = 0.1: dropout's pattern"):
            function(*values, *rest, dropout_p=0.1, return_attn_probs=True)


# Caches.

BATCH, LONGEST, NEW = 3, 24, 2
LENGTHS = (5, 0, 17)


def turned(x: torch.Tensor, angles: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotation as a product of complex numbers; x (seqlen, nheads, head_dim), angles (seqlen, rotary_dim / 2)."""
    half = angles.shape[1]
    part, rest = x[..., : 2 * half], x[..., 2 * half :]
    pairs = (part[..., 0::2], part[..., 1::2]) if interleaved else (part[..., :half], part[..., half:])
    product = torch.complex(*pairs) * torch.polar(torch.ones_like(angles), angles)[:, None]
    parts = (product.real, product.imag)
    back = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    return torch.cat([back, rest], -1)


class Caches:
    """Caches with NaN behind what is valid, and what a step over them must give, row by row in float64."""

    def __init__(self, dtype: torch.dtype, seqlen_q: int = NEW) -> None:
        self.dtype = dtype
        self.k_cache, self.v_cache = (
            random(BATCH, LONGEST, NHEADS_KV, HEAD_DIM, seed=n, dtype=dtype) for n in (11, 12)
        )
        for cache in (self.k_cache, self.v_cache):
            for b, length in enumerate(LENGTHS):
                cache[b, length:] = torch.nan
        self.q = random(BATCH, seqlen_q, NHEADS, HEAD_DIM, seed=13, dtype=dtype)
        self.k, self.v = (random(BATCH, NEW, NHEADS_KV, HEAD_DIM, seed=n, dtype=dtype) for n in (14, 15))

    def expected(self, to: torch.dtype, angles=None, interleaved=True, append=True, **words: Any) -> list[torch.Tensor]:
        """out and lse of every row."""
        rows = []
        moving = bool(words.get("causal") or words.get("window"))
        for b, length in enumerate(LENGTHS):
            q, k, v = (x[b].to(to) for x in (self.q, self.k, self.v))
            if angles is not None:
                place = angles.to(to)[length:]
                q = turned(q, place[: len(q)] if moving else place[:1].expand(len(q), -1), interleaved)
                k = turned(k, place[: len(k)], interleaved)
            keys, values = (x[b, :length].to(to) for x in (self.k_cache, self.v_cache))
            if append:
                keys, values = torch.cat([keys, k]), torch.cat([values, v])
            rows.append(honest.attention(q[None], keys[None], values[None], **words))
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]


def agree_with(caches: Caches, got: tuple[torch.Tensor, torch.Tensor], expected, honestly) -> None:
    verdicts = [check(*row) for row in zip(("out", "lse"), got, expected, honestly, strict=True)]
    assert all(verdict.ok for verdict in verdicts), verdicts


STEPS = {name: WORDS[name] for name in ("plain", "causal", "window", "window to the left", "slopes")}
STEPS["softcap"] = ({"softcap": 2.0, "causal": True}, {"softcap": 2.0, "causal": True})


@pytest.mark.parametrize("name", STEPS)
@dtypes
def test_a_step_appends_and_attends(name, dtype):
    theirs, ours = STEPS[name]
    caches = Caches(dtype)
    expected, honestly = (caches.expected(to, **ours) for to in (torch.float64, dtype))
    got = flash_attn_with_kvcache(
        caches.q, caches.k_cache, caches.v_cache, caches.k, caches.v,
        cache_seqlens=ints(*LENGTHS), return_softmax_lse=True, num_splits=3, **theirs,
    )  # fmt: skip
    agree_with(caches, got, expected, honestly)
    for b, length in enumerate(LENGTHS):
        assert torch.equal(caches.k_cache[b, length : length + NEW], caches.k[b])
        assert torch.equal(caches.v_cache[b, length : length + NEW], caches.v[b])
        assert caches.k_cache[b, length + NEW :].isnan().all()


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rotary_dim", [HEAD_DIM, 8])
@pytest.mark.parametrize("words", [{}, {"causal": True}, {"window": (3, 1)}], ids=str)
def test_rotary_positions(interleaved, rotary_dim, words):
    """All queries stand behind the cache unless causal or a window give each a place of its own."""
    caches = Caches(torch.float32)
    angles = random(LONGEST, rotary_dim // 2, seed=16)
    words = dict(words)
    theirs = {"window_size": words["window"]} if "window" in words else words
    own = dict(angles=angles, interleaved=interleaved)
    expected, honestly = (caches.expected(to, **own, **words) for to in (torch.float64, torch.float32))
    got = flash_attn_with_kvcache(
        caches.q, caches.k_cache, caches.v_cache, caches.k, caches.v, angles.cos(), angles.sin(), ints(*LENGTHS),
        rotary_interleaved=interleaved, return_softmax_lse=True, **theirs,
    )  # fmt: skip
    agree_with(caches, got, expected, honestly)
    place = turned(caches.k[2], angles[17 : 17 + NEW], interleaved)
    torch.testing.assert_close(caches.k_cache[2, 17 : 17 + NEW], place)


def step(caches: Caches, **words: Any) -> Any:
    return flash_attn_with_kvcache(caches.q, caches.k_cache, caches.v_cache, **words)


def test_without_new_tokens_the_caches_stay():
    caches = Caches(torch.float32, seqlen_q=1)
    before = caches.k_cache.clone()
    expected, honestly = (caches.expected(to, append=False) for to in (torch.float64, torch.float32))
    got = step(caches, cache_seqlens=ints(*LENGTHS), return_softmax_lse=True)
    agree_with(caches, got, expected, honestly)
    assert torch.equal(caches.k_cache.nan_to_num(7), before.nan_to_num(7))
    assert got[0][1].abs().max() == 0 and got[1][1].isneginf().all()  # nothing in the cache


def test_cache_seqlens_may_be_one_number_or_all():
    caches = Caches(torch.float32)
    full = random(BATCH, LONGEST, NHEADS_KV, HEAD_DIM, seed=17)
    for given, length in ((9, 9), (None, LONGEST)):
        got = flash_attn_with_kvcache(caches.q, full, full, cache_seqlens=given)
        torch.testing.assert_close(got, undivided.attention(caches.q, full[:, :length], full[:, :length]))


def test_rows_of_a_larger_cache():
    """cache_batch_idx: each row reads and writes its own row of the cache, and no other row changes."""
    caches, rows = Caches(torch.float32), (4, 0, 2)
    expected = flash_attn_with_kvcache(
        caches.q, caches.k_cache.clone(), caches.v_cache.clone(), caches.k, caches.v, cache_seqlens=ints(*LENGTHS)
    )
    large = [torch.full((5, LONGEST, NHEADS_KV, HEAD_DIM), 3.0, device=DEVICE) for _ in range(2)]
    for n, cache in zip(large, (caches.k_cache, caches.v_cache), strict=True):
        n[list(rows)] = cache
    words = dict(cache_seqlens=ints(*LENGTHS), cache_batch_idx=ints(*rows))
    got = flash_attn_with_kvcache(caches.q, *large, caches.k, caches.v, **words)
    torch.testing.assert_close(got, expected)
    assert torch.equal(large[0][4, 5 : 5 + NEW], caches.k[0]) and (large[0][[1, 3]] == 3).all()


def test_paged_caches():
    caches, size = Caches(torch.float32), 8
    expected = flash_attn_with_kvcache(
        caches.q, caches.k_cache.clone(), caches.v_cache.clone(), caches.k, caches.v, cache_seqlens=ints(*LENGTHS)
    )
    order = torch.randperm(BATCH * LONGEST // size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    table = torch.argsort(order).view(BATCH, -1).to(torch.int32)
    blocks = [cache.reshape(-1, size, NHEADS_KV, HEAD_DIM)[order] for cache in (caches.k_cache, caches.v_cache)]
    words = dict(cache_seqlens=ints(*LENGTHS), block_table=table)
    torch.testing.assert_close(flash_attn_with_kvcache(caches.q, *blocks, caches.k, caches.v, **words), expected)


Q = random(BATCH, 1, NHEADS, HEAD_DIM)
CACHE = random(BATCH, LONGEST, NHEADS_KV, HEAD_DIM)
NEW_ONE = random(BATCH, 1, NHEADS_KV, HEAD_DIM)
TABLE = torch.ones(LONGEST, 4, device=DEVICE)
REFUSED = {
    "leftpad": (dict(cache_leftpad=ints(0, 1, 2)), NotImplementedError, "cache_leftpad: caches start at position 0"),
    "k alone": (dict(k=NEW_ONE, cache_seqlens=3), ValueError, "k and v must be given together"),
    "no lengths": (dict(k=NEW_ONE, v=NEW_ONE), ValueError, "cache_seqlens must be given with k and v"),
    "both ways": (
        dict(cache_batch_idx=ints(0, 1, 2), block_table=ints(0, 1, 2)[:, None]),
        ValueError,
        "cache_batch_idx and block_table exclude one another",
    ),
    "row": (
        dict(cache_batch_idx=ints(0, 1, 3)),
        ValueError,
        "cache_batch_idx holds values from 0 to 3; allowed: 0 to 2",
    ),
    "rows": (dict(cache_batch_idx=ints(0, 1)), ValueError, r"cache_batch_idx has shape \(2,\), expected \(batch,\)"),
    "cosines alone": (
        dict(rotary_cos=TABLE, cache_seqlens=3),
        ValueError,
        "rotary_cos, rotary_sin and k must be given",
    ),
    "rotary without k": (dict(rotary_cos=TABLE, rotary_sin=TABLE), ValueError, "rotary_cos, rotary_sin and k must be"),
    "wide rotary": (
        dict(k=NEW_ONE, v=NEW_ONE, cache_seqlens=3, rotary_cos=TABLE.repeat(1, 3), rotary_sin=TABLE.repeat(1, 3)),
        ValueError,
        r"rotary_cos has shape \(24, 12\), expected .* at most head_dim 16",
    ),
    "lengths": (dict(cache_seqlens=ints(1, 2)), ValueError, r"cache_seqlens has shape \(2,\), expected \(batch,\)"),
    "lengths' type": (dict(cache_seqlens=2.5), TypeError, "cache_seqlens = 2.5 must be an int"),
    "too long": (dict(cache_seqlens=25), ValueError, "= 25; allowed: 0 to 24"),
    "splits": (dict(num_splits="2"), TypeError, "num_splits = '2' must be an int"),
    "window": (dict(window_size=3), TypeError, r"window_size = 3 must be \(left, right\)"),
    "window's side": (dict(window_size=(3, 0.5)), TypeError, "window_size right = 0.5 must be an int; -1 is no bound"),
    "softcap": (dict(softcap=-1.0), ValueError, "softcap = -1.0 must be above 0"),
    "slopes": (dict(alibi_slopes=0.5), TypeError, "alibi_slopes must be a tensor, got float"),
}
ON_CPU_ONLY = ("row", "too long")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_how(name):
    if name in ON_CPU_ONLY and DEVICE.type != "cpu":
        pytest.skip("values on a GPU are not looked at")
    words, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        flash_attn_with_kvcache(Q, CACHE, CACHE, **words)


def test_a_packed_batch_reads_no_paged_cache():
    q = random(9, NHEADS, HEAD_DIM)
    with pytest.raises(NotImplementedError, match="block_table: packed queries read no paged cache"):
        flash_attn_varlen_func(q, q, q, ints(0, 9), ints(0, 9), 9, 9, block_table=ints(0)[:, None])


def test_flags_must_be_flags():
    with pytest.raises(TypeError, match="deterministic = 1 must be True or False"):
        flash_attn_func(CACHE, CACHE, CACHE, deterministic=1)
    with pytest.raises(TypeError, match="causal = 'yes' must be True or False"):
        flash_attn_with_kvcache(Q, CACHE, CACHE, causal="yes")


def test_a_step_has_no_gradient_and_says_so():
    with pytest.raises((NotImplementedError, RuntimeError), match="undivided.attention"):
        flash_attn_with_kvcache(Q.clone().requires_grad_(), CACHE, CACHE)
