"""Attention weights reach `output_attentions=True`, whichever way a model asks for them."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
import transformers

import undivided
from huggingface_pairs import BY_NAME, pair
from undivided.testing.huggingface_models import BERT, D_MODEL, VOCABULARY, Family, of, text_left, text_to_text

SMALL = dict(vocab_size=VOCABULARY, num_hidden_layers=2, num_attention_heads=4, attn_pdrop=0.0)


def bert_to_gpt2():
    return transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**BERT), transformers.GPT2Config(n_embd=D_MODEL, add_cross_attention=True, **SMALL)
    )


# These do not hand output_attentions on to their attention, or not to all of it.
FAMILIES = (
    Family("gpt2", "GPT2LMHeadModel", of("GPT2Config", n_embd=D_MODEL, **SMALL), text_left),
    Family("opt", "OPTForCausalLM", of("OPTConfig", hidden_size=D_MODEL, ffn_dim=48, **SMALL), text_left),
    Family("bert2gpt2", "EncoderDecoderModel", bert_to_gpt2, text_to_text),
    BY_NAME["moonshine"],
)
NAMES = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")


@pytest.mark.parametrize("accelerated", [False, True], ids=["register", "accelerate"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_weights_of_models_that_do_not_hand_the_flag_on(family, accelerated):
    inputs = {name: x for name, x in family.inputs().items() if not name.endswith("mask")}
    eager, ours = pair(family, accelerated)
    expected, got = (model(**inputs, output_attentions=True) for model in (eager, ours))
    names = [name for name in NAMES if expected.get(name)]
    assert names
    for name in names:
        assert len(got[name]) == len(expected[name])
        for found, right in zip(got[name], expected[name], strict=True):
            torch.testing.assert_close(found, right, atol=1e-5, rtol=0)


def test_weights_that_the_config_asks_for_keep_the_padding():
    """No layer gets the flag, so that a stack could do without padding."""
    family = BY_NAME["bart"]
    eager, ours = (family.build("eager") for _ in range(2))
    for model in (eager, ours):
        model.config.output_attentions = True
    undivided.accelerate(ours)
    inputs = dict(family.inputs(), use_cache=False)
    expected, got = eager(**inputs), ours(**inputs)
    for name in NAMES[1:]:
        rows = inputs["attention_mask" if name[0] == "e" else "decoder_attention_mask"].bool()
        for found, right in zip(got[name], expected[name], strict=True):
            torch.testing.assert_close(found.transpose(1, 2)[rows], right.transpose(1, 2)[rows], atol=1e-5, rtol=0)


def test_nobody_pays_for_weights_that_are_not_asked_for(monkeypatch):
    monkeypatch.delattr("undivided.integrations.hf_attention.attention_weights")
    ours = pair(FAMILIES[0])[1]
    ours(**FAMILIES[0].inputs())
    with pytest.raises(NameError, match="attention_weights"):
        ours(**FAMILIES[0].inputs(), output_attentions=True)


@pytest.mark.slow
def test_a_graph_has_the_weights():
    family = FAMILIES[0]
    eager, ours = pair(family)
    inputs = {"input_ids": family.inputs()["input_ids"]}
    torch.compiler.reset()
    compiled = torch.compile(ours, backend="aot_eager")
    found, expected = (m(**inputs, output_attentions=True).attentions for m in (compiled, eager))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
