"""The encoder-decoder, its heads and files."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import undivided
from small_transformers import VOCAB, batch, model, small
from undivided.nn import POSITIONS
from undivided.nn.cache import Cache
from undivided.nn.feed_forward import ACTIVATIONS
from undivided.testing import check
from undivided.transformer import CausalLM, SequenceClassifier, TokenClassifier, Transformer, load, save
from undivided.transformer.config import NORMS
from undivided.transformer.symbols import END

VARIANTS = [
    *({"positions": name} for name in POSITIONS),
    *({"norm": name} for name in NORMS),
    *({"activation": name} for name in ACTIVATIONS),
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: next(iter(changes.values())))
def test_cached_decoding_equals_full_decoding(changes):
    """Logits step by step from the caches, against one pass over the whole target.

    In float32 up to the order in which products of other sizes sum, and exactly where that is fixed; in float64 what
    is left is a mistake.
    """
    src, tgt, lengths = batch()
    made = model(**changes)
    for dtype, most in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        made = made.to(dtype)
        full = made(src, tgt, lengths)
        decoding = made.start(src, lengths, tgt.shape[1])
        steps = torch.stack([decoding.step(tgt[:, i : i + 1]) for i in range(tgt.shape[1])], 1)
        torch.testing.assert_close(steps, full, rtol=0, atol=most)
        assert torch.equal(steps.argmax(-1), full.argmax(-1))


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: next(iter(changes.values())))
def test_cached_decoding_equals_full_decoding_to_the_bit(changes):
    """And so does a row alone, without the padding that the others bring."""
    pytest.importorskip("undivided._C", reason="the compiled extension is not built")
    src, tgt, lengths = batch()
    made, language = model(**changes), CausalLM(small(**changes)).eval()
    with undivided.batch_invariant(), torch.no_grad():
        full, told = made(src, tgt, lengths), language(tgt)
        assert torch.equal(made(src[1:2, :3], tgt[1:2]), full[1:2])
        decoding, caches = made.start(src, lengths, tgt.shape[1]), [Cache(6) for _ in language.blocks]
        for i in range(tgt.shape[1]):
            symbols = tgt[:, i : i + 1]
            assert torch.equal(decoding.step(symbols), full[:, i]), i
            assert torch.equal(language(symbols, caches)[:, 0], told[:, i]), i


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: next(iter(changes.values())))
def test_every_weight_learns(changes):
    src, tgt, lengths = batch()
    made = model(**changes).train()
    made(src, tgt, lengths).square().mean().backward()
    for name, weight in made.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_changes_nothing(positions):
    """A row alone and in a batch with longer ones gives the same logits; padding may hold any symbol."""
    src, tgt, lengths = batch()
    made = model(positions=positions)
    together = made(src, tgt, lengths)
    alone = made(src[1:2, :3], tgt[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)
    src[1, 3:] = 5
    assert torch.equal(made(src, tgt, lengths), together)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("at", [3, 5])
def test_the_decoder_does_not_see_the_future(positions, at):
    """Another symbol at one place: the logits before it are the same to the bit, its own are not."""
    src, tgt, lengths = batch()
    torch.manual_seed(0)
    for made in (model(positions=positions), CausalLM(small(positions=positions)).eval()):
        inputs = (lambda t: (src, t, lengths)) if isinstance(made, Transformer) else (lambda t: (t,))
        before = made(*inputs(tgt))
        changed = tgt.clone()
        changed[:, at] = (tgt[:, at] + 1 - 3) % (VOCAB - 3) + 3
        after = made(*inputs(changed))
        assert torch.equal(before[:, :at], after[:, :at])
        assert (before[:, at] != after[:, at]).any(-1).all()


def test_order_matters_only_with_positions():
    src, tgt, _ = batch()
    for positions in POSITIONS:
        made = model(positions=positions)
        turned = made.encoder(src.flip(1)).flip(1)
        same = torch.allclose(turned, made.encoder(src), atol=1e-5)
        # ALiBi depends on the distance alone, so the mirrored sentence gives the mirrored memory too.
        assert same == (positions in ("none", "alibi")), positions


def test_cross_attention_maps_are_probabilities():
    src, tgt, lengths = batch()
    made = model()
    maps = made.cross_attention(src, tgt, lengths)
    assert len(maps) == 2 and maps[0].shape == (3, 2, 6, 7)
    torch.testing.assert_close(maps[1].sum(-1), torch.ones(3, 2, 6))
    assert maps[0][1, :, :, 3:].abs().max() == 0


def test_classifiers_ignore_padding():
    src, _, lengths = batch()
    torch.manual_seed(0)
    one, every = SequenceClassifier(small(tgt_vocab=4)).eval(), TokenClassifier(small(tgt_vocab=4)).eval()
    assert one(src, lengths).shape == (3, 4) and every(src, lengths).shape == (3, 7, 4)
    torch.testing.assert_close(one(src, lengths)[1:2], one(src[1:2, :3]), rtol=0, atol=1e-5)
    torch.testing.assert_close(every(src, lengths)[1:2, :3], every(src[1:2, :3]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_language_model_continues_as_its_full_pass_says(positions):
    torch.manual_seed(0)
    made = CausalLM(small(positions=positions)).eval()
    prompt = batch()[1]
    ids = made.generate(prompt, max_length=4)
    likeliest = made(torch.cat([prompt, ids], 1)).argmax(-1)[:, prompt.shape[1] - 1 : -1]
    going = (ids == END).cumsum(1) - (ids == END).int() == 0  # up to a row's end; padding follows it
    assert torch.equal(ids[going], likeliest[going])


MODELS = {
    "encoder-decoder": (Transformer, {"norm": "post-rms", "activation": "geglu", "positions": "relative"}),
    "sequence classifier": (SequenceClassifier, {"tgt_vocab": 4, "positions": "learned"}),
    "token classifier": (TokenClassifier, {"tgt_vocab": 5, "positions": "alibi", "activation": "swiglu"}),
    "language model": (CausalLM, {"norm": "post-layer", "positions": "sinusoidal"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_comes_back_the_same(tmp_path, name):
    src, tgt, lengths = batch()
    kind, changes = MODELS[name]
    torch.manual_seed(1)
    made = kind(small(**changes)).eval()
    inputs = {Transformer: (src, tgt, lengths), CausalLM: (tgt,)}.get(kind, (src, lengths))
    save(made, tmp_path / "model")
    back = load(tmp_path / "model")
    assert type(back) is kind and back.config == made.config and not back.training
    assert torch.equal(back(*inputs), made(*inputs))


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: next(iter(changes.values())))
def test_every_variant_trains_under_autocast(changes):
    """Sublayers give 16 bits, a post-norm model's residual stream is float32: they must meet somewhere."""
    src, tgt, lengths = batch()
    made = model(**changes).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = made(src, tgt, lengths)
    assert logits.dtype == torch.bfloat16
    rough, exact = (copy.deepcopy(made).to(dtype)(src, tgt, lengths) for dtype in (torch.bfloat16, torch.float64))
    assert check("logits", logits, exact, rough).ok
    logits.float().square().mean().backward()
    assert all(weight.grad.dtype == torch.float32 and weight.grad.isfinite().all() for weight in made.parameters())


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json is not there"):
        load(tmp_path)
    save(model(), tmp_path)
    weights = tmp_path / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match="does not hold this model's weights"):
        load(tmp_path)
    weights.write_bytes(kept)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "d_model": 64}))
    with pytest.raises(ValueError, match="does not hold this model's weights"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a model's config"):
        load(tmp_path)
    with pytest.raises(TypeError, match="Linear cannot be saved; allowed: Transformer"):
        save(torch.nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"d_model": 30, "nheads": 4}, "d_model=30 must be a multiple of nheads=4"),
        ({"norm": "batch"}, "norm='batch' is unknown; allowed: pre-layer"),
        ({"activation": "tanh"}, "activation='tanh' is unknown; allowed: relu"),
        ({"positions": "clock"}, "positions='clock' is unknown; allowed: none"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"d_ff": 0}, "d_ff=0 must be a whole number, at least 1"),
        ({"d_model": 6, "nheads": 2}, "head_dim=3 must be even"),
    ],
)
def test_bad_configs_are_named(changes, text):
    with pytest.raises(ValueError, match=text):
        small(**changes)


