"""The encoder-decoder, its heads, generation and files."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import undivided
from undivided.nn import POSITIONS
from undivided.nn.cache import Cache
from undivided.nn.feed_forward import ACTIVATIONS
from undivided.testing import check
from undivided.transformer import CausalLM, Config, SequenceClassifier, TokenClassifier, Transformer, load, save
from undivided.transformer.config import NORMS
from undivided.transformer.decoding import Decoding
from undivided.transformer.generation import generate, truncated
from undivided.transformer.symbols import END, PAD

VOCAB = 17


def small(**changes) -> Config:
    return Config(**{"src_vocab": VOCAB, "tgt_vocab": VOCAB, "d_model": 32, "nheads": 2, "d_ff": 48, **changes})


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(3, VOCAB, (3, 7), generator=generator)
    tgt = torch.randint(3, VOCAB, (3, 6), generator=generator)
    return src, tgt, torch.tensor([7, 3, 5], dtype=torch.int32)


def model(**changes) -> Transformer:
    torch.manual_seed(1)
    return Transformer(small(**changes)).eval()


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


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_decoding_may_start_with_several_symbols_and_change_its_rows(positions):
    """As a beam search does: rows repeated, reordered and dropped take their caches with them."""
    src, tgt, lengths = batch()
    made = model(positions=positions).double()
    full = made(src, tgt, lengths)
    decoding = made.start(src, lengths, tgt.shape[1])
    torch.testing.assert_close(decoding.step(tgt[:, :3]), full[:, 2], rtol=0, atol=1e-13)
    rows = torch.tensor([2, 0, 0])
    decoding.select(rows)
    torch.testing.assert_close(decoding.step(tgt[rows, 3:4]), full[rows, 3], rtol=0, atol=1e-13)
    decoding.select(torch.tensor([1]))
    torch.testing.assert_close(decoding.step(tgt[:1, 4:5]), full[:1, 4], rtol=0, atol=1e-13)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_beam_search_leaves_the_keys_of_the_sources_alone(monkeypatch, positions):
    """Its hypotheses change places within a source; what all rows select gives the same."""
    src, _, lengths = batch()
    made, selected = model(positions=positions).eval(), []
    select, of_cache = Decoding.select, Cache.select
    monkeypatch.setattr(Cache, "select", lambda self, rows: selected.append(self.of_source) or of_cache(self, rows))
    found = made.generate(src, lengths, max_length=9, beams=3)
    blocks = len(made.decoder.blocks)
    assert selected.count(True) == blocks and selected.count(False) > 2 * blocks
    monkeypatch.setattr(Decoding, "select", lambda self, rows, same_sources=False: select(self, rows))
    assert torch.equal(made.generate(src, lengths, max_length=9, beams=3), found)
    assert selected.count(True) > 2 * blocks


def test_order_matters_only_with_positions():
    src, tgt, _ = batch()
    for positions in POSITIONS:
        made = model(positions=positions)
        turned = made.encoder(src.flip(1)).flip(1)
        same = torch.allclose(turned, made.encoder(src), atol=1e-5)
        # ALiBi depends on the distance alone, so the mirrored sentence gives the mirrored memory too.
        assert same == (positions in ("none", "alibi")), positions


def test_greedy_takes_the_likeliest_symbol_of_a_full_pass():
    src, _, lengths = batch()
    made = model()
    ids = made.generate(src, lengths, max_length=8)
    for row in range(3):
        prefix = [1]
        for given in ids[row].tolist():
            wanted = made(src[row : row + 1], torch.tensor([prefix]), lengths[row : row + 1])[0, -1].argmax().item()
            assert given == wanted
            if given == END:
                break
            prefix.append(given)


def score(made: Transformer, src, lengths, ids) -> torch.Tensor:
    """Log-probability of each row's symbols up to its first end, divided by their number."""
    begin = torch.ones_like(ids[:, :1])
    logits = made(src, torch.cat([begin, ids[:, :-1]], 1), lengths).log_softmax(-1)
    seen = (ids == END).cumsum(1) - (ids == END).int() == 0
    gains = logits.gather(-1, ids[..., None])[..., 0].masked_fill(~seen, 0.0)
    return gains.sum(1) / seen.sum(1)


