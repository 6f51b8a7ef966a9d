"""What an op cannot take is named, with what it can: every argument, every way to get it wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import undivided
from undivided import ALiBi, BackendRefused, RelativeBias, nn

NAN, INF = math.nan, math.inf
INT = torch.int32


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def meta(*shape: int) -> torch.Tensor:
    return zeros(*shape, device="meta")


def ints(*values: int, **options) -> torch.Tensor:
    return torch.tensor(values, **{"dtype": INT, **options})


def bools(*shape: int, device: str = "cpu") -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool, device=device)


class Array:
    """As numpy's: whether it equals something is no single truth."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    def __repr__(self) -> str:
        return "array of 2"


def check(op, good: dict, change: dict, error: type[Exception], text: str) -> None:
    op(**good)
    with pytest.raises(error, match=text):
        op(**(good | change))


# q, k, v of 2 rows, 3 queries, 5 keys, 4 heads that share 2 key heads.
QKV = dict(q=zeros(2, 3, 4, 8), k=zeros(2, 5, 2, 8), v=zeros(2, 5, 2, 8))
TENSORS = [
    (dict(q=[1.0]), TypeError, "q must be a tensor, got list"),
    (dict(k=None), TypeError, "k must be a tensor, got NoneType"),
    (dict(q=zeros(2, 3, 4, 8, dtype=INT)), TypeError, "q has dtype torch.int32; allowed: float32, bfloat16"),
    (dict(v=zeros(2, 5, 2, 8, dtype=torch.complex64)), TypeError, "v has dtype torch.complex64; allowed: float32"),
    (dict(k=QKV["k"].half()), TypeError, "k has dtype torch.float16, q has torch.float32; they must be the same"),
    (dict(q=zeros(2, 3, 4)), ValueError, r"q has 3 dimensions \(2, 3, 4\), expected 4: \(batch, seqlen, nheads"),
    (dict(k=zeros(1, 5, 2, 8)), ValueError, "batch differs: q 2, k 1, v 2"),
    (dict(v=zeros(2, 4, 2, 8)), ValueError, r"v \(2, 4, 2, 8\) differ in seqlen or nheads"),
    (dict(v=zeros(2, 5, 1, 8)), ValueError, r"v \(2, 5, 1, 8\) differ in seqlen or nheads"),
    (dict(k=zeros(2, 5, 2, 9)), ValueError, "head_dim differs: q 8, k 9"),
    (dict(k=zeros(2, 5, 3, 8), v=zeros(2, 5, 3, 8)), ValueError, "nheads 4 is not a multiple of nheads_kv 3"),
    (dict(k=zeros(2, 5, 0, 8), v=zeros(2, 5, 0, 8)), ValueError, "nheads 4 and nheads_kv 0 must be at least 1"),
    (dict(q=zeros(2, 3, 0, 8)), ValueError, "nheads 0 and nheads_kv 2 must be at least 1"),
    (dict(v=zeros(2, 5, 2, 0)), ValueError, "head_dim 8 and head_dim_v 0 must be at least 1"),
    (dict(k=meta(2, 5, 2, 8)), ValueError, "k is on meta, q is on cpu; they must be on one device"),
    (dict(q=meta(2, 3, 4, 8)), ValueError, "k is on cpu, q is on meta; they must be on one device"),
]  # fmt: skip
MASKS = [
    (dict(mask="causal"), TypeError, "mask must be a tensor, got str"),
    (dict(mask=zeros(3, 5)), TypeError, "mask has dtype torch.float32; allowed: bool"),
    (dict(mask=bools(3, 4)), ValueError, r"mask \(1, 1, 3, 4\) does not broadcast to .* = \(2, 4, 3, 5\)"),
    (dict(mask=bools(1, 1, 1, 3, 5)), ValueError, "mask has 5 dimensions, at most 4"),
    (dict(mask=bools(3, 5, device="meta")), ValueError, "mask is on meta, q is on cpu"),
    (dict(causal="yes"), TypeError, "causal = 'yes' must be True or False"),
    (dict(causal=None), TypeError, "causal = None must be True or False"),
    (dict(window=3), TypeError, r"window = 3 must be \(left, right\)"),
    (dict(window=(1,)), TypeError, r"window = \(1,\) must be \(left, right\)"),
    (dict(window=(1, 2, 3)), TypeError, r"window = \(1, 2, 3\) must be"),
    (dict(window=(1.5, None)), TypeError, "window left = 1.5 must be an int or None"),
    (dict(window=(None, True)), TypeError, "window right = True must be an int or None"),
    (dict(window=(-1, -1)), ValueError, "window left = -1 must be from 0 to .* None is no bound"),
    (dict(window=(0, 2**40)), ValueError, "window right = 1099511627776 must be from 0 to"),
    (dict(key_lengths=[5, 5]), TypeError, "key_lengths must be a tensor, got list"),
    (dict(key_lengths=torch.tensor([1.0, 2.0])), TypeError, "key_lengths has dtype torch.float32; allowed"),
    (dict(key_lengths=bools(2)), TypeError, "key_lengths has dtype torch.bool; allowed: int32, int64"),
    (dict(key_lengths=ints(5)), ValueError, r"key_lengths has shape \(1,\), expected \(batch,\) = \(2,\)"),
    (dict(key_lengths=ints(1, 6)), ValueError, "key_lengths holds values from 1 to 6; allowed: 0 to 5"),
    (dict(key_lengths=ints(-1, 5)), ValueError, "key_lengths holds values from -1 to 5; allowed: 0 to 5"),
    (dict(key_lengths=ints(1, 2, device="meta")), ValueError, "key_lengths is on meta, q is on cpu"),
    (dict(query_lengths=ints(4, 3)), ValueError, "query_lengths holds values from 3 to 4; allowed: 0 to 3"),
    (dict(query_lengths=zeros(2, 1, dtype=INT)), ValueError, r"query_lengths has shape \(2, 1\)"),
    (dict(query_offset=1.5), TypeError, "query_offset = 1.5 must be an int, an int32 tensor"),
    (dict(query_offset=True), TypeError, "query_offset = True must be an int"),
    (dict(query_offset=2**40), ValueError, "query_offset = 1099511627776 must be from"),
    (dict(query_offset=ints(0, 2**40, dtype=torch.int64)), ValueError, "query_offset holds values from 0 to 10995"),
    (dict(query_offset=zeros(2)), TypeError, "query_offset has dtype torch.float32; allowed: int32, int64"),
    (dict(query_offset=ints(1, 2, 3)), ValueError, r"query_offset has shape \(3,\), expected \(batch,\) = \(2,\)"),
    (dict(query_offset=ints(1, 2, device="meta")), ValueError, "query_offset is on meta, q is on cpu"),
]  # fmt: skip
NUMBERS = [
    (dict(scale=NAN), ValueError, "scale = nan must be finite"),
    (dict(scale=INF), ValueError, "scale = inf must be finite"),
    (dict(scale="a"), TypeError, "scale = 'a' must be a number or None"),
    (dict(scale=True), TypeError, "scale = True must be a number or None"),
    (dict(scale=torch.tensor(0.5)), TypeError, "scale = tensor.* a learned scale multiplies q"),
    (dict(softcap=-1.0), ValueError, "softcap = -1.0 must be above 0, or None for off"),
    (dict(softcap=0), ValueError, "softcap = 0 must be above 0, or None for off"),
    (dict(softcap=NAN), ValueError, "softcap = nan must be finite"),
    (dict(softcap=INF), ValueError, "softcap = inf must be finite"),
    (dict(softcap="x"), TypeError, "softcap = 'x' must be a number above 0, or None for off"),
    (dict(dropout_p=1.0), ValueError, "dropout_p = 1.0 must be at least 0 and under 1"),
    (dict(dropout_p=-0.1), ValueError, "dropout_p = -0.1 must be at least 0 and under 1"),
    (dict(dropout_p=NAN), ValueError, "dropout_p = nan must be finite"),
    (dict(dropout_p=None), TypeError, "dropout_p = None must be a number"),
    (dict(seed=-1, dropout_p=0.1), ValueError, r"seed = -1 must be from 0 to 2\*\*63 - 1"),
    (dict(seed=2**63), ValueError, "seed = 9223372036854775808 must be from 0"),
    (dict(seed=1.5, dropout_p=0.1), TypeError, "seed = 1.5 must be an int or None"),
    (dict(seed=True), TypeError, "seed = True must be an int or None"),
    (dict(return_lse=1), TypeError, "return_lse = 1 must be True or False"),
    (dict(backend="flash"), ValueError, "backend='flash' is unknown; allowed: auto, cuda, triton"),
    (dict(backend=None), ValueError, "backend=None is unknown"),
    (dict(backend="cuda"), BackendRefused, "(?s)backend='cuda' does not run this call.*reference"),
]  # fmt: skip
BIASES = [
    (dict(bias="t5"), TypeError, "bias is a str; allowed: a tensor, RelativeBias, ALiBi or None"),
    (dict(bias=3.0), TypeError, "bias is a float; allowed: a tensor"),
    (dict(bias=zeros(3, 5, dtype=torch.int64)), TypeError, "bias has dtype torch.int64; allowed: float32"),
    (dict(bias=zeros(3, 4)), ValueError, r"bias \(1, 1, 3, 4\) does not broadcast"),
    (dict(bias=meta(3, 5)), ValueError, "bias is on meta, q is on cpu"),
    (dict(bias=RelativeBias([1.0])), TypeError, "bias.table must be a tensor, got list"),
    (dict(bias=RelativeBias(zeros(32, 4, dtype=INT))), TypeError, "bias.table has dtype torch.int32"),
    (dict(bias=RelativeBias(zeros(32))), ValueError, r"bias.table has shape \(32,\), expected \(num_buckets"),
    (dict(bias=RelativeBias(zeros(32, 3))), ValueError, r"expected \(num_buckets, nheads\) = \(at least 4, 4\)"),
    (dict(bias=RelativeBias(zeros(3, 4))), ValueError, r"bias.table has shape \(3, 4\), .* = \(at least 4, 4\)"),
    (dict(bias=RelativeBias(zeros(1, 4), 9, False)), ValueError, r"has shape \(1, 4\), .* = \(at least 2, 4\)"),
    (dict(bias=RelativeBias(meta(32, 4))), ValueError, "bias.table is on meta, q is on cpu"),
    (dict(bias=RelativeBias(zeros(32, 4), 8)), ValueError, "max_distance = 8 must be from 9 to .* with 32 buckets"),
    (dict(bias=RelativeBias(zeros(32, 4), 16, False)), ValueError, "bias.max_distance = 16 must be from 17 to"),
    (dict(bias=RelativeBias(zeros(32, 4), -5)), ValueError, "bias.max_distance = -5 must be from 9 to"),
    (dict(bias=RelativeBias(zeros(32, 4), 12.5)), TypeError, "bias.max_distance = 12.5 must be an int"),
    (dict(bias=RelativeBias(zeros(32, 4), 128, "no")), TypeError, "bias.bidirectional = 'no' must be True or False"),
    (dict(bias=ALiBi([0.5] * 4)), TypeError, "bias.slopes must be a tensor, got list"),
    (dict(bias=ALiBi(zeros(4, dtype=INT))), TypeError, "bias.slopes has dtype torch.int32"),
    (dict(bias=ALiBi(zeros(3))), ValueError, r"bias.slopes has shape \(3,\), .* = \(4,\) or \(2, 4\)"),
    (dict(bias=ALiBi(zeros(3, 4))), ValueError, r"bias.slopes has shape \(3, 4\)"),
    (dict(bias=ALiBi(meta(4))), ValueError, "bias.slopes is on meta, q is on cpu"),
    (dict(bias=ALiBi(zeros(4).requires_grad_())), ValueError, "slopes require a gradient, .* not learned; detach"),
    (dict(sinks=[0.0] * 4), TypeError, "sinks must be a tensor, got list"),
    (dict(sinks=zeros(4, dtype=INT)), TypeError, "sinks has dtype torch.int32"),
    (dict(sinks=zeros(1, 4)), ValueError, r"sinks has shape \(1, 4\), expected \(nheads,\) = \(4,\)"),
    (dict(sinks=meta(4)), ValueError, "sinks is on meta, q is on cpu"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), TENSORS + MASKS + NUMBERS + BIASES)
