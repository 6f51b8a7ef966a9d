"""The Triton attention in the interpreter (or on a GPU), against the float64 reference, over the shared case table."""

import importlib.util

import pytest
import torch

import undivided
from rows import same_numbers
from undivided.testing import compare
from undivided.testing.cases import ATTENTION_CASES, AttentionCase

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# One row of each kind of arithmetic; the others differ in which elements are visible, not in their type.
LOW_PRECISION = ("64", "head_dim 40", "head_dim 128", "gqa", "everything", "bias hqk", "sinks", "packed cross")


@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case.name)
def test_forward_and_backward(case):
    verdicts = compare.attention(case, torch.float32, "triton", DEVICE, True)
    assert not [verdict for verdict in verdicts if not verdict.ok]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in ATTENTION_CASES if c.name in LOW_PRECISION], ids=lambda case: case.name)
def test_low_precision(case, dtype):
    verdicts = compare.attention(case, dtype, "triton", DEVICE, True)
    assert not [verdict for verdict in verdicts if not verdict.ok]


def inputs(seqlen: int = 80, **changes) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    sizes = {"batch": 2, "nheads": 2, "head_dim": 16, **changes}
    shape = (sizes["batch"], seqlen, sizes["nheads"], sizes["head_dim"])
    return tuple(torch.randn(shape, generator=generator).to(DEVICE).requires_grad_() for _ in range(3))


def gradients(q, k, v, **words) -> list[torch.Tensor]:
    out = undivided.attention(q, k, v, backend="triton", **words)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))]


def test_two_runs_agree_to_the_bit():
    q, k, v = inputs()
    first, second = (gradients(q, k, v, causal=True, dropout_p=0.2, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_poison_in_hidden_keys_reaches_nothing(poison):
    q, k, v = inputs()
    clean = gradients(q, k, v, causal=True, key_lengths=torch.tensor([80, 30], dtype=torch.int32, device=DEVICE))
    with torch.no_grad():
        k[1, 30:] = poison
        v[1, 30:] = poison
    lengths = torch.tensor([80, 30], dtype=torch.int32, device=DEVICE)
    dirty = gradients(q, k, v, causal=True, key_lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def test_a_nan_in_a_later_value_stays_out_of_earlier_rows():
    q, k, v = inputs()
    with torch.no_grad():
        v[0, 40, 0, 3] = float("nan")
    out = undivided.attention(q, k, v, causal=True, backend="triton")
    assert out[0, :40].isfinite().all() and out[0, 40:, 0, 3].isnan().all()


def test_a_dense_bias_in_several_tiles_each_way():
    """Two blocks of 64 queries and three of keys, each with a part."""
    case = AttentionCase("tiles", "", seqlen_q=70, seqlen_k=140, nheads=1, nheads_kv=1, head_dim=8, bias="bhqk")
    verdicts = compare.attention(case, torch.float32, "triton", DEVICE, True)
    assert "dbias" in {verdict.name for verdict in verdicts}
    assert not [verdict for verdict in verdicts if not verdict.ok]


def test_batch_rows_and_heads_are_not_bound_by_an_axis_of_the_grid(monkeypatch):
    """Every axis but the first ends at 65535; here are 65536 batch rows and heads with a bias of their own."""
    from undivided.kernels.attention import backward, delta

    grids = {}

    class Recorded:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            grids[self.name] = grid
            return lambda *values, **words: None

    names = ("delta_kernel", "dq_kernel", "dkdv_kernel", "dbias_kernel")
    for name in names:
        monkeypatch.setattr(delta if name == "delta_kernel" else backward, name, Recorded(name))
    x, one = torch.zeros(2**15, 1, 2, 8, device=DEVICE), torch.zeros(2**15, 2, 1, device=DEVICE)
    backward.attention_backward(x, x, x, x, x, one, scale=1.0, bias=one[..., None], need_bias=True)
    assert grids == dict.fromkeys(names, (2**16,))


@pytest.mark.parametrize("offset", [None, 5, (0, 40)], ids=str)
def test_turning_on_the_way_is_turning_before(offset, monkeypatch):
    """The same bits, on a GPU but for a rounding (see attention_decode's test of this name); and one program alone must
    load each key, or it would be turned several times."""
    from undivided.ops import attention_rotary

    def refuse(*_, **__):
        raise AssertionError("q and k were turned before")

    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, n, 2, 40, generator=generator).to(DEVICE) for n in (20, 70, 70))
    cos, sin = (table.to(DEVICE) for table in undivided.reference.rotary_tables(80, 40))
    words = dict(causal=True, return_lse=True, backend="triton")
    first = torch.tensor([50 if offset is None else offset] * 2 if not isinstance(offset, tuple) else offset)
    if offset is not None:
        words["query_offset"] = offset if isinstance(offset, int) else first.int().to(DEVICE)
    places = first[:, None].to(DEVICE) + torch.arange(20, device=DEVICE)
    turned = undivided.rotary(q, cos, sin, places, backend="triton"), undivided.rotary(k, cos, sin, backend="triton")
    expected = undivided.attention(*turned, v, **words)
    monkeypatch.setattr(attention_rotary, "turn", refuse)
    got = undivided.attention(q, k, v, rotary=(cos, sin), **words)
    for pair in zip(got, expected, strict=True):
        same_numbers("triton", *pair)
    for grouped in (k[:, :, :1], v[:, :, :1]), (k.requires_grad_(), v):
        with pytest.raises(AssertionError, match="turned before"):
            undivided.attention(q, *grouped, rotary=(cos, sin), **words)
