"""Models of the transformers library as ours and back: same weights, same logits, same generation."""

from __future__ import annotations

import json

import pytest
import torch

from undivided.transformer import Config, Transformer, load, save
from undivided.transformer.huggingface import FAMILIES

transformers = pytest.importorskip("transformers")

VOCAB = 24
# Another number of layers on each side, and sizes that are no multiples of one another, so that none can stand for
# another by mistake. Random models end seldom: a small vocabulary makes some rows end within the steps that are taken.
T5 = dict(vocab_size=VOCAB, d_model=20, d_kv=12, d_ff=36, num_layers=3, num_decoder_layers=2, num_heads=3)
T5 |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=6, decoder_start_token_id=0)
BART = dict(vocab_size=VOCAB, d_model=24, encoder_layers=2, decoder_layers=3, max_position_embeddings=32)
BART |= dict(encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=36, decoder_ffn_dim=36)
BART |= dict(forced_eos_token_id=None, encoder_layerdrop=0.0, decoder_layerdrop=0.0)
MARIAN = BART | dict(pad_token_id=VOCAB - 1, decoder_start_token_id=VOCAB - 1, eos_token_id=0)
WHISPER = {key: value for key, value in BART.items() if key not in ("max_position_embeddings", "forced_eos_token_id")}
WHISPER |= dict(num_mel_bins=8, max_source_positions=10, max_target_positions=32, decoder_start_token_id=1)
WHISPER |= dict(pad_token_id=2, bos_token_id=2, eos_token_id=2, begin_suppress_tokens=None)