def test_attention(change, error, text):
    check(undivided.attention, QKV, change, error, text)


PACKED = dict(
    q=zeros(5, 4, 8), k=zeros(7, 2, 8), v=zeros(7, 2, 8), cu_seqlens_q=ints(0, 2, 5), cu_seqlens_k=ints(0, 3, 7)
)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(q=zeros(1, 5, 4, 8)), ValueError, r"q has 4 dimensions .* expected 3: \(total, nheads, head_dim\)"),
        (dict(cu_seqlens_q=[0, 2, 5]), TypeError, "cu_seqlens_q must be a tensor, got list"),
        (dict(cu_seqlens_q=zeros(3)), TypeError, "cu_seqlens_q has dtype torch.float32; allowed: int32, int64"),
        (dict(cu_seqlens_k=ints(1, 3, 7)), ValueError, r"cu_seqlens_k = \[1, 3, 7\] must start with 0"),
        (dict(cu_seqlens_k=ints(0, 4, 3)), ValueError, r"cu_seqlens_k = \[0, 4, 3\] must .* never fall"),
        (dict(cu_seqlens_k=ints(0, 3, 8)), ValueError, "end with at most 7 tokens"),
        (dict(cu_seqlens_q=ints(0, 5)), ValueError, r"cu_seqlens_q \(2,\) and cu_seqlens_k \(3,\) differ"),
        (dict(cu_seqlens_q=zeros(1, 3, dtype=INT)), ValueError, r"cu_seqlens_q has shape \(1, 3\), expected \(batch"),
        (dict(cu_seqlens_q=ints()), ValueError, r"cu_seqlens_q has shape \(0,\), expected \(batch \+ 1,\)"),
        (dict(cu_seqlens_q=ints(0, 2, 5, device="meta")), ValueError, "cu_seqlens_q is on meta, q is on cpu"),
        (dict(max_seqlen_q=2), ValueError, "max_seqlen_q = 2 is below the longest sequence, which has 3 tokens"),
        (dict(max_seqlen_k=-1), ValueError, "max_seqlen_k = -1 must be at least 0"),
        (dict(max_seqlen_k=4.0), TypeError, "max_seqlen_k = 4.0 must be an int or None"),
        (dict(bias=zeros(5, 7)), ValueError, "a dense bias has no place in a packed batch; allowed: RelativeBias"),
        (dict(bias=ALiBi(zeros(3, 4))), ValueError, r"bias.slopes has shape \(3, 4\), .* or \(2, 4\)"),
        (dict(sinks=zeros(3)), ValueError, "sinks has shape"),
        (dict(window=(-1, 0)), ValueError, "window left = -1"),
        (dict(scale=NAN), ValueError, "scale = nan must be finite"),
        (dict(seed=-1), ValueError, "seed = -1"),
        (dict(return_lse=None), TypeError, "return_lse = None"),
        (dict(backend="sdpa"), BackendRefused, "torch's kernel has no a packed batch"),
    ],
)
def test_attention_packed(change, error, text):
    check(undivided.attention_packed, PACKED, change, error, text)


