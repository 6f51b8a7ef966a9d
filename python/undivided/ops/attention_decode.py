"""Attention of a few new queries over caches of keys and values: the public op."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import DecodeCall, choose, load
from ..reference import ALiBi, RelativeBias
from ..reference.precision import autocasting
from . import attention_decode_checks as checks
from .attention_checks import check_numbers, check_sinks, check_structured_bias, check_window, plain_integers
from .attention_decode_call import apply
from .attention_decode_plain import Numbers, Tensors
from .attention_decode_table import ATTENTION_DECODE
from .checks import is_flag, last_contiguous
from .direct import DIRECT, may_go_directly, relative_words
from .rotary_checks import check_pair


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_lengths: Tensor,
    *,
    k: Tensor | None = None,
    v: Tensor | None = None,
    block_table: Tensor | None = None,
    causal: bool = True,
    window: tuple[int | None, int | None] | None = None,
    bias: RelativeBias | ALiBi | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """A step of decoding: a few queries a row look at a cache of keys and values, into which new ones are written.

    The queries are the last ones of their row: with total = cache_lengths[b] + seqlen_new tokens, query i stands at
    position total - seqlen_q + i. The result is that of `attention(q, keys, values, key_lengths=total,
    query_offset=total - seqlen_q, ...)` over the caches after the call. Cross attention to a memory is the same with
    causal=False and without k and v.

    Args:
        q: (batch, seqlen_q, nheads, head_dim), float32, bfloat16, float16 (float64 on the reference). seqlen_q is 1 in
            a step of decoding, a few where several tokens are checked at once; any number is allowed.
        k_cache, v_cache: (batch, longest, nheads_kv, head_dim) and (..., head_dim_v), q's dtype, any strides with
            head_dim contiguous; without k and v they may be expanded (stride 0). nheads is a multiple of nheads_kv.
            What stands in them behind a row's tokens never reaches a result. A CPU reads them fastest where the tokens
            of a head lie one after the other, as in the transposed view of (batch, nheads_kv, longest, head_dim).
        cache_lengths: int32 (batch,): how many tokens of each row are in the caches before the call. It is not
            changed: the caller adds seqlen_new.
        k, v: (batch, seqlen_new, nheads_kv, head_dim) and (..., head_dim_v), both or neither: new tokens. The call
            writes them into the caches at cache_lengths[b] and after, in place, and attends to them too.
        block_table: int32 (batch, most_blocks), for paged caches (Kwon et al. 2023, section 4): k_cache and v_cache
            are then (num_blocks, block_size, nheads_kv, head_dim[_v]), and position p of row b is slot
            p % block_size of block block_table[b, p // block_size]. Entries behind a row's tokens are not read.
        causal: query i sees the keys up to its own position. For seqlen_q 2 after 3 tokens of the cache and 2 new
            ones (x sees, . does not):

                x x x x .
                x x x x x
        window: (left, right), each an int from 0 or None for no bound, inclusive, around a query's position; causal
            is right = 0.
        bias: `RelativeBias` (T5), `ALiBi` or None, by the distance of the positions.
        scale, softcap, sinks: as in `attention`.
        rotary: (cos, sin) of `undivided.rotary`, each (max_seqlen, head_dim / 2): q and k turn by their positions
            first, so that the keys in the caches are turned ones. On a GPU a position that they do not have gives NaN.
        return_lse: also return the log of the softmax's denominator.
        backend: "auto", or one of triton, cpu, reference.

    Returns:
        out (batch, seqlen_q, nheads, head_dim_v), q's dtype; with return_lse also lse, float32
        (batch, nheads, seqlen_q), natural log. A row without a visible key gives out 0 and lse -inf. Under autocast
        q, k and v are cast to the dtype of the caches.

    Nothing waits for a GPU, so the call may be captured in a CUDA graph. There the values of cache_lengths and
    block_table are not checked, and tokens that do not fit the caches are not written.

    Raises:
        ValueError, TypeError: a shape, value or dtype that is not allowed; the text names it.
        NotImplementedError: gradients are enabled and an input requires one, or a torch.func transform is active.
        BackendRefused: the backend asked for cannot run the call; the text says why, for every backend.
    """
    few_words = softcap is sinks is rotary is block_table is None and return_lse is False
    table = getattr(bias, "table", None)
    if few_words and may_go_directly(backend, q, k_cache, v_cache, k, v, table):
        relative = relative_words(bias)
        if relative is not None:
            found: Tensor | None = load(DIRECT).attention_decode(
                q, k_cache, v_cache, cache_lengths, k, v, relative, causal, window, scale
            )
            if found is not None:
                return found
    if isinstance(q, Tensor) and isinstance(k_cache, Tensor) and autocasting(q):
        q, k, v = (value.to(k_cache.dtype) if isinstance(value, Tensor) else value for value in (q, k, v))  # type: ignore[assignment]
    longest = checks.check_caches(q, k_cache, v_cache, block_table)
    checks.check_new(q, k, v, k_cache, v_cache)
    checks.check_lengths(cache_lengths, q)
    batch, seqlen_q, nheads, head_dim = q.shape
    left, right = check_window(window, causal)
    is_flag("return_lse", return_lse)
    table, slopes, distance, bidirectional = _bias_words(bias, nheads, q)
    tensors = Tensors(
        last_contiguous(q),
        k_cache,
        v_cache,
        plain_integers(cache_lengths),
        None if k is None else last_contiguous(k),
        None if v is None else last_contiguous(v),
        None if block_table is None else plain_integers(block_table),
        table,
        slopes,
        check_sinks(sinks, nheads, q),
        *check_pair(rotary, q),
    )
    numbers = Numbers(check_numbers(scale, softcap, 0.0, head_dim), left, right, distance, bidirectional, softcap)
    checks.refuse_gradients(tensors)
    call = DecodeCall(
        q.device.type,
        str(q.dtype).removeprefix("torch."),
        batch,
        seqlen_q,
        longest,
        nheads,
        k_cache.shape[2],
        head_dim,
        v_cache.shape[3],
        block_table is not None,
        k is not None,
        (left, right),
        None if bias is None else "alibi" if table is None else "relative",
        softcap is not None,
        sinks is not None,
        rotary is not None,
        return_lse,
    )
    out, lse = apply(choose(ATTENTION_DECODE, call, backend), tensors, numbers)
    return (out, lse) if return_lse else out


def _bias_words(
    bias: RelativeBias | ALiBi | None, nheads: int, q: Tensor
) -> tuple[Tensor | None, Tensor | None, int, bool]:
    """(RelativeBias' table, ALiBi's slopes, RelativeBias' two numbers)."""
    if bias is None:
        return None, None, 128, True
    if not isinstance(bias, (RelativeBias, ALiBi)):
        raise TypeError(f"bias is a {type(bias).__name__}; allowed: RelativeBias, ALiBi or None")
    check_structured_bias(bias, nheads, q.shape[0], q)
    if isinstance(bias, ALiBi):
        return None, bias.slopes.float().contiguous(), 128, True
    return bias.table, None, bias.max_distance, bias.bidirectional