def test_bad_inputs_are_named():
    src, tgt, lengths = batch()
    made = model()
    with pytest.raises(TypeError, match="src has dtype torch.float32"):
        made(src.float(), tgt)
    with pytest.raises(ValueError, match=r"src has shape \(7,\)"):
        made(src[0], tgt)
    with pytest.raises(ValueError, match=r"src_lengths has shape \(2,\)"):
        made(src, tgt, lengths[:2])
    with pytest.raises(ValueError, match=r"tgt_lengths has shape \(2,\)"):
        made(src, tgt, lengths, lengths[:2])
    with pytest.raises(ValueError, match="batch differs: q 2, k 3, v 3"):
        made(src, tgt[:2])
    with pytest.raises(ValueError, match="the cache holds 2 tokens, 3 were given; make it longer"):
        made.start(src, lengths, 2).step(tgt[:, :3])
    with pytest.raises(ValueError, match="id 99 is outside the vocabulary"):
        made(src, torch.full_like(tgt, 99))
    with pytest.raises(ValueError, match="the sequence has 1025 positions, learned positions end at 1024"):
        model(positions="learned").encoder(src[:1, :1].expand(1, 1025))


def test_training_by_dropout_differs_and_evaluation_does_not():
    src, tgt, lengths = batch()
    made = model(dropout=0.5)
    assert torch.equal(made(src, tgt, lengths), made(src, tgt, lengths))
    made.train()
    assert not torch.equal(made(src, tgt, lengths), made(src, tgt, lengths))