NORM = [
    (dict(x=1.0), TypeError, "x must be a tensor, got float"),
    (dict(x=zeros(3, 8, dtype=INT)), TypeError, "x has dtype torch.int32"),
    (dict(x=zeros()), ValueError, r"x has shape \(\); expected \(\.\.\., columns\) with at least one column"),
    (dict(x=zeros(3, 0)), ValueError, r"x has shape \(3, 0\); expected"),
    (dict(weight="a"), TypeError, "weight must be a tensor, got str"),
    (dict(weight=zeros(8, dtype=INT)), TypeError, "weight has dtype torch.int32"),
    (dict(weight=zeros(7)), ValueError, r"weight has shape \(7,\), expected \(columns,\) = \(8,\)"),
    (dict(weight=meta(8)), ValueError, "weight is on meta, x is on cpu"),
    (dict(eps=-1.0), ValueError, "eps = -1.0 must be at least 0"),
    (dict(eps=NAN), ValueError, "eps = nan must be finite"),
    (dict(eps=INF), ValueError, "eps = inf must be finite"),
    (dict(eps=None), TypeError, "eps = None must be a number"),
    (dict(residual=zeros(8)), ValueError, r"residual has shape \(8,\), expected x's shape = \(3, 8\)"),
    (dict(residual=zeros(3, 8, dtype=torch.bfloat16)), TypeError, "residual has dtype torch.bfloat16, x has"),
    (dict(residual=meta(3, 8)), ValueError, "residual is on meta, x is on cpu"),
    (dict(residual=3), TypeError, "residual must be a tensor, got int"),
    (dict(backend="sdpa"), BackendRefused, "backend='sdpa' does not run this call"),
    (dict(backend="fast"), ValueError, "backend='fast' is unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), NORM)
@pytest.mark.parametrize("op", [undivided.layer_norm, undivided.rms_norm])
def test_norms(op, change, error, text):
    check(op, dict(x=zeros(3, 8), weight=zeros(8)), change, error, text)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(weight=None), ValueError, "bias is given without weight; allowed: both, weight alone, or neither"),
        (dict(bias=zeros(8).half()), TypeError, "bias has dtype torch.float16, weight has torch.float32"),
        (dict(bias=zeros(1, 8)), ValueError, r"bias has shape \(1, 8\), expected \(columns,\) = \(8,\)"),
        (dict(bias=meta(8)), ValueError, "bias is on meta, x is on cpu"),
    ],
)
def test_layer_norm_bias(change, error, text):
    check(undivided.layer_norm, dict(x=zeros(3, 8), weight=zeros(8), bias=zeros(8)), change, error, text)


