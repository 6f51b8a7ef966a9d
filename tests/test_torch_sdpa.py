"""F.scaled_dot_product_attention on our kernels: results and gradients against torch's own function."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

import undivided
from kernel_backend import KERNEL, needs_kernels
from rows import DEVICE, random
from undivided.integrations import torch_sdpa
from undivided.testing.compare import compare

# torch.func loads parts of torch that torch itself calls deprecated.
pytestmark = [needs_kernels, pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")]
TORCH = torch._C._nn.scaled_dot_product_attention
BATCH, NHEADS, SEQLEN_Q, SEQLEN_K, HEAD_DIM = 2, 4, 7, 19, 16
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def leaves(
    query=(BATCH, NHEADS, SEQLEN_Q, HEAD_DIM), key=(BATCH, NHEADS, SEQLEN_K, HEAD_DIM), value=None, dtype=torch.float32
):
    shapes = dict(query=query, key=key, value=value or key)
    return {name: random(*shape, seed=n, dtype=dtype) for n, (name, shape) in enumerate(shapes.items())}


def agree(tensors: dict[str, torch.Tensor], **words) -> None:
    """Ours within twice the error of torch's function in the same dtype, both against torch's in float64."""
    reports = []

    def ours(**values):
        with undivided.sdpa(KERNEL) as report:
            reports.append(report)
            return (F.scaled_dot_product_attention(**values, **words),)

    def own(**values):
        return (TORCH(**values, **words),)

    verdicts = compare(("out",), tensors, ours, own, own, backward=True)
    assert reports[0].calls == {KERNEL: 1} and not reports[0].reasons
    assert len(verdicts) == 1 + len(tensors)
    assert all(verdict.ok for verdict in verdicts), verdicts


# Sizes of query, key and, where it is another, value.
SHAPES = {
    "self": ((2, 4, 19, 16), (2, 4, 19, 16)),
    "cross": ((2, 4, 7, 16), (2, 4, 19, 16)),
    "narrow values": ((2, 4, 7, 16), (2, 4, 19, 16), (2, 4, 19, 8)),
    "one head": ((7, 16), (19, 16)),
    "no batch": ((4, 7, 16), (4, 19, 16)),
    "two batch dimensions": ((2, 3, 4, 7, 16), (2, 3, 4, 19, 16)),
    "a batch that broadcasts": ((2, 3, 4, 7, 16), (2, 1, 4, 19, 16), (1, 3, 4, 19, 16)),
    "keys that all rows share": ((3, 4, 7, 16), (1, 4, 19, 16)),
    "a key head that all queries share": ((2, 4, 7, 16), (2, 1, 19, 16)),
    "a query head that all keys share": ((2, 1, 7, 16), (2, 4, 19, 16)),
    "a key head beside many value heads": ((2, 4, 7, 16), (2, 1, 19, 16), (2, 4, 19, 16)),
}


@pytest.mark.parametrize("name", SHAPES)
@dtypes
def test_shapes(name, dtype):
    agree(leaves(*SHAPES[name], dtype=dtype))


@pytest.mark.parametrize("sizes", [(19, 19), (7, 19), (19, 7)], ids=["square", "wide", "tall"])
@dtypes
def test_causal_is_aligned_top_left(sizes, dtype):
    agree(leaves((2, 4, sizes[0], 16), (2, 4, sizes[1], 16), dtype=dtype), is_causal=True)


@pytest.mark.parametrize("nheads_kv", [1, 2, 4])
@dtypes
def test_grouped_heads(nheads_kv, dtype):
    agree(leaves(key=(BATCH, nheads_kv, SEQLEN_K, HEAD_DIM), dtype=dtype), enable_gqa=True)
    if dtype is torch.float32:  # heads are the first of three dimensions
        agree(leaves((4, 7, 16), (nheads_kv, 19, 16)), enable_gqa=True, is_causal=True)


@pytest.mark.parametrize("scale", [0.7, 1, -0.2])
def test_scale(scale):
    agree(leaves(), scale=scale)


# Every way to broadcast to (batch, nheads, seqlen_q, seqlen_k), and fewer dimensions.
FULL = (BATCH, NHEADS, SEQLEN_Q, SEQLEN_K)
MASKS = [*itertools.product(*((1, size) for size in FULL)), FULL[1:], FULL[2:], (1, SEQLEN_K), (SEQLEN_Q, 1)]


def mask_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Random, with a query that sees nothing wherever queries have a row of their own."""
    mask = random(*shape, seed=5) > -0.5
    if shape[-2] > 1:
        mask[..., 3, :] = False
    return mask


