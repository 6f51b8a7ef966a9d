"""Attention: who computes it. A provider is a function (case, device) -> function of q, k, v (and table), and a line
in `providers`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .gate import compiled, ours
from .op import Absent, Function, Provider
from .peers import attention_peers, refuse


def providers(device: str, backends: Sequence[str]) -> list[Provider | Absent]:
    """On a GPU without what is another's kernel under another name: compiled SDPA calls the same one, and the math
    kernel is what plain SDPA takes where no other does."""
    version = torch.__version__
    if device == "cuda":
        fast = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
        return [
            *ours(own, backends),
            Provider("torch sdpa", version, sdpa),
            *(Provider(f"torch sdpa {short(one)}", version, only(one)) for one in fast),
            Provider("torch varlen", version, varlen),
            Provider("torch flex", version, flex_where_it_counts, compiles=True),
            *attention_peers(device),
        ]
    forced = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    return [
        *ours(own, backends),
        Provider("torch sdpa", version, sdpa),
        *(Provider(f"torch sdpa {short(one)}", version, only(one), slow=one == SDPBackend.MATH) for one in forced),
        Provider("torch.compile", version, compiled(sdpa), compiles=True),
        Provider("torch flex", version, flex, compiles=True),
        *attention_peers(device),
    ]


def own(case: Any, device: str, backend: str) -> Function:
    import undivided

    from .attention import with_words

    if not case.packed:
        return with_words(case, device, undivided.attention, backend=backend)
    # Known, as to the peers: to ask a GPU for it would be to wait for it.
    longest = dict(max_seqlen_q=max(case.lengths), max_seqlen_k=max(case.lengths))
    return with_words(case, device, undivided.attention_packed, backend=backend, **longest)


def sdpa(case: Any, device: str) -> Function:
    """As a user of plain torch calls it: a mask for padding, a loop over packed sequences, biases made dense. On a GPU
    as one calls it who looked for what is fast there: packed sequences padded, T5's bias from a row a distance."""
    if case.packed:
        return padded_sdpa(case, device) if device == "cuda" else packed_sdpa(case)
    if case.bias == "relative" and device == "cuda":
        return dense_relative(case, device)
    mask = dense_bias(case, device)
    buckets = relative(case, device) if case.bias == "relative" else None

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
        extra = mask if table is None else table[buckets].permute(2, 0, 1)[None]
        return heads_first(q, k, v, case, attn_mask=extra, is_causal=case.causal)

    return function


def heads_first(q: Tensor, k: Tensor, v: Tensor, case: Any, **words: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=case.nheads != case.nheads_kv, **words)
    return out.transpose(1, 2)


def packed_sdpa(case: Any) -> Function:
    ends = list(accumulate(case.lengths))
    spans = [slice(end - n, end) for end, n in zip(ends, case.lengths, strict=True)]

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [heads_first(q[None, one], k[None, one], v[None, one], case, is_causal=case.causal) for one in spans]
        return torch.cat([part[0] for part in parts])

    return function


def padded_sdpa(case: Any, device: str) -> Function:
    """Packed sequences into a padded batch, a mask, and back; both are copies whose gradients are copies."""
    inside, places = dense_bias(case, device), valid_places(case, device)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (padded(x, places, case) for x in (q, k, v))
        out = heads_first(q, k, v, case, attn_mask=inside, is_causal=case.causal)
        return out.flatten(0, 1).index_select(0, places)

    return function


def valid_places(case: Any, device: str) -> Tensor:
    """(total,): where the tokens of packed sequences stand in the padded batch with its rows laid end to end."""
    return torch.cat([torch.arange(n, device=device) + b * case.seqlen_k for b, n in enumerate(case.lengths)])


def padded(x: Tensor, places: Tensor, case: Any) -> Tensor:
    whole = x.new_zeros(len(case.lengths) * case.seqlen_k, *x.shape[1:])
    return whole.index_copy(0, places, x).unflatten(0, (-1, case.seqlen_k))


def varlen(case: Any, device: str) -> Function:
    """torch's flash kernel for packed sequences; a padded batch is packed first and padded again, as its users do."""
    refuse(case, "full batches through this adapter", not case.lengths)
    refuse(case, "a bias", case.bias)
    refuse(case, "float32", case.dtype == "float32")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise NotImplementedError("this version of torch has no varlen_attn") from error
    known = inspect.signature(varlen_attn).parameters
    words: dict[str, Any] = dict(is_causal=case.causal) if "is_causal" in known else dict(
        window_size=(-1, 0 if case.causal else -1)
    )  # fmt: skip
    if case.nheads != case.nheads_kv:
        refuse(case, "grouped heads in this version", "enable_gqa" not in known)
        words["enable_gqa"] = True
    starts = torch.tensor([0, *accumulate(case.lengths)], dtype=torch.int32, device=device)
    places = valid_places(case, device)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Any:
        if not case.packed:
            q, k, v = (x.flatten(0, 1).index_select(0, places) for x in (q, k, v))
        out: Any = varlen_attn(q, k, v, starts, starts, case.seqlen_q, case.seqlen_k, **words)
        return out if case.packed else padded(out, places, case)

    return function