FEED_FORWARD = dict(x=zeros(3, 8), w_in=zeros(6, 8), b_in=zeros(6), w_out=zeros(8, 6), b_out=zeros(8))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(x=3), TypeError, "x must be a tensor, got int"),
        (dict(x=zeros(3, 8, dtype=INT)), TypeError, "x has dtype torch.int32"),
        (dict(x=zeros()), ValueError, r"expected \(d_ff, d_model\) with x \(\)"),
        (dict(x=zeros(3, 7)), ValueError, r"w_in has shape \(6, 8\), expected \(d_ff, d_model\) with x \(3, 7\)"),
        (dict(x=zeros(3, 8).half()), TypeError, "w_in has dtype torch.float32, x has torch.float16"),
        (dict(w_in=None), TypeError, "w_in must be a tensor, got NoneType"),
        (dict(w_in=zeros(8)), ValueError, r"w_in has shape \(8,\), expected \(d_ff, d_model\)"),
        (dict(w_out=None), TypeError, "w_out must be a tensor, got NoneType"),
        (dict(w_out=zeros(6, 8)), ValueError, r"w_out has shape \(6, 8\), expected \(d_model, d_ff\) = \(8, 6\)"),
        (dict(b_in=zeros(8)), ValueError, r"b_in has shape \(8,\), expected \(d_ff,\) = \(6,\)"),
        (dict(b_out=zeros(6)), ValueError, r"b_out has shape \(6,\), expected \(d_model,\) = \(8,\)"),
        (dict(b_out=zeros(8).half()), TypeError, "b_out has dtype torch.float16, x has torch.float32"),
        (dict(b_in=[0.0]), TypeError, "b_in must be a tensor, got list"),
        (dict(w_gate=zeros(8, 6)), ValueError, r"w_gate has shape \(8, 6\), expected \(d_ff, d_model\) = \(6, 8\)"),
        (dict(w_gate=meta(6, 8)), ValueError, "w_gate is on meta, x is on cpu"),
        (dict(x=meta(3, 8)), ValueError, "w_in is on cpu, x is on meta"),
        (dict(w_in=zeros(0, 8), b_in=zeros(0), w_out=zeros(8, 0)), ValueError, "d_ff 0 and d_model 8 must"),
        (dict(activation="tanh"), ValueError, "activation='tanh' is unknown; allowed: relu, gelu, gelu_tanh, silu"),
        (dict(activation=None), ValueError, "activation=None is unknown"),
        (dict(activation=Array()), ValueError, "activation=array of 2 is unknown; allowed: relu"),
        (dict(backend="sdpa"), BackendRefused, "backend='sdpa' does not run this call"),
        (dict(backend="fast"), ValueError, "backend='fast' is unknown"),
    ],
)  # fmt: skip
def test_feed_forward(change, error, text):
    check(undivided.feed_forward, FEED_FORWARD, change, error, text)


