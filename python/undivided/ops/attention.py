"""Multi-head attention: the public ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..dispatch import AttentionCall, Backend, choose
from ..reference import ALiBi, RelativeBias
from . import attention_checks as checks
from .attention_autograd import apply
from .attention_direct import directly
from .attention_plain import Numbers, Tensors, wants_gradient
from .attention_rotary import turned
from .attention_table import ATTENTION
from .checks import autocast_to, is_flag, last_contiguous
from .registration import by_registered_op
from .rotary_checks import check_pair

Bias = Tensor | RelativeBias | ALiBi
Window = tuple[int | None, int | None]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: Window | None = None,
    mask: Tensor | None = None,
    key_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    query_offset: int | Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + bias) v per head (Vaswani et al. 2017, section 3.2), never storing the score matrix.

    Args:
        q: (batch, seqlen_q, nheads, head_dim), float32, bfloat16, float16 (float64 on the reference); any strides
            with head_dim contiguous (a copy is made otherwise).
        k: (batch, seqlen_k, nheads_kv, head_dim); v: (batch, seqlen_k, nheads_kv, head_dim_v). nheads is a multiple
            of nheads_kv: head h reads key head h // (nheads // nheads_kv).
        causal: query i sees keys up to i + query_offset, aligned bottom-right. seqlen_q 2, seqlen_k 4 and the
            reverse (x sees, . does not):

                x x x .         . .
                x x x x         . .
                                x .
                                x x
        window: (left, right), each an int from 0 or None for no bound, inclusive, around the same diagonal; causal is
            right = 0.
        mask: bool, broadcastable to (batch, nheads, seqlen_q, seqlen_k); True is visible.
        key_lengths, query_lengths: int32 (batch,): the valid keys and queries of each row, padding on the right.
            Rows past query_lengths give 0.
        bias: a dense tensor broadcastable like `mask`, added after the softcap, differentiable;
            or `RelativeBias` (T5's learned table, differentiable; Raffel et al. 2020, section 2.1);
            or `ALiBi` (fixed slopes; Press et al. 2022, section 3).
        scale: float; None is 1 / sqrt(head_dim).
        softcap: scores become softcap * tanh(score / softcap); None is off.
        sinks: (nheads,), a learned extra logit that joins the denominator only; None is off.
        dropout_p, seed: dropout on the probabilities, a function of the seed and the element's position. A None
            seed is drawn from torch's default generator.
        query_offset: int, or int32 (batch,): where query 0 stands on the key axis; None is seqlen_k - seqlen_q.
        rotary: (cos, sin) of `undivided.rotary`, each (max_seqlen, head_dim / 2): q and k turn by their positions on
            the key axis first. On a GPU a position that they do not have gives NaN.
        return_lse: also return the log of the softmax's denominator.
        backend: "auto", or one of cuda, triton, cpu, sdpa, reference.

    Returns:
        out (batch, seqlen_q, nheads, head_dim_v), q's dtype; with return_lse also lse, float32
        (batch, nheads, seqlen_q), natural log. A row that sees no key, or only keys whose bias is -inf, gives out 0,
        lse -inf and no gradient, and what stands in a key or value that is masked out never reaches a result. Under
        autocast q, k and v are cast to its dtype first, as in torch's own attention.

    Raises:
        ValueError, TypeError: a shape, value or dtype that is not allowed; the text names it.
        BackendRefused: the backend asked for cannot run the call; the text says why, for every backend.
        NotImplementedError: a second or forward-mode derivative, or a torch.func transform, of a kernel; the reference
            has them all.
    """
    if mask is query_lengths is softcap is sinks is rotary is None and return_lse is False:
        found, seed = directly(
            backend, q, k, v, key_lengths=key_lengths, query_offset=query_offset, bias=bias, causal=causal,
            window=window, scale=scale, dropout_p=dropout_p, seed=seed,
        )  # fmt: skip
        if found is not None:
            return found
    q, k, v = autocast_to(q, k, v)  # type: ignore[assignment]
    checks.check_qkv(q, k, v, dims=4)
    batch, seqlen_q, nheads, head_dim = q.shape
    shape = (batch, nheads, seqlen_q, k.shape[1])
    left, right = checks.check_window(window, causal)
    number = checks.check_numbers(scale, softcap, dropout_p, head_dim)
    offset = checks.check_query_offset(query_offset, batch, q)
    is_flag("return_lse", return_lse)
    tensors, distance, bidirectional = _bias_words(bias, shape, q)
    tensors |= dict(
        sinks=checks.check_sinks(sinks, nheads, q),
        mask=checks.check_mask(mask, shape, q),
        key_lengths=checks.check_lengths("key_lengths", key_lengths, batch, k.shape[1], q),
        query_lengths=checks.check_lengths("query_lengths", query_lengths, batch, seqlen_q, q),
        offsets=offset if isinstance(offset, Tensor) else None,
    )
    seed, tensors["drawn_seed"] = _seed(dropout_p, seed, q)
    numbers = Numbers(
        scale=number,
        left=left,
        right=right,
        offset=None if isinstance(offset, Tensor) else offset,
        max_distance=distance,
        bidirectional=bidirectional,
        softcap=softcap,
        dropout_p=dropout_p,
        seed=seed,
    )
    plain = Tensors(last_contiguous(q), last_contiguous(k), last_contiguous(v), **tensors)
    check_pair(rotary, q)
    call = describe(plain, numbers, return_lse, rotary is not None)
    row = choose(ATTENTION, call, backend)
    if rotary is not None:
        plain = turned(plain, numbers, rotary, row, call)
    out, lse = run(row, plain, numbers)
    return (out, lse) if return_lse else out  # type: ignore[return-value]