MODELS = {
    "t5": ("T5", T5),
    "t5 gated": ("T5", T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "t5 gelu": ("T5", T5 | dict(feed_forward_proj="gelu")),
    "mt5": ("MT5", T5 | dict(feed_forward_proj="gated-gelu")),
    "mt5 silu": ("MT5", T5 | dict(feed_forward_proj="gated-silu")),
    "bart": ("Bart", BART),
    "bart scaled": ("Bart", BART | dict(scale_embedding=True, activation_function="relu")),
    "mbart": ("MBart", BART | dict(decoder_start_token_id=2)),
    "marian": ("Marian", MARIAN | dict(activation_function="swish", scale_embedding=True)),
    "marian apart": ("Marian", MARIAN | dict(share_encoder_decoder_embeddings=False, decoder_vocab_size=VOCAB - 2)),
    "m2m100": ("M2M100", BART),
    "whisper": ("Whisper", WHISPER),
}
MODELS["marian apart"][1].update(pad_token_id=VOCAB - 3, decoder_start_token_id=VOCAB - 3)
SEEDS = {"whisper": 2}
STEPS = 10
UNTIED = ("t5", "mt5", "bart", "m2m100", "whisper")


def make(name: str, tied: bool = True):
    """A random model in which every weight counts: norms that are not 1, biases that are not 0, sources that matter."""
    kind, config = MODELS[name]
    family = next(family for family in FAMILIES.values() if family.__name__ == kind)
    kind = getattr(transformers, family.MODEL)
    torch.manual_seed(SEEDS.get(name, 0))
    made = kind(kind.config_class(**config)).eval()
    if not tied:
        made.get_output_embeddings().weight = torch.nn.Parameter(torch.empty(VOCAB, made.config.d_model))
    with torch.no_grad():
        for key, weight in made.named_parameters():
            if weight.dim() == 1:
                weight.copy_(torch.randn(weight.shape) * 0.3 + (1 if "norm" in key and "weight" in key else 0))
            elif weight.requires_grad:
                spread = 3 if ".encoder_attn.out" in key or ".EncDecAttention.o" in key else 1.5
                spread /= 12**0.5 if key.endswith("Attention.q.weight") else 1  # T5 does not scale its scores
                weight.normal_(std=spread * weight[0].numel() ** -0.5)
        if hasattr(made, "final_logits_bias"):
            made.final_logits_bias.normal_(std=0.5)
        if config is WHISPER:
            made.get_encoder().embed_positions.weight.normal_(std=0.3)
    return made


def source(theirs, rows: int = 6) -> tuple[dict, torch.Tensor, torch.Tensor | None]:
    """What theirs takes, and what ours takes: symbols padded on the right, or a spectrogram."""
    generator = torch.Generator().manual_seed(0)
    config = theirs.config
    if config.model_type == "whisper":
        features = torch.randn(rows, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
        return {"input_features": features}, features, None
    lengths = torch.tensor([9, 4, 7, 1, 8, 5], dtype=torch.int32)[:rows]
    src = torch.randint(3, VOCAB - 3, (rows, 9), generator=generator)
    seen = torch.arange(9) < lengths[:, None]
    src[~seen] = config.pad_token_id
    return {"input_ids": src, "attention_mask": seen.long()}, src, lengths


def logits(theirs, ours: Transformer) -> tuple[torch.Tensor, torch.Tensor]:
    words, src, lengths = source(theirs)
    tgt = torch.randint(3, VOCAB - 3, (6, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return theirs(**words, decoder_input_ids=tgt).logits, ours(src, tgt, lengths)


def assert_close(wanted: torch.Tensor, found: torch.Tensor) -> None:
    """Within 1e-5 of logits that are about 1 in size, and of the largest where they are larger."""
    assert wanted.std() > 0.2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * max(1.0, wanted.abs().max().item()))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_theirs(name):
    theirs = make(name)
    assert_close(*logits(theirs, Transformer.from_huggingface(theirs)))


@pytest.mark.parametrize("name", UNTIED)
def test_a_head_of_its_own_is_taken_over(name):
    theirs = make(name, tied=False)
    ours = Transformer.from_huggingface(theirs)
    assert not ours.config.tied
    assert_close(*logits(theirs, ours))
    assert same_weights(ours.to_huggingface(), theirs)


def same_weights(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", MODELS)
def test_the_way_back_is_exact(name):
    theirs = make(name)
    ours = Transformer.from_huggingface(theirs)
    back = ours.to_huggingface()
    assert type(back) is type(theirs) and not back.training
    assert same_weights(back, theirs)
    assert torch.equal(*(logits(model, ours)[0] for model in (back, theirs)))
    again = Transformer.from_huggingface(back)
    assert again.config == ours.config and same_weights(again, ours)


def trimmed(ids: torch.Tensor, end: int) -> list[list[int]]:
    """Rows up to and with their end: what fills them after it differs."""
    rows = ids.tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def by_theirs(theirs, words: dict, beams: int, **more) -> list[list[int]]:
    # Whisper's own generate adds rules for speech.
    generate = transformers.GenerationMixin.generate
    ids = generate(theirs, **words, max_new_tokens=STEPS, num_beams=beams, do_sample=False, **more)
    return trimmed(ids[:, 1:], theirs.config.eos_token_id)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_generation_is_theirs(name, beams):
    """Random models hardly ever end: what the first row has in the middle becomes the end, so that some rows do."""
    theirs = make(name)
    words, src, lengths = source(theirs)
    end = by_theirs(theirs, words, beams)[0][STEPS // 2]
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = end
    wanted = by_theirs(theirs, words, beams)
    ids = Transformer.from_huggingface(theirs).generate(src, lengths, max_length=STEPS, beams=beams)
    assert trimmed(ids, end) == wanted
    assert any(row[-1] == end for row in wanted) and len({tuple(row) for row in wanted}) > 1
    for row in ids.tolist():
        assert end not in row or set(row[row.index(end) + 1 :]) <= {theirs.config.pad_token_id}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 2.0])
def test_length_penalties_are_theirs(beams, penalty):
    theirs = make("mbart")
    words, src, lengths = source(theirs)
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = by_theirs(theirs, words, beams)[0][3]
    found = Transformer.from_huggingface(theirs).generate(
        src, lengths, max_length=STEPS, beams=beams, length_penalty=penalty
    )
    wanted = by_theirs(theirs, words, beams, length_penalty=penalty)
    assert trimmed(found, theirs.config.eos_token_id) == wanted


@pytest.mark.parametrize("beams", [1, 3])
def test_logits_processors_and_prompts_are_theirs(beams):
    """What BART's published models ask for: a last symbol, a first one, no pair of symbols twice."""
    theirs = make("bart")
    words, src, lengths = source(theirs)
    prompt = torch.tensor([[2, 7]]).repeat(6, 1)
    wanted = by_theirs(
        theirs, words, beams, no_repeat_ngram_size=2, forced_eos_token_id=2, decoder_input_ids=prompt, min_new_tokens=4
    )
    rules = transformers.LogitsProcessorList(
        [
            transformers.NoRepeatNGramLogitsProcessor(2),
            transformers.MinNewTokensLengthLogitsProcessor(2, 4, 2, device="cpu"),
            transformers.ForcedEOSTokenLogitsProcessor(STEPS + 2, 2, device="cpu"),
        ]
    )
    found = Transformer.from_huggingface(theirs).generate(
        src, lengths, max_length=STEPS, beams=beams, prompt=prompt, adjust=rules
    )
    assert [[7, *row] for row in trimmed(found, 2)] == wanted
    assert all(row[-1] == 2 for row in trimmed(found, 2)) and len({tuple(row) for row in wanted}) > 1


def test_a_saved_model_is_read_by_its_path(tmp_path):
    theirs = make("marian")
    theirs.save_pretrained(tmp_path / "theirs")
    for path in (tmp_path / "theirs", str(tmp_path / "theirs")):
        found = Transformer.from_huggingface(path)
        assert same_weights(found, Transformer.from_huggingface(theirs)) and not found.training
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "umt5"}')
    with pytest.raises(ValueError, match="model_type='umt5' is not supported; allowed: t5, mt5, bart"):
        Transformer.from_huggingface(tmp_path / "theirs")


@pytest.mark.parametrize(("name", "tied"), [("t5 gated", True), ("bart", False), ("m2m100", True), ("whisper", True)])
def test_a_converted_model_is_saved_and_loaded(tmp_path, name, tied):
    """Weights with two names, the embeddings, are kept once and are one again."""
    theirs = make(name, tied)
    ours = Transformer.from_huggingface(theirs)
    save(ours, tmp_path)
    back = load(tmp_path)
    assert back.config == ours.config and same_weights(back, ours)
    assert (back.decoder.embedding is back.encoder.embedding) == (name != "whisper")
    assert same_weights(back.to_huggingface(), theirs)
    # so does what is written for the transformers library
    back.to_huggingface().save_pretrained(tmp_path / "theirs")
    again = type(theirs).from_pretrained(tmp_path / "theirs")
    assert torch.equal(*(logits(model, ours)[0] for model in (again, theirs)))


def test_a_folder_that_names_no_family_holds_a_plain_config(tmp_path):
    made = Transformer(Config(src_vocab=5, tgt_vocab=6, d_model=8, nheads=2))
    save(made, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("family") == "Config"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path).config == made.config and same_weights(load(tmp_path), made)


def test_dtype_and_mode_are_taken_over():
    theirs = make("t5").to(torch.bfloat16).train()
    ours = Transformer.from_huggingface(theirs)
    back = ours.to_huggingface()
    assert {weight.dtype for model in (ours, back) for weight in model.parameters()} == {torch.bfloat16}
    assert ours.training and back.training and same_weights(back, theirs)
    theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.float())
    with pytest.raises(ValueError, match="dtypes torch.bfloat16, torch.float32; allowed: one, by model.to"):
        Transformer.from_huggingface(theirs)


def test_what_ours_does_not_say_comes_from_a_config():
    theirs = make("bart")
    theirs.config.forced_bos_token_id = 5
    ours = Transformer.from_huggingface(theirs)
    assert ours.to_huggingface(theirs.config).config.forced_bos_token_id == 5
    other = transformers.BartConfig(**BART | dict(activation_function="relu"))
    with pytest.raises(ValueError, match="the config says Bart.*activation='relu'.* the model is Bart.*'gelu'"):
        ours.to_huggingface(other)


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("t5", dict(layer_norm_epsilon=1e-5), "layer_norm_epsilon=1e-05 is not supported; allowed: 1e-06"),
        ("t5", dict(feed_forward_proj="tanh"), "activation 'tanh' is not supported; allowed: relu, gelu"),
        ("bart", dict(decoder_attention_heads=2), "encoder_attention_heads=3 and decoder_attention_heads=2 differ"),
        ("bart", dict(decoder_ffn_dim=40), "encoder_ffn_dim=36 and decoder_ffn_dim=40 differ: only equal ones"),
        ("bart", dict(eos_token_id=[2, 3]), r"eos_token_id=\[2, 3\] is not supported; allowed: one symbol"),
        ("bart", dict(tie_word_embeddings=False), "weights that have no place in our model: model.shared.weight"),
    ],
)
def test_variants_that_are_not_supported_are_named(name, changes, text):
    kind, config = MODELS[name]
    kind = getattr(transformers, FAMILIES[name].MODEL)
    with pytest.raises(ValueError, match=text):
        Transformer.from_huggingface(kind(kind.config_class(**config | changes)))


