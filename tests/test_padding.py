"""Padded batches whose padding a model leaves out by itself, on a CPU."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from undivided.tasks.frames import SLOT
from undivided.tasks.spelling import SPELLING
from undivided.training.frames import FrameEmbedding
from undivided.training.spelling import WordEmbedding
from undivided.transformer import (
    Config,
    NextToken,
    SequenceClassifier,
    TokenClassifier,
    Transformer,
    keep_padding,
    padding,
)

# A longest row, one symbol, an empty row; batches longer than any row; together more padding than is worth leaving out.
SRC, TGT = torch.tensor([30, 1, 17, 0, 9]), torch.tensor([12, 20, 1, 5, 0])
PLACES_SRC, PLACES_TGT = 31, 22
HEADS = (TokenClassifier, SequenceClassifier, NextToken)


def ids(lengths, places, seed):
    out = torch.randint(3, 20, (len(lengths), places), generator=torch.Generator().manual_seed(seed))
    return out.masked_fill(~seen(lengths, places), 0)


def seen(lengths, places):
    return torch.arange(places) < lengths[:, None]


def model(kind=Transformer, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    sizes = dict(d_model=32, nheads=4, d_ff=48, activation="gelu")
    return kind(Config(20, 20, **{**sizes, **changes})).to(dtype)


def watch(made, monkeypatch):
    """The shapes that go into the first blocks, seen without a hook."""
    shapes = []
    for stack in (made.encoder, getattr(made, "decoder", made.encoder)):
        block = stack.blocks[0]
        forward = type(block).forward

        def watched(x, *args, block=block, forward=forward, **words):
            shapes.append(tuple(x.shape[:2]))
            return forward(block, x, *args, **words)

        monkeypatch.setattr(block, "forward", watched)
    return shapes


SRC_IDS, TGT_IDS = ids(SRC, PLACES_SRC, 1), ids(TGT, PLACES_TGT, 2)
PADDED = [(5, PLACES_SRC), (5, PLACES_TGT)]
LEFT_OUT = [(1, int(SRC.sum())), (1, int(TGT.sum()))]


def whole(made):
    return made(SRC_IDS, TGT_IDS, src_lengths=SRC, tgt_lengths=TGT)


@pytest.mark.parametrize("positions", ("sinusoidal", "relative", "rotary"))
@pytest.mark.parametrize("kind", (Transformer, *HEADS))
def test_logits_and_gradients_are_those_with_the_padding(kind, positions, monkeypatch):
    made, results = model(kind, positions=positions), []
    shapes, stacks = watch(made, monkeypatch), 2 if kind is Transformer else 1
    rows = {Transformer: seen(TGT, PLACES_TGT), SequenceClassifier: SRC > 0}.get(kind, seen(SRC, PLACES_SRC))
    for kept in (True, False):
        with keep_padding() if kept else nullcontext():
            logits = whole(made) if kind is Transformer else made(SRC_IDS, SRC)
        dout = torch.randn(logits[rows].shape, generator=torch.Generator().manual_seed(3))
        grads = torch.autograd.grad(logits[rows], list(made.parameters()), dout)
        results.append([logits[rows], *grads])
        if kind is Transformer:
            assert bool((logits[~rows] != 0).any()) == kept
    assert shapes == [*PADDED[:stacks], *LEFT_OUT[:stacks]]
    for right, got in zip(*results, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=2e-5)


def test_an_encoder_alone_leaves_it_out_by_the_lengths_of_the_source(monkeypatch):
    made = model().eval()
    shapes = watch(made, monkeypatch)
    with torch.no_grad():
        logits = made(SRC_IDS, TGT_IDS, SRC)
        assert shapes == [LEFT_OUT[0], PADDED[1]]
        with keep_padding():
            right = made(SRC_IDS, TGT_IDS, SRC)
        assert made.encoder(SRC_IDS, SRC)[~seen(SRC, PLACES_SRC)].eq(0).all()
    torch.testing.assert_close(logits, right, rtol=1e-5, atol=2e-5)


def test_autocast_leaves_it_out_too(monkeypatch):
    made = model()
    shapes = watch(made, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = whole(made)
    assert logits.dtype == torch.bfloat16 and shapes == LEFT_OUT


def test_spelled_words_leave_it_out_and_sounds_do_not(monkeypatch):
    made = model().eval()
    shapes, encoder = watch(made, monkeypatch), made.encoder
    encoder.embedding, src = WordEmbedding(20, 32).eval(), torch.randint(0, 5, (5, PLACES_SRC, 1 + SPELLING))
    with torch.no_grad():
        left = encoder(src, SRC)
        with keep_padding():
            right = encoder(src, SRC)
        encoder.embedding = FrameEmbedding(32)
        encoder(torch.randint(0, 9, (5, PLACES_SRC, SLOT)), SRC)
    assert shapes == [LEFT_OUT[0], PADDED[0], PADDED[0]]
    rows = seen(SRC, PLACES_SRC)
    torch.testing.assert_close(left[rows], right[rows], rtol=1e-5, atol=2e-5)


def test_a_symbol_outside_the_vocabulary_is_named_in_the_padding_too():
    src = SRC_IDS.masked_fill(~seen(SRC, PLACES_SRC), -100)
    with pytest.raises(ValueError, match="id -100 is outside the vocabulary: allowed 0 to 19"):
        model()(src, TGT_IDS, SRC, TGT)


def hooked(made):
    made.encoder.blocks[1].feed_forward.register_forward_hook(lambda *_: None)
    return whole(made)


KEPT = {
    "a hook": (model, hooked),
    "no lengths": (model, lambda made: made(SRC_IDS, TGT_IDS)),
    "float64": (partial(model, dtype=torch.float64), whole),
    "heads too narrow for the kernel": (partial(model, nheads=8), whole),
    "little padding": (model, whole),
    "nothing else": (model, lambda made: made(SRC_IDS, TGT_IDS, 0 * SRC, 0 * TGT)),
}


@pytest.mark.parametrize("why", KEPT)
def test_padding_is_kept_where_there_is(why, monkeypatch):
    make, call = KEPT[why]
    made = make()
    monkeypatch.setattr(padding, "LEAST", 200 if why == "little padding" else padding.LEAST)
    shapes = watch(made, monkeypatch)
    call(made)
    assert shapes == PADDED


@pytest.mark.filterwarnings("ignore")  # of torch: the trace is not of everything
def test_a_trace_of_torch_jit_is_for_any_lengths():
    made = model().eval()
    with torch.no_grad():
        traced = torch.jit.trace(made, (SRC_IDS, TGT_IDS, SRC, TGT), check_trace=False)
        found, right = traced(SRC_IDS, TGT_IDS, SRC.flip(0), TGT), made(SRC_IDS, TGT_IDS, SRC.flip(0), TGT)
    rows = seen(TGT, PLACES_TGT)
    assert found[~rows].ne(0).any()  # the longest length would be a number in it
    torch.testing.assert_close(found[rows], right[rows], rtol=1e-5, atol=2e-5)


def test_a_graph_is_traced_with_the_padding():
    made = model().eval()
    with torch.no_grad():
        right = whole(made)
        found = torch.compile(made, fullgraph=True, backend="eager")(SRC_IDS, TGT_IDS, SRC, TGT)
    rows = seen(TGT, PLACES_TGT)
    assert found[~rows].ne(0).any()
    torch.testing.assert_close(found[rows], right[rows], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("lengths", "error", "text"),
    [
        (torch.tensor([32, 1, 17, 0, 9]), ValueError, "hold values from 0 to 32; allowed: 0 to 31"),
        (torch.tensor([30, 1, -17, 0, 9]), ValueError, "hold values from -17 to 30; allowed: 0 to 31"),
        (torch.tensor([30.0, 1, 17, 0, 9]), TypeError, "key_lengths has dtype torch.float32"),
    ],
)
def test_lengths_that_do_not_fit(lengths, error, text):
    with pytest.raises(error, match=text):
        model()(SRC_IDS, TGT_IDS, lengths, TGT)