@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_bool_masks(shape):
    agree(leaves(), attn_mask=mask_of(shape))


@pytest.mark.parametrize("shape", [FULL, (BATCH, 1, 1, SEQLEN_K), FULL[2:]], ids=str)
def test_bool_masks_in_bfloat16(shape):
    agree(leaves(dtype=torch.bfloat16), attn_mask=mask_of(shape))


@pytest.mark.parametrize("shape", [(3, 4, 7, 19), (2, 1, 4, 1, 19), (1, 3, 1, 7, 19), (19, 19)], ids=str)
def test_a_mask_beside_two_batch_dimensions(shape):
    query, key = (2, 3, 4, 7, 16), (2, 3, 4, 19, 16)
    if len(shape) == 2:
        query = key
    agree(leaves(query, key), attn_mask=mask_of(shape))
    agree(leaves(query, key) | {"attn_mask": random(*shape, seed=6)})


BIASES = [FULL, (BATCH, 1, 1, SEQLEN_K), (1, NHEADS, SEQLEN_Q, SEQLEN_K), FULL[2:]]


@pytest.mark.parametrize("shape", BIASES, ids=str)
@dtypes
def test_a_float_mask_is_a_bias_with_a_gradient(shape, dtype):
    agree(leaves(dtype=dtype) | {"attn_mask": random(*shape, seed=6, dtype=dtype)})


@pytest.mark.parametrize("shape", [(BATCH, NHEADS, SEQLEN_Q, 1), (1, 1, 1, 1), (SEQLEN_Q, 1)], ids=str)
def test_a_bias_that_all_keys_share_has_no_gradient(shape):
    """Up to rounding: it moves a whole row of scores. In float32, as torch's own sum is not exact either there."""
    agree(leaves() | {"attn_mask": random(*shape, seed=6)})


def test_a_float32_bias_beside_bfloat16():
    # So many elements that the largest error of each of the two is no matter of luck.
    tensors = leaves((2, 4, 64, 32), (2, 4, 80, 32), dtype=torch.bfloat16)
    agree(tensors | {"attn_mask": random(2, 4, 64, 80, seed=6)})


def test_minus_infinity_hides_and_an_empty_row_gives_zero():
    bias = torch.zeros(FULL, device=DEVICE).masked_fill(~mask_of(FULL), -torch.inf)
    agree(leaves(), attn_mask=bias)
    with undivided.sdpa(KERNEL):
        out = F.scaled_dot_product_attention(**leaves(), attn_mask=bias)
    assert torch.equal(out[:, :, 3], torch.zeros_like(out[:, :, 3])) and out.abs().max() > 0


@pytest.mark.parametrize("learned", [("query",), ("key", "value"), ("attn_mask",)], ids=str)
def test_a_part_may_be_frozen(learned):
    tensors = leaves() | {"attn_mask": random(*FULL, seed=6)}

    def gradients(function):
        made = {name: t.clone().requires_grad_(name in learned) for name, t in tensors.items()}
        function(**made).sum().backward()
        return {name: t.grad for name, t in made.items()}

    with undivided.sdpa(KERNEL) as report:
        got = gradients(F.scaled_dot_product_attention)
    assert report.calls == {KERNEL: 1}
    for name, expected in gradients(TORCH).items():
        assert (got[name] is None) == (name not in learned)
        torch.testing.assert_close(got[name], expected, atol=1e-5, rtol=1e-5)


def test_arguments_are_read_where_they_lie(monkeypatch):
    """No copy of query, key or value, and a mask that broadcasts stays as small as it is."""
    seen = {}

    def spy(*values, **words):
        seen.update(words, values=values)
        return attention(*values, **words)

    attention = torch_sdpa.attention
    monkeypatch.setattr(torch_sdpa, "attention", spy)
    tensors, mask = leaves(), mask_of((BATCH, 1, 1, SEQLEN_K))
    with undivided.sdpa(KERNEL):
        F.scaled_dot_product_attention(**tensors, attn_mask=mask)
    assert [t.data_ptr() for t in seen["values"]] == [t.data_ptr() for t in tensors.values()]
    assert seen["values"][0].shape == (BATCH, SEQLEN_Q, NHEADS, HEAD_DIM)
    assert seen["mask"] is mask