ROTARY = dict(x=zeros(2, 3, 4, 8), cos=zeros(5, 4), sin=zeros(5, 4))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(x=3), TypeError, "x must be a tensor, got int"),
        (dict(x=zeros(2, 3, 4, 8, dtype=INT)), TypeError, "x has dtype torch.int32"),
        (dict(x=zeros(2, 3, 8)), ValueError, r"x has shape \(2, 3, 8\), expected \(batch, seqlen, nheads, head_dim\)"),
        (dict(x=zeros(2, 3, 4, 7)), ValueError, "with head_dim even"),
        (dict(cos="a"), TypeError, "cos must be a tensor, got str"),
        (dict(cos=zeros(5, 3)), ValueError, r"cos has shape \(5, 3\), .*, head_dim / 2\) = \(5, 4\)"),
        (dict(cos=zeros()), ValueError, r"cos has shape \(\), expected \(max_seqlen, head_dim / 2\)"),
        (dict(sin=zeros(5, 4, dtype=INT)), TypeError, "sin has dtype torch.int32"),
        (dict(sin=zeros(4, 4)), ValueError, r"sin has shape \(4, 4\), expected the shape of cos = \(5, 4\)"),
        (dict(sin=meta(5, 4)), ValueError, "sin is on meta, x is on cpu"),
        (dict(cos=zeros(2, 4), sin=zeros(2, 4)), ValueError, "cos has 2 positions, x has seqlen 3; make"),
        (dict(positions=[0, 1, 2]), TypeError, "positions must be a tensor, got list"),
        (dict(positions=zeros(3)), TypeError, "positions has dtype torch.float32; allowed: int32, int64"),
        (dict(positions=bools(3)), TypeError, "positions has dtype torch.bool; allowed: int32, int64"),
        (dict(positions=ints(0, 1)), ValueError, r"positions has shape \(2,\), .* = \(3,\) or \(2, 3\)"),
        (dict(positions=ints(0, 1, 5)), ValueError, "positions holds values from 0 to 5; allowed: 0 to 4"),
        (dict(positions=ints(0, 1, -1)), ValueError, "positions holds values from -1 to 1; allowed: 0 to 4"),
        (dict(positions=ints(0, 1, 2, device="meta")), ValueError, "positions is on meta, x is on cpu"),
    ],
)  # fmt: skip
def test_rotary(change, error, text):
    check(undivided.rotary, ROTARY, change, error, text)


