"""Packed batches: the same results as padded ones, without the padding."""

from __future__ import annotations

import pytest
import torch

from undivided.nn import POSITIONS, pack, unpack
from undivided.transformer import Config, SequenceClassifier, TokenClassifier, Transformer

# A longest one, a short one, one symbol, and lengths that leave no order.
SRC, TGT = torch.tensor([7, 9, 1, 4], dtype=torch.int32), torch.tensor([5, 3, 6, 1], dtype=torch.int32)


def ids(lengths, seed, dtype=torch.int64):
    generator = torch.Generator().manual_seed(seed)
    longest = int(lengths.max())
    out = torch.randint(3, 20, (len(lengths), longest), generator=generator)
    return out.masked_fill(torch.arange(longest) >= lengths[:, None], 0)


def model(kind=Transformer, **changes):
    torch.manual_seed(0)
    sizes = dict(d_model=24, nheads=3, d_ff=40, activation="gelu")
    return kind(Config(20, 20, **{**sizes, **changes})).double()


def test_pack_and_unpack():
    x = torch.randn(4, 9, 2)
    packed, packing = pack(x, SRC)
    assert packed.shape == (1, 21, 2) and packing.cu_seqlens.tolist() == [0, 7, 16, 17, 21] and packing.longest == 9
    assert packing.positions.tolist() == [*range(7), *range(9), 0, *range(4)]
    back = unpack(packed, packing)
    seen = torch.arange(9) < SRC[:, None]
    assert torch.equal(back[seen], x[seen]) and (back[~seen] == 0).all()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", ("pre-layer", "post-rms"))
def test_packed_logits_and_gradients_are_those_of_the_padded_batch(positions, norm):
    made, src, tgt = model(positions=positions, norm=norm), ids(SRC, 1), ids(TGT, 2)
    seen = torch.arange(tgt.shape[1]) < TGT[:, None]
    padded = made(src, tgt, SRC, TGT)[seen]
    dout = torch.randn(padded.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = torch.autograd.grad(padded, list(made.parameters()), dout)
    (src, src_packing), (tgt, tgt_packing) = pack(src, SRC), pack(tgt, TGT)
    packed = made(src, tgt, src_packing, tgt_packing)
    assert packed.shape == (1, 15, 20)
    torch.testing.assert_close(packed[0], padded, rtol=0, atol=1e-12)
    for got, right in zip(torch.autograd.grad(packed[0], list(made.parameters()), dout), wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", (TokenClassifier, SequenceClassifier))
def test_packed_classifiers(kind):
    made, src = model(kind), ids(SRC, 1)
    padded = made(src, SRC)
    packed, packing = pack(src, SRC)
    found = made(packed, packing)
    if kind is TokenClassifier:
        padded, found = padded[torch.arange(9) < SRC[:, None]], found[0]
    torch.testing.assert_close(found, padded, rtol=0, atol=1e-12)


def test_a_packed_batch_runs_on_the_kernels_in_float32():
    made, src, tgt = model().float(), ids(SRC, 1), ids(TGT, 2)
    padded = made(src, tgt, SRC, TGT)[torch.arange(tgt.shape[1]) < TGT[:, None]]
    (src, src_packing), (tgt, tgt_packing) = pack(src, SRC), pack(tgt, TGT)
    torch.testing.assert_close(made(src, tgt, src_packing, tgt_packing)[0], padded, rtol=0, atol=1e-5)


def test_bad_packings_are_named():
    made, src, tgt = model(), ids(SRC, 1), ids(TGT, 2)
    with pytest.raises(ValueError, match=r"lengths has shape \(3,\), expected \(batch,\) = \(4,\)"):
        pack(src, SRC[:3])
    with pytest.raises(ValueError, match="lengths hold values from 1 to 10; allowed: 0 to 9"):
        pack(src, SRC + 1 - torch.tensor([7, 0, 0, 0], dtype=torch.int32))
    packed, packing = pack(src, SRC)
    with pytest.raises(TypeError, match="src and tgt must both be packed"):
        made(packed, tgt, packing, TGT)
    with pytest.raises(ValueError, match=r"src_lengths packs 21 tokens, ids have shape \(4, 9\), expected \(1, 21\)"):
        made(src, *pack(tgt, TGT)[:1], packing, pack(tgt, TGT)[1])