def test_dropout_drops_the_share_that_is_asked_for():
    """Values that are the identity show the probabilities."""
    size, p = 64, 0.3
    query, key = random(4, 2, size, size), random(4, 2, size, size, seed=1)
    value = torch.eye(size, device=DEVICE).expand(4, 2, size, size)
    torch.manual_seed(1)
    with undivided.sdpa(KERNEL) as report:
        first, second = (F.scaled_dot_product_attention(query, key, value, dropout_p=p) for _ in range(2))
        torch.manual_seed(1)
        again = F.scaled_dot_product_attention(query, key, value, dropout_p=p)
    assert report.calls == {KERNEL: 3}
    assert torch.equal(first, again) and not torch.equal(first, second)
    whole = TORCH(query, key, value)
    for out in (first, second):
        kept = out > 0
        sigma = (p * (1 - p) / kept.numel()) ** 0.5
        assert abs(1 - kept.float().mean().item() - p) < 4 * sigma
        torch.testing.assert_close(out[kept], whole[kept] / (1 - p), atol=1e-6, rtol=1e-5)


def test_dropout_is_the_same_backward():
    """out is linear in the values: with the same elements dropped, sum(dvalue * value) is sum(out * weights)."""
    tensors = leaves()
    tensors["value"].requires_grad_()
    with undivided.sdpa(KERNEL):
        out = F.scaled_dot_product_attention(**tensors, dropout_p=0.4)
    weights = random(*out.shape, seed=9)
    (grad,) = torch.autograd.grad((out * weights).sum(), tensors["value"])
    torch.testing.assert_close((grad * tensors["value"]).sum(), (out * weights).sum())


def test_autocast_casts_as_torch_does():
    tensors = leaves()
    tensors["value"] = tensors["value"].to(torch.bfloat16)
    mask = random(*FULL, seed=6)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        expected = TORCH(**tensors, attn_mask=mask)
        with undivided.sdpa(KERNEL) as report:
            out = F.scaled_dot_product_attention(**tensors, attn_mask=mask)
    assert report.calls == {KERNEL: 1} and out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)


def nested(layout: torch.layout) -> dict[str, torch.Tensor]:
    """Two sequences of 5 and of 3 tokens."""
    made = {}
    for name, x in leaves().items():
        parts = [part[:, :length].transpose(0, 1).contiguous() for part, length in zip(x, (5, 3), strict=True)]
        if layout is torch.strided:
            made[name] = torch.nested.as_nested_tensor([part.transpose(0, 1).contiguous() for part in parts])
        else:
            made[name] = torch.nested.as_nested_tensor(parts, layout=layout).transpose(1, 2)
    return made