TABLE = zeros(5, 4)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(rotary=TABLE), TypeError, r"rotary is a Tensor; allowed: the pair \(cos, sin\), or None"),
        (dict(rotary=(TABLE,)), TypeError, "rotary is a tuple; allowed: the pair"),
        (dict(rotary=(TABLE, 3)), TypeError, "sin must be a tensor, got int"),
        (dict(rotary=(zeros(5, 3), TABLE)), ValueError, r"cos has shape \(5, 3\), .* = \(5, 4\)"),
        (dict(rotary=(zeros(4, 4), zeros(4, 4))), ValueError, "cos has 4 positions, queries and keys have 5; make the"),
        (dict(query_offset=3), ValueError, "cos has 5 positions, queries and keys have 6; make the table longer"),
        (dict(query_offset=ints(0, 3)), ValueError, "positions holds values from 0 to 5; allowed: 0 to 4"),
        (dict(q=zeros(2, 6, 4, 8)), ValueError, "rotary: query 0 stands at position -1; allowed from 0 on"),
    ],
)  # fmt: skip
def test_rotary_of_attention(change, error, text):
    check(undivided.attention, dict(QKV, rotary=(TABLE, TABLE)), change, error, text)


OUT, LSE = zeros(2, 3, 4, 8), zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(outs=[], lses=[]), ValueError, "got 0 outs and 0 lses; expected as many of both, at least one"),
        (dict(lses=[LSE]), ValueError, "got 2 outs and 1 lses"),
        (dict(outs=OUT), TypeError, "outs is a Tensor; allowed: a list or tuple of tensors"),
        (dict(lses=3), TypeError, "lses is a int; allowed: a list or tuple of tensors"),
        (dict(outs=[OUT, 3]), TypeError, r"outs\[1\] must be a tensor, got int"),
        (dict(lses=[LSE, None]), TypeError, r"lses\[1\] must be a tensor, got NoneType"),
        (dict(outs=[OUT, zeros(2, 3, 4, 7)]), ValueError, r"outs\[1\] has shape \(2, 3, 4, 7\), expected the shape of"),
        (dict(outs=[OUT[0], OUT[0]]), ValueError, r"outs\[0\] has shape \(3, 4, 8\), expected \(batch, seqlen_q"),
        (dict(lses=[LSE, zeros(2, 3, 4)]), ValueError, r"lses\[1\] has shape \(2, 3, 4\), .* = \(2, 4, 3\)"),
        (dict(outs=[OUT, OUT.half()]), TypeError, r"outs\[1\] has dtype torch.float16, outs\[0\] has torch.float32"),
        (dict(outs=[OUT, OUT.int()]), TypeError, r"outs\[1\] has dtype torch.int32; allowed: float32"),
        (dict(lses=[LSE.half(), LSE]), TypeError, r"lses\[0\] has dtype torch.float16; allowed: float32"),
        (dict(outs=[OUT, meta(2, 3, 4, 8)]), ValueError, r"outs\[1\] is on meta, outs\[0\] is on cpu"),
        (dict(lses=[LSE, meta(2, 4, 3)]), ValueError, r"lses\[1\] is on meta, outs\[0\] is on cpu"),
    ],
)
def test_merge_attention(change, error, text):
    check(undivided.merge_attention, dict(outs=[OUT, OUT], lses=[LSE, LSE]), change, error, text)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: nn.MultiHeadAttention(8, 3), "d_model=8 must be a multiple of nheads=3"),
        (lambda: nn.MultiHeadAttention(8, 0), "multiple of nheads=0, which must be at least 1"),
        (lambda: nn.MultiHeadAttention(8, 2, dropout=1.0), "dropout=1.0 must be at least 0 and below 1"),
        (lambda: nn.FeedForward(8, 16, "tanh"), "activation='tanh' is unknown; allowed: relu, gelu, swiglu, geglu"),
        (lambda: nn.Rotary(7), "head_dim=7 must be even for rotary positions"),
        (lambda: nn.make_positions("clock", 8, 2, True), "positions='clock' is unknown; allowed: none, sinusoidal"),
        (lambda: nn.Learned(8, longest=3).add(zeros(1, 2, 8), start=2), "the sequence has 4 positions, .* end at 3"),
    ],
)
def test_layers(build, text):
    with pytest.raises(ValueError, match=text):
        build()