def dense_relative(case: Any, device: str) -> Function:
    """T5's bias as a number a distance, laid out as a matrix by sliding over them. The gradient of `table[buckets]`
    takes half a second on an H200 at 2048 x 2048, where all distances add to 32 numbers; here it is a sum a distance,
    in float32."""
    buckets = buckets_by_distance(case, device)

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        bias = by_distance(table, buckets).unfold(1, case.seqlen_k, 1).flip(1)
        return heads_first(q, k, v, case, attn_mask=bias.to(q.dtype)[None], is_causal=case.causal)

    return function


def buckets_by_distance(case: Any, device: str) -> Tensor:
    """float32 (seqlen_q + seqlen_k - 1, 32), 1 at the bucket of a distance, that of the last query to key 0 first."""
    from undivided.reference.bias import relative_buckets

    distances = torch.arange(1 - case.seqlen_k, case.seqlen_q, device=device)
    return F.one_hot(relative_buckets(distances, 32), 32).float()


def by_distance(table: Tensor, buckets: Tensor) -> Tensor:
    """float32 (nheads, seqlen_q + seqlen_k - 1): a matmul, and so is the gradient of the table."""
    return (buckets @ table.float()).t().contiguous()


def dense_bias(case: Any, device: str) -> Tensor | None:
    """Padding as a bool mask (batch, 1, 1, seqlen_k), ALiBi as a bias (1, nheads, seqlen_q, seqlen_k)."""
    if case.lengths:
        inside = torch.arange(case.seqlen_k, device=device) < torch.tensor(case.lengths, device=device)[:, None]
        return inside[:, None, None, :]
    if case.bias == "alibi":
        away = distance(case, device).abs().neg()
        return (case.slopes(device)[:, None, None] * away).to(getattr(torch, case.dtype))[None]
    return None


def distance(case: Any, device: str) -> Tensor:
    """Key position minus query position, the last query beside the last key: (seqlen_q, seqlen_k)."""
    i = torch.arange(case.seqlen_q, device=device) + case.seqlen_k - case.seqlen_q
    return torch.arange(case.seqlen_k, device=device) - i[:, None]


def relative(case: Any, device: str) -> Tensor:
    from undivided.reference.bias import relative_buckets

    return relative_buckets(distance(case, device), 32)


def only(backend: SDPBackend, plain: Callable[[Any, str], Function] = sdpa) -> Callable[[Any, str], Function]:
    """torch's attention, called as in `plain`, with one of its kernels and no other."""

    def make(case: Any, device: str) -> Function:
        inner = plain(case, device)

        def function(**values: Tensor) -> Tensor:
            try:
                with sdpa_kernel(backend):
                    return inner(**values)
            except RuntimeError as error:
                if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                    raise
                raise NotImplementedError(f"torch's {short(backend)} kernel does not take this case") from error

        return function

    return make


def short(backend: SDPBackend) -> str:
    return backend.name.removesuffix("_ATTENTION").lower()


def flex_where_it_counts(case: Any, device: str) -> Function:
    """On a GPU it compiles for seconds a shape: with T5's bias, where it is the peer, and at one plain shape."""
    plain = case.seqlen_q == case.seqlen_k == 4096 and not (case.causal or case.lengths or case.bias)
    if case.bias == "relative":
        return flex_by_distance(case, device)
    if not plain or case.nheads != case.nheads_kv:
        raise NotImplementedError("left out on a GPU: it is timed with T5's bias, and without a mask at 4096 x 4096")
    return flex(case, device)


def flex_by_distance(case: Any, device: str) -> Function:
    """T5's bias read by distance: of `table[bucket]` the gradient would add all distances to 32 numbers."""
    from torch.nn.attention.flex_attention import flex_attention

    buckets, last = buckets_by_distance(case, device), case.seqlen_q - 1
    kernel = compiled(lambda case, device: flex_attention)(case, device)

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        numbers = by_distance(table, buckets)

        def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return value + numbers[h, j - i + last]

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return kernel(q, k, v, score_mod=score).transpose(1, 2)

    return function


def flex(case: Any, device: str) -> Function:
    """FlexAttention: block masks for causal and padding, a score function for the biases."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    refuse(case, "packed batches through this adapter", case.packed)
    mask = None
    if case.causal or case.lengths:
        shift = case.seqlen_k - case.seqlen_q
        valid = torch.tensor(case.lengths or [case.seqlen_k] * case.batch, device=device)

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            inside = j < valid[b]
            return inside & (j <= i + shift) if case.causal else inside

        mask = create_block_mask(seen, case.batch, None, case.seqlen_q, case.seqlen_k, device=device)
    buckets = relative(case, device) if case.bias == "relative" else None
    slopes, away = case.slopes(device), distance(case, device).abs()
    kernel = compiled(lambda case, device: flex_attention)(case, device)

    def function(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
        if device == "cpu" and q.requires_grad:
            raise NotImplementedError("FlexAttention has no backward on a CPU")

        def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if table is not None and buckets is not None:
                return value + table[buckets[i, j], h]
            return value - slopes[h] * away[i, j]

        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        score_mod = score if case.bias else None
        out = kernel(q, k, v, score_mod=score_mod, block_mask=mask, enable_gqa=case.nheads != case.nheads_kv)
        return out.transpose(1, 2)

    return function