# What goes to torch: the arguments, and what the report says of it.
TO_TORCH = {
    "float64": (lambda: leaves(dtype=torch.float64), {}, "dtype float64 is not one of"),
    "large heads": (lambda: leaves((2, 4, 7, 300), (2, 4, 19, 300)), {}, "head_dim 300 / head_dim_v 300 is outside"),
    "no keys": (lambda: leaves(key=(2, 4, 0, 16)), {}, "an empty tensor has nothing to compute"),
    "all dropped": (leaves, {"dropout_p": 1.0}, "dropout_p 1.0 is not at least 0 and under 1"),
    "unequal groups": (
        lambda: leaves(key=(2, 2, 19, 16), value=(2, 1, 19, 16)),
        {"enable_gqa": True},
        "do not fit together as one group",
    ),
    "fewer dimensions": (
        lambda: leaves() | {"value": leaves()["value"][0]},
        {},
        "need the same number of dimensions",
    ),
    "nested": (lambda: nested(torch.strided), {}, "nested and sparse tensors"),
    "jagged": (lambda: nested(torch.jagged), {}, "nested and sparse tensors"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", TO_TORCH)
def test_what_the_kernels_lack_goes_to_torch_and_is_reported(name):
    make, words, reason = TO_TORCH[name]
    tensors = make()
    with undivided.sdpa(KERNEL) as report:
        out = F.scaled_dot_product_attention(**tensors, **words)
    expected = TORCH(**tensors, **words)
    if name in ("nested", "jagged"):
        out, expected = (torch.cat([t.flatten() for t in x.unbind()]) for x in (out, expected))
    torch.testing.assert_close(out, expected, atol=0, rtol=0)
    assert report.calls == {"torch": 1}
    assert len(report.reasons) == 1 and reason in next(iter(report.reasons))
    assert "to torch" in str(report) and reason in str(report)


def test_causal_beside_a_mask_is_left_to_torch():
    tensors, mask = leaves(query=(2, 4, 19, 16)), mask_of((19, 19))
    with undivided.sdpa(KERNEL) as report:
        try:
            out = F.scaled_dot_product_attention(**tensors, attn_mask=mask, is_causal=True)
        except RuntimeError as refusal:
            with pytest.raises(RuntimeError, match=str(refusal)[:40]):
                TORCH(**tensors, attn_mask=mask, is_causal=True)
        else:
            assert torch.equal(out, TORCH(**tensors, attn_mask=mask, is_causal=True))
    assert report.calls == {"torch": 1}


WRONG = {
    "dtypes": leaves() | {"key": leaves()["key"].double()},
    "head_dim": leaves(key=(2, 4, 19, 8)),
    "heads": leaves(key=(2, 3, 19, 16)),
    "mask dtype": leaves() | {"attn_mask": torch.zeros(FULL, dtype=torch.float64, device=DEVICE)},
    "mask shape": leaves() | {"attn_mask": torch.zeros(BATCH, NHEADS, SEQLEN_Q, 5, device=DEVICE)},
    "tensor": leaves() | {"value": None},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_raises_what_torch_raises(name):
    with pytest.raises((RuntimeError, TypeError)) as expected:
        TORCH(**WRONG[name])
    with undivided.sdpa(KERNEL) as report, pytest.raises(expected.type) as got:
        F.scaled_dot_product_attention(**WRONG[name])
    assert str(got.value).replace(" (position 3)", "") == str(expected.value)  # given by name or by position
    assert report.calls == {"torch": 1}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_and_forward_derivatives_are_torchs():
    tensors = leaves()
    with undivided.sdpa(KERNEL) as report:
        out = torch.vmap(F.scaled_dot_product_attention)(*tensors.values())
        torch.testing.assert_close(out, TORCH(**tensors))
    (reason,) = report.reasons
    assert report.calls == {"torch": 1} and "torch.func's transforms" in reason
    double = {name: t.double() for name, t in tensors.items()}
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)  # the others of torch's have none either
    with undivided.sdpa(KERNEL) as report, forward_ad.dual_level(), math:
        made = [forward_ad.make_dual(t, torch.ones_like(t)) for t in double.values()]
        assert forward_ad.unpack_dual(F.scaled_dot_product_attention(*made)).tangent is not None
    (reason,) = report.reasons
    assert "forward-mode derivatives" in reason


def test_a_second_derivative_raises_and_says_so():
    query = leaves()["query"].requires_grad_()
    with undivided.sdpa(KERNEL):
        out = F.scaled_dot_product_attention(query, query, query)
    (grad,) = torch.autograd.grad(out.sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        grad.sum().backward()


def test_torchs_own_backend_does_not_come_back_to_us():
    q, k, v = (t.transpose(1, 2) for t in leaves().values())
    expected = undivided.attention(q, k, v, backend="sdpa")
    with undivided.sdpa(KERNEL) as report:
        assert torch.equal(undivided.attention(q, k, v, backend="sdpa"), expected)
    assert not report.calls


@pytest.mark.parametrize(
    "words",
    [
        dict(scale=True),
        dict(dropout_p=False),
        dict(enable_gqa=1),
        dict(enable_gqa=None),
        dict(is_causal=1),
        dict(is_causal=None),
        dict(dropout_p="a"),
    ],
    ids=str,
)
def test_words_of_other_types_are_left_to_torch(words):
    """Which takes some of them and has its own errors for the others."""
    tensors = leaves()
    try:
        expected = TORCH(**tensors, **words)
    except TypeError as error:
        expected = error
    with undivided.sdpa(KERNEL) as report:
        if isinstance(expected, TypeError):
            with pytest.raises(TypeError, match=re.escape(str(expected).splitlines()[0])):
                F.scaled_dot_product_attention(**tensors, **words)
        else:
            assert torch.equal(F.scaled_dot_product_attention(**tensors, **words), expected)
    assert report.calls == {"torch": 1}