DECODE = dict(q=zeros(2, 1, 4, 8), k_cache=zeros(2, 5, 2, 8), v_cache=zeros(2, 5, 2, 8), cache_lengths=ints(3, 4))
EVERY_OP = {
    undivided.attention: QKV | dict(mask=bools(3, 5), bias=zeros(3, 5), sinks=zeros(4), key_lengths=ints(5, 3)),
    undivided.attention_decode: DECODE | dict(k=zeros(2, 1, 2, 8), v=zeros(2, 1, 2, 8), sinks=zeros(4)),
    undivided.layer_norm: dict(x=zeros(3, 8), weight=zeros(8), bias=zeros(8), residual=zeros(3, 8)),
    undivided.rms_norm: dict(x=zeros(3, 8), weight=zeros(8), residual=zeros(3, 8)),
    undivided.feed_forward: FEED_FORWARD | dict(w_gate=zeros(6, 8)),
    undivided.rotary: ROTARY | dict(positions=ints(0, 1, 2)),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize(("op", "name"), [(op, name) for op, words in EVERY_OP.items() for name in words])
def test_tensors_that_are_not_dense(op, name):
    good = EVERY_OP[op]
    check(op, good, {name: good[name].to_sparse()}, TypeError, f"^{name} has layout torch.sparse_coo; allowed: dense")
    nested = torch.nested.nested_tensor(list(good[name]))
    check(op, good, {name: nested}, TypeError, f"^{name} is a nested tensor; allowed: dense")
    if good[name].is_floating_point():
        text = f"^{name} has layout torch._mkldnn; allowed: dense"
        check(op, good, {name: good[name].to_mkldnn()}, TypeError, text)


def test_explain_names_an_unknown_op():
    call = undivided.dispatch.NormCall("cpu", "float32", 4, 8)
    with pytest.raises(ValueError, match="op='group_norm' is unknown for a NormCall; allowed: layer_norm, rms_norm"):
        undivided.explain(call, op="group_norm")


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_shapes_can_be_worked_out_without_values(backend):
    """FakeTensorMode's tensors say that they are on a CPU, but hold nothing to look at."""
    with FakeTensorMode():
        tensors = [torch.zeros(t.shape) for t in QKV.values()]
        words = dict(key_lengths=torch.zeros(2, dtype=INT), causal=True, backend=backend)
        assert undivided.attention(*tensors, **words).shape == (2, 3, 4, 8)
        mask = torch.ones(3, 5, dtype=torch.bool)
        assert undivided.attention(*tensors, mask=mask, backend=backend).shape == (2, 3, 4, 8)
        x, square = torch.zeros(3, 8), torch.zeros(8, 8)
        assert undivided.layer_norm(x, square[0], square[0], backend=backend).shape == (3, 8)
        assert undivided.rms_norm(x, square[0], residual=x, backend=backend)[1].shape == (3, 8)
        assert undivided.feed_forward(x, square, square[0], square, backend=backend).shape == (3, 8)


def test_shapes_can_be_worked_out_on_the_meta_device():
    """No memory and no values: the checks must not look at any."""
    assert undivided.attention(*(t.to("meta") for t in QKV.values()), causal=False).shape == (2, 3, 4, 8)
    lengths = ints(9, 9).to("meta")
    out = undivided.attention(*(t.to("meta") for t in QKV.values()), key_lengths=lengths, causal=True)
    assert out.shape == (2, 3, 4, 8)
    assert undivided.layer_norm(meta(3, 8), meta(8), meta(8)).shape == (3, 8)
    assert undivided.feed_forward(meta(3, 8), meta(6, 8), None, meta(8, 6)).shape == (3, 8)
    assert undivided.rotary(meta(2, 3, 4, 8), meta(5, 4), meta(5, 4)).shape == (2, 3, 4, 8)