def attention_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    window: Window | None = None,
    bias: RelativeBias | ALiBi | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over sequences of different lengths laid end to end, without padding.

    Args:
        q: (total_q, nheads, head_dim); k: (total_k, nheads_kv, head_dim); v: (total_k, nheads_kv, head_dim_v).
        cu_seqlens_q, cu_seqlens_k: int32 (batch + 1,): sequence b owns rows cu_seqlens[b] to cu_seqlens[b + 1]. The
            two may differ (cross attention); a sequence may be empty.
        max_seqlen_q, max_seqlen_k: at least the longest lengths; None computes them, which waits for a GPU.
        The rest as in `attention`; causal and window are aligned bottom-right in each sequence by itself.

    Returns:
        out (total_q, nheads, head_dim_v), rows past cu_seqlens_q[-1] are 0; with return_lse also lse, float32
        (nheads, total_q).

    Raises: as `attention`.
    """
    if softcap is sinks is None and return_lse is False:
        offsets, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        found, seed = directly(
            backend, q, k, v, offsets=offsets, longest=longest, bias=bias, causal=causal, window=window, scale=scale,
            dropout_p=dropout_p, seed=seed,
        )  # fmt: skip
        if found is not None:
            return found
    q, k, v = autocast_to(q, k, v)  # type: ignore[assignment]
    checks.check_qkv(q, k, v, dims=3)
    cu_seqlens_q = checks.check_offsets("cu_seqlens_q", cu_seqlens_q, q.shape[0], q)
    cu_seqlens_k = checks.check_offsets("cu_seqlens_k", cu_seqlens_k, k.shape[0], q)
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            f"cu_seqlens_q {tuple(cu_seqlens_q.shape)} and cu_seqlens_k {tuple(cu_seqlens_k.shape)} differ"
        )
    if isinstance(bias, Tensor):
        raise ValueError("a dense bias has no place in a packed batch; allowed: RelativeBias, ALiBi, None")
    nheads, batch = q.shape[1], cu_seqlens_q.shape[0] - 1
    left, right = checks.check_window(window, causal)
    is_flag("return_lse", return_lse)
    tensors, distance, bidirectional = _bias_words(bias, (batch, nheads, 0, 0), q)
    seed, tensors["drawn_seed"] = _seed(dropout_p, seed, q)
    numbers = Numbers(
        scale=checks.check_numbers(scale, softcap, dropout_p, q.shape[-1]),
        left=left,
        right=right,
        max_distance=distance,
        bidirectional=bidirectional,
        softcap=softcap,
        dropout_p=dropout_p,
        seed=seed,
        max_seqlen_q=checks.check_longest("max_seqlen_q", max_seqlen_q, cu_seqlens_q),
        max_seqlen_k=checks.check_longest("max_seqlen_k", max_seqlen_k, cu_seqlens_k),
    )
    tensors |= dict(sinks=checks.check_sinks(sinks, nheads, q), cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    plain = Tensors(last_contiguous(q), last_contiguous(k), last_contiguous(v), **tensors)
    row = choose(ATTENTION, describe(plain, numbers, return_lse), backend)
    out, lse = run(row, plain, numbers)
    return (out, lse) if return_lse else out  # type: ignore[return-value]


def _bias_words(bias: Bias | None, shape: tuple[int, int, int, int], like: Tensor) -> tuple[dict[str, Any], int, bool]:
    """The tensors that `bias` stands for, with RelativeBias' two numbers."""
    if bias is None:
        return {}, 128, True
    if isinstance(bias, (RelativeBias, ALiBi)):
        checks.check_structured_bias(bias, shape[1], shape[0], like)
        if isinstance(bias, ALiBi):
            return {"alibi_slopes": bias.slopes.float().contiguous()}, 128, True
        return {"relative_table": bias.table}, bias.max_distance, bias.bidirectional
    if isinstance(bias, Tensor):
        return {"bias": checks.check_dense_bias(bias, shape, like)}, 128, True
    raise TypeError(f"bias is a {type(bias).__name__}; allowed: a tensor, RelativeBias, ALiBi or None")


