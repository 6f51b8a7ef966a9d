"""The recurrent models: padding, decoding step by step, attention, sizes, and training them as a user does."""

import pytest
import torch

from undivided.baselines import AttentionSeq2Seq, Config, Seq2Seq, SequenceClassifier, TokenClassifier
from undivided.baselines.recurrent import Recurrent
from undivided.tasks import N_TO_M, Vocabulary, g2p
from undivided.training.models import KINDS, build

SRC, TGT = 11, 9
LENGTHS = torch.tensor([7, 1, 4], dtype=torch.int32)  # the longest, the shortest, one between
MODELS = [(model, cell) for model in (Seq2Seq, AttentionSeq2Seq) for cell in ("rnn", "gru", "lstm")]


def config(cell="gru", **changes):
    return Config(**{"src_vocab": SRC, "tgt_vocab": TGT, "cell": cell, "d_model": 16, "layers": 2, **changes})


def make(model, cell="gru", **changes):
    torch.manual_seed(0)
    return model(config(cell, **changes)).eval()


def ids(rows=3, seqlen=7, vocab=SRC, seed=1):
    return torch.randint(3, vocab, (rows, seqlen), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("model", "cell"), MODELS)
def test_padding_changes_nothing(model, cell):
    made, src, tgt = make(model, cell), ids(), ids(seqlen=5, vocab=TGT)
    together = made(src, tgt, src_lengths=LENGTHS)
    other = src.clone()
    other[torch.arange(7) >= LENGTHS[:, None]] = 10
    assert torch.equal(made(other, tgt, src_lengths=LENGTHS), together)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = made(src[row : row + 1, :length], tgt[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model", "cell"), MODELS)
def test_a_step_at_a_time_gives_the_logits_of_the_whole(model, cell):
    made, src, tgt = make(model, cell), ids(), ids(seqlen=5, vocab=TGT)
    whole = made(src, tgt, src_lengths=LENGTHS)
    decoding = made.start(src, LENGTHS)
    order = torch.tensor([0, 1, 2])
    for step in range(5):
        if step == 2:  # as a beam search does, rows change place and come twice
            order = torch.tensor([2, 0, 0, 1])
            decoding.select(order)
        logits = decoding.step(tgt[order, step : step + 1])
        torch.testing.assert_close(logits, whole[order, step], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model", "cell"), MODELS)
def test_as_many_beams_as_symbols_find_the_likeliest_of_all_answers(model, cell):
    made, src = make(model, cell), ids()
    first, second = (one.flatten() for one in torch.meshgrid(torch.arange(TGT), torch.arange(TGT), indexing="ij"))
    found = made.generate(src, LENGTHS, max_length=2, beams=TGT, length_penalty=0.0)
    for row, length in enumerate(LENGTHS.tolist()):
        tgt = torch.stack([torch.ones_like(first), first], 1)
        gains = made(src[row : row + 1, :length].expand(TGT**2, -1), tgt).log_softmax(-1).detach()
        numbers = torch.arange(TGT**2)
        total = gains[numbers, 0, first] + torch.where(first == 2, 0.0, gains[numbers, 1, second])  # 2 ends it
        answer = (first == found[row, 0]) & ((first == 2) | (second == found[row, -1]))
        assert float(total[answer].max()) == pytest.approx(float(total.max()), abs=1e-5)


def test_attention_sees_the_source_and_no_padding():
    made, src, tgt = make(AttentionSeq2Seq), ids(), ids(seqlen=5, vocab=TGT)
    (weights,) = made.cross_attention(src, tgt, LENGTHS)
    assert weights.shape == (3, 1, 5, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 1, 5))
    assert bool((weights[1, ..., 1:] == 0).all()) and bool((weights[0] > 0).all())
    assert not hasattr(make(Seq2Seq), "cross_attention")


def test_without_attention_all_that_is_known_is_the_last_state():
    """The first symbol of a long source reaches the output only through the state, so it matters less and less."""
    made, tgt = make(Seq2Seq, "rnn"), ids(1, 3, TGT)
    gradients = []
    for seqlen in (5, 40):
        x = made.encoder.embedding(ids(1, seqlen)).detach().requires_grad_()
        memory, state = made.encoder.recurrent(x)
        logits, _ = made.decoder(tgt, state, memory)
        logits.square().sum().backward()
        gradients.append(float(x.grad[0, 0].norm()))
    assert gradients[1] < 1e-3 * gradients[0]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_a_state_goes_on_where_it_was(cell, both_ways):
    torch.manual_seed(0)
    made = Recurrent(cell, 16, 2, both_ways=both_ways).eval()
    x = torch.randn(2, 6, 16)
    outputs, state = made(x)
    assert outputs.shape == (2, 6, 16) and all(one.shape == (2, 2, 16) for one in state)
    assert len(state) == (2 if cell == "lstm" else 1)
    if not both_ways:
        first, between = made(x[:, :4])
        second, after = made(x[:, 4:], state=between)
        torch.testing.assert_close(torch.cat([first, second], 1), outputs)
        torch.testing.assert_close(after, state)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_heads_see_no_padding(pooling):
    src = ids()
    for model in (TokenClassifier, SequenceClassifier):
        made = make(model, pooling=pooling)
        together = made(src, src_lengths=LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            alone = made(src[row : row + 1, :length])
            mine = together[row : row + 1, :length] if model is TokenClassifier else together[row : row + 1]
            torch.testing.assert_close(mine, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recipe", ["quick", "full"])
def test_all_models_of_a_recipe_have_about_as_many_weights(recipe):
    sizes = {}
    for kind, options in g2p.TASK.recipes[recipe]["model"].items():
        made = build(kind, N_TO_M, Vocabulary(g2p.GRAPHEMES), Vocabulary(g2p.PHONEMES), options)
        sizes[kind] = sum(weight.numel() for weight in made.parameters())
    assert sizes.keys() == KINDS.keys()
    assert all(abs(size / sizes["transformer"] - 1) < 0.06 for size in sizes.values()), sizes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cell": "tanh"}, "cell='tanh' is unknown; allowed: rnn, gru, lstm"),
        ({"pooling": "max"}, "pooling='max' is unknown; allowed: mean, last"),
        ({"layers": 0}, "layers=0 must be a whole number, at least 1"),
        ({"d_model": 15}, "d_model=15 must be even"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_configs_out_of_range_are_named(changes, text):
    with pytest.raises(ValueError, match=text):
        config(**changes)


def test_inputs_that_do_not_fit_are_named():
    made = make(Seq2Seq)
    with pytest.raises(ValueError, match=r"src_lengths has shape \(2,\), expected \(batch,\) = \(3,\)"):
        made(ids(), ids(vocab=TGT), src_lengths=LENGTHS[:2])
    with pytest.raises(ValueError, match="id 11 is outside the vocabulary: allowed 0 to 10"):
        made(torch.full((3, 7), 11), ids(vocab=TGT))
    with pytest.raises(TypeError, match="tgt has dtype torch.float32"):
        made(ids(), ids(vocab=TGT).float())