def test_models_without_a_counterpart_are_named():
    with pytest.raises(TypeError, match="Linear cannot be converted; allowed: T5ForConditionalGeneration, MT5"):
        Transformer.from_huggingface(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="BartModel cannot be converted"):
        Transformer.from_huggingface(transformers.BartModel(transformers.BartConfig(**BART)))
    with pytest.raises(TypeError, match="a model made from Config has no counterpart there; allowed: T5, MT5, Bart"):
        Transformer(Config(src_vocab=5, tgt_vocab=5)).to_huggingface()


def test_a_model_without_a_begin_symbol_needs_a_prompt():
    theirs = make("mbart")
    theirs.config.decoder_start_token_id = theirs.generation_config.decoder_start_token_id = None
    ours, (_, src, lengths) = Transformer.from_huggingface(theirs), source(theirs)
    with pytest.raises(ValueError, match="this model has no begin symbol: give the first ones, prompt="):
        ours.generate(src, lengths)
    assert ours.generate(src, lengths, max_length=2, prompt=torch.full((6, 1), 4)).shape[0] == 6


def test_positions_of_one_wavelength_are_refused():
    with pytest.raises(ValueError, match="d_model=2 must be at least 4 for these positions"):
        Transformer(FAMILIES["whisper"](src_vocab=8, tgt_vocab=8, d_model=2, nheads=1))


def test_bad_spectrograms_are_named():
    ours = Transformer.from_huggingface(make("whisper"))
    tgt = torch.ones(2, 1, dtype=torch.int64)
    with pytest.raises(TypeError, match="src has dtype torch.int64, expected a floating-point one"):
        ours(torch.ones(2, 8, 20, dtype=torch.int64), tgt)
    with pytest.raises(ValueError, match=r"src has shape \(2, 9, 20\), expected \(batch, 8, frames\)"):
        ours(torch.ones(2, 9, 20), tgt)
    with pytest.raises(ValueError, match="the sequence has 11 positions, fixed positions end at 10"):
        ours(torch.ones(2, 8, 22), tgt)
    with pytest.raises(ValueError, match="the sequence has 33 positions, learned positions end at 32"):
        ours(torch.ones(2, 8, 20), tgt.expand(2, 33))