def test_wide_beam_search_finds_the_best_of_all_outputs():
    """Over three symbols and three steps every output can be scored; a beam as wide as all of them must find the best.

    The vocabulary is pad, begin, end and two symbols; pad and begin are possible symbols as well.
    """
    torch.manual_seed(3)
    made = Transformer(small(tgt_vocab=5)).eval()
    src, _, lengths = batch()
    ids = made.generate(src, lengths, max_length=3, beams=40)
    every = torch.cartesian_prod(*[torch.arange(5)] * 3)
    for row in range(3):
        count = len(every)
        scores = score(made, src[row : row + 1].expand(count, -1), lengths[row : row + 1].expand(count), every)
        padded = torch.nn.functional.pad(ids[row : row + 1], (0, 3 - ids.shape[1]))
        found = score(made, src[row : row + 1], lengths[row : row + 1], padded)
        assert found.item() == pytest.approx(scores.max().item(), abs=1e-5)


def test_one_beam_of_several_is_never_worse_than_greedy_on_average():
    src, _, lengths = batch()
    made = model()
    greedy = made.generate(src, lengths, max_length=6)
    beam = made.generate(src, lengths, max_length=6, beams=4)
    assert score(made, src, lengths, beam).mean() >= score(made, src, lengths, greedy).mean() - 1e-5


def test_sampling_keeps_to_top_k_and_top_p():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert truncated(logits, 2, None).isfinite().tolist() == [[True, True, False, False]]
    assert truncated(logits, None, 0.75).isfinite().tolist() == [[True, True, False, False]]
    assert truncated(logits, None, 0.01).isfinite().tolist() == [[True, False, False, False]]
    assert truncated(logits, None, 1.0).isfinite().all()


class Fixed:
    """A decoding whose next symbol always has the same logits, until its last step ends it."""

    def __init__(self, logits: list[float], batch: int) -> None:
        self.logits, self.batch, self.device = torch.tensor([logits]), batch, torch.device("cpu")

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(self.batch, -1)


@pytest.mark.parametrize(
    ("search", "kept"),
    [
        ({"temperature": 1.0}, [0, 3, 4, 5, 6]),
        ({"temperature": 0.5}, [0, 3, 4, 5, 6]),
        ({"temperature": 2.0, "top_k": 3}, [3, 4, 5]),
        ({"top_p": 0.6}, [3, 4]),
        ({"top_k": 3, "top_p": 0.99}, [3, 4, 5]),
    ],
)
def test_samples_have_the_frequencies_of_the_truncated_softmax(search, kept):
    logits = [0.0, -torch.inf, -torch.inf, 3.0, 2.5, 2.0, 1.0]
    count = 20000
    drawn = generate(Fixed(logits, count), 1, generator=torch.Generator().manual_seed(0), **search)
    weights = (torch.tensor(logits)[kept] / search.get("temperature", 1.0)).softmax(0)
    share = torch.stack([(drawn == symbol).float().mean() for symbol in kept])
    assert share.sum() == pytest.approx(1.0)  # nothing else was drawn
    assert ((share - weights).abs() <= 5 * (weights * (1 - weights) / count).sqrt()).all()


def test_sampling_follows_its_generator_and_temperature():
    src, _, lengths = batch()
    made = model()

    def drawn(seed: int, **search):
        return made.generate(src, lengths, max_length=8, generator=torch.Generator().manual_seed(seed), **search)

    assert torch.equal(drawn(1, temperature=1.0), drawn(1, temperature=1.0))
    assert any(drawn(0, temperature=3.0).tolist() != drawn(seed, temperature=3.0).tolist() for seed in range(1, 5))
    assert torch.equal(drawn(1, top_k=1), made.generate(src, lengths, max_length=8))


def test_after_its_end_a_row_is_padding():
    src, _, lengths = batch()
    made = model()
    ids = made.generate(src.repeat(40, 1), lengths.repeat(40), max_length=8, temperature=2.0)
    ended = (ids == END).any(1)
    assert ended.any()
    for row in ids[ended].tolist():
        assert set(row[row.index(END) + 1 :]) <= {PAD}


@pytest.mark.parametrize(
    ("search", "text"),
    [
        ({"beams": 0}, "beams=0 must be at least 1"),
        ({"beams": 2, "top_k": 3}, "beams=2 must be at least 1, and 1 with"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
    ],
)
def test_bad_searches_are_named(search, text):
    src, _, lengths = batch()
    with pytest.raises(ValueError, match=text):
        model().generate(src, lengths, **search)


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