def _seed(dropout_p: float, seed: int | None, like: Tensor) -> tuple[int, Tensor | None]:
    """Dropout's seed, as a number, or as a tensor where it is drawn while a graph is traced."""
    if seed is not None:
        return checks.check_seed(seed), None
    if not dropout_p:
        return 0, None
    drawn = torch.randint(2**62, (), device="cpu")
    return (0, drawn) if by_registered_op(like) else (int(drawn), None)


def describe(tensors: Tensors, numbers: Numbers, return_lse: bool, rotary: bool = False) -> AttentionCall:
    """The plain data on which the choice of a backend rests."""
    q, v = tensors.q, tensors.v
    packed = tensors.cu_seqlens_q is not None
    *batch, seqlen_q, nheads, head_dim = q.shape
    *_, seqlen_k, nheads_kv, head_dim_v = v.shape
    needs_grad, bias_needs_grad = wants_gradient(tensors)
    return AttentionCall(
        q.device.type,
        str(q.dtype).removeprefix("torch."),
        0 if packed else batch[0],
        seqlen_q,
        seqlen_k,
        nheads,
        nheads_kv,
        head_dim,
        head_dim_v,
        packed=packed,
        window=(numbers.left, numbers.right),
        query_offset="tensor" if tensors.offsets is not None else None if numbers.offset is None else "int",
        key_lengths=tensors.key_lengths is not None,
        query_lengths=tensors.query_lengths is not None,
        mask=tensors.mask is not None,
        bias=_bias_name(tensors),
        softcap=numbers.softcap is not None,
        sinks=tensors.sinks is not None,
        dropout=numbers.dropout_p > 0,
        rotary=rotary,
        return_lse=return_lse,
        needs_grad=needs_grad,
        bias_needs_grad=bias_needs_grad,
        max_distance=numbers.max_distance,
    )


def _bias_name(tensors: Tensors) -> str | None:
    if tensors.bias is not None:
        return "dense"
    if tensors.relative_table is not None:
        return "relative"
    return None if tensors.alibi_slopes is None else "alibi"


def run(row: Backend, tensors: Tensors, numbers: Numbers) -> tuple[Tensor, Tensor | None]:
    """Runs a chosen backend on a call in plain form."""
    if row.name == "reference":
        return _run_reference(tensors, numbers)
    if row.name == "sdpa":
        from ..torch_kernels.attention import attention as sdpa_attention

        t, n = tensors, numbers
        causal = n.right == 0
        return sdpa_attention(
            t.q, t.k, t.v, causal=causal, mask=t.mask, key_lengths=t.key_lengths, bias=t.bias, scale=n.scale
        ), None
    return apply(row.module, tensors, numbers)


def _run_reference(tensors: Tensors, numbers: Numbers) -> Any:
    t, n = tensors, numbers
    bias: Bias | None = t.bias
    if t.relative_table is not None:
        bias = RelativeBias(t.relative_table, n.max_distance, n.bidirectional)
    elif t.alibi_slopes is not None:
        bias = ALiBi(t.alibi_slopes)
    shared: dict[str, Any] = dict(
        window=(n.left, n.right),
        bias=bias,
        scale=n.scale,
        softcap=n.softcap,
        sinks=t.sinks,
        dropout_p=n.dropout_p,
        seed=n.seed if t.drawn_seed is None else t.drawn_seed,
        return_lse=True,
    )
    if t.cu_seqlens_q is not None and t.cu_seqlens_k is not None:
        return reference.attention_packed(
            t.q, t.k, t.v, cu_seqlens_q=t.cu_seqlens_q, cu_seqlens_k=t.cu_seqlens_k, **shared
        )
    return reference.attention(
        t.q,
        t.k,
        t.v,
        mask=t.mask,
        key_lengths=t.key_lengths,
        query_lengths=t.query_lengths,
        query_offset=n.offset if t.offsets is None else t.offsets,
        **shared,
    )
