"""Residual sums of an accelerated model: that norms take them, and that everything around it goes on working."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from torch import nn

import undivided
from huggingface_pairs import ACCELERATED, BY_NAME, good, pair
from undivided import ops
from undivided.integrations.hf_checkpointing import CHECKPOINTS_CALLS
from undivided.testing.huggingface import compare_gradients, generated, gradients, valid_logits
from undivided.testing.huggingface_models import CORE, FAMILIES, LAYERS

BLOCKS = {
    "t5gemma": ("T5GemmaEncoderLayer", "T5GemmaDecoderLayer"),
    "umt5": ("UMT5Block",),
    "switch": ("SwitchTransformersBlock",),
    "vit": ("ViTLayer",),
    "moonshine": ("MoonshineEncoderLayer", "MoonshineDecoderLayer"),
}
# Sums that a norm of the same layer follows, in a forward pass: one in each layer of an encoder and two in each of a
# decoder, but for the families here. With the norms behind the parts there is a sum for every part.
BEHIND = dict.fromkeys(("bart", "marian", "plbart", "blenderbot-small", "florence2", "bert2bert"), 5 * LAYERS)
ALONE = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "vit"), LAYERS)  # no decoder, or nothing else
NONE = dict.fromkeys(("gemma2", "gpt_oss", "nllb-moe"), 0)
SUMS = {family.name: 3 * LAYERS for family in FAMILIES} | BEHIND | ALONE | NONE | {"bert": 2 * LAYERS}


@pytest.fixture
def sums(monkeypatch):
    """The shapes of the residuals that norms were given."""
    shapes = []

    def spied(norm, place: int):
        def spy(*args, **words):
            if len(args) > place:
                shapes.append(tuple(args[place].shape))
            return norm(*args, **words)

        return spy

    monkeypatch.setattr(ops, "layer_norm", spied(ops.layer_norm, 4))
    monkeypatch.setattr(ops, "rms_norm", spied(ops.rms_norm, 3))
    return shapes


def steps(model, inputs, seed: int = 4):
    torch.manual_seed(seed)
    logits = valid_logits(model, inputs)
    return logits.detach(), gradients(model, logits)


def dropping(model):
    """In training, with a fifth of everything dropped that a module drops; attention drops nothing of its own."""
    for module in model.train().modules():
        if type(module) is nn.Dropout:
            module.p = 0.2
        elif type(module).__name__ in ("UMT5Attention", "SwitchTransformersAttention"):
            module.dropout = 0.0
    return model


def whole(inputs):
    """The same batch without padding, for which eager would draw numbers that we do not."""
    return {name: torch.ones_like(x) if name.endswith("attention_mask") else x for name, x in inputs.items()}


QUICK = (*CORE, *BLOCKS)
ALL = [pytest.param(f.name, marks=() if f.name in QUICK else pytest.mark.slow) for f in FAMILIES]


@pytest.mark.parametrize("name", ALL)
def test_norms_take_the_sums_of_their_layers_until_the_model_is_restored(name, sums):
    inputs, (eager, ours) = BY_NAME[name].inputs(), pair(BY_NAME[name])
    expected = valid_logits(eager, inputs)
    assert not sums
    torch.testing.assert_close(valid_logits(ours, inputs), expected, atol=1e-5, rtol=3e-6)
    assert len(sums) == SUMS[name]
    undivided.restore(ours)
    assert torch.equal(valid_logits(ours, inputs), expected)
    assert len(sums) == SUMS[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_eagers(name, sums):
    inputs = BY_NAME[name].inputs()
    (expected, grads), (got, found) = (steps(model, inputs) for model in pair(BY_NAME[name]))
    assert len(sums) == SUMS[name]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    good(compare_gradients(found, grads))


GENERATING = [name for name in BLOCKS if BY_NAME[name].generates]


@pytest.mark.parametrize("name", GENERATING)
def test_generation_sums_in_the_norms_at_every_step(name, sums):
    (tokens, logits), (got, found) = (generated(m, BY_NAME[name].inputs(), "greedy") for m in pair(BY_NAME[name]))
    assert torch.equal(got, tokens)
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=0)
    assert len(sums) == LAYERS + len(logits) * 2 * LAYERS  # the encoder once


@pytest.mark.parametrize("name", GENERATING)
def test_the_cache_holds_what_eagers_does(name):
    inputs = BY_NAME[name].inputs()
    caches = [model(**inputs).past_key_values for model in pair(BY_NAME[name])]
    parts = [(cache.self_attention_cache, cache.cross_attention_cache) for cache in caches]
    (expected, expected_cross), (own, cross) = ([part.get_seq_length() for part in both] for both in parts)
    assert own == expected > 0 and cross == expected_cross > 0


@pytest.mark.parametrize("name", BLOCKS)
def test_the_report_names_the_layers(name):
    report = undivided.accelerate(BY_NAME[name].build("eager"))
    one = ("ViTLayer", "MoonshineEncoderLayer")
    for block in BLOCKS[name]:
        by = "norm with the residual sum" if block in one else "norms with the residual sum"
        assert report.replaced[block, by] == (LAYERS if len(BLOCKS[name]) == 2 or name == "vit" else 2 * LAYERS)
    assert not any(block in BLOCKS[name] for block, _ in report.left)


@pytest.mark.parametrize("name", BLOCKS)
def test_dropout_stands_where_eagers_does(name, monkeypatch, sums):
    """With torch's dropout, both draw from its generator in the same order. So do Switch's routers, for their noise."""
    monkeypatch.setattr("undivided.integrations.hf_dropout.dropout", torch.nn.functional.dropout)
    inputs = whole(BY_NAME[name].inputs())
    (expected, grads), (got, found) = (steps(dropping(model), inputs) for model in pair(BY_NAME[name]))
    assert len(sums) == SUMS[name]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    good(compare_gradients(found, grads))
    if name != "moonshine":  # which drops nothing
        assert not torch.allclose(expected, valid_logits(ACCELERATED.ours(BY_NAME[name]), inputs), atol=1e-2)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # from 5.23 on
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["t5", "bart", "whisper", *BLOCKS])
def test_checkpointed_layers_run_twice_and_drop_the_same(name, reentrant, sums):
    model, inputs = dropping(ACCELERATED.ours(BY_NAME[name])), BY_NAME[name].inputs()
    expected, grads = steps(model, inputs)
    assert len(sums) == SUMS[name]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=reentrant))
    if reentrant and name != "moonshine":  # whose input is sound, and whose layers have parameters before them
        model.enable_input_require_grads()
    sums.clear()
    got, found = steps(model, inputs)
    assert len(sums) == 2 * SUMS[name]
    assert torch.equal(got, expected)
    good(compare_gradients(found, grads))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_checkpointing_leaves_the_cache_out(sums):
    """Keys that were written twice would be seen twice. Without padding, the cache gets as far as our layers."""
    results = []
    for model in pair(BY_NAME["t5"]):
        model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
        results.append(steps(model, whole(BY_NAME["t5"].inputs()) | dict(past_key_values=cache, use_cache=True)))
        assert cache.get_seq_length() == 0
    (expected, grads), (got, found) = results
    assert len(sums) == 2 * SUMS["t5"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    good(compare_gradients(found, grads))


@pytest.mark.skipif(CHECKPOINTS_CALLS, reason="transformers checkpoints the call of a layer, whatever its forward")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_without_gradients_nothing_is_checkpointed_and_the_cache_stays(sums):
    """As with transformers from 5.24 on; before, it left the cache out here, too."""
    eager, ours = pair(BY_NAME["t5"])
    inputs = whole(BY_NAME["t5"].inputs())
    ours.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
    with torch.no_grad():
        got = ours(**inputs, past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(got, eager.train()(**inputs).logits, atol=1e-5, rtol=0)
    assert cache.get_seq_length() == got.shape[1]
    assert sums


@pytest.mark.parametrize("name", BLOCKS)
def test_hidden_states_and_attention_weights_are_eagers(name):
    inputs = BY_NAME[name].inputs()
    eager, ours = pair(BY_NAME[name])
    found, right = (m(**inputs, output_hidden_states=True, output_attentions=True) for m in (ours, eager))
    sides = ("",) if name == "vit" else ("encoder_", "decoder_")
    for side in sides:
        mask = inputs.get({"encoder_": "attention_mask", "decoder_": "decoder_attention_mask"}.get(side))
        states, weights = f"{side}hidden_states", f"{side}attentions"
        assert len(found[states]) == len(right[states]) == LAYERS + 1
        assert len(found[weights]) == len(right[weights]) == LAYERS
        for got, expected in zip(found[states], right[states], strict=True):
            rows = mask.bool() if mask is not None and mask.shape == got.shape[:2] else ...
            torch.testing.assert_close(got[rows], expected[rows], atol=1e-4, rtol=0)
        for a, b in zip(found[weights], right[weights], strict=True):
            torch.testing.assert_close(a.transpose(1, 2)[rows], b.transpose(1, 2)[rows], atol=1e-5, rtol=0)


def stretch(module, given, out):
    return (out[0] * 1.5, *out[1:]) if isinstance(out, tuple) else out * 1.5


@pytest.mark.parametrize("name", BLOCKS)
def test_hooks_that_come_later_run(name):
    """On every norm, and on the parts of a block, which the fused forward passes by."""
    results = []
    for model in pair(BY_NAME[name]):
        hooked = [m for m in model.modules() if type(m).__name__.endswith(("Norm", "LayerFF", "LayerSelfAttention"))]
        for module in hooked:
            module.register_forward_hook(stretch)
        results.append(valid_logits(model, BY_NAME[name].inputs()))
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
    plain = valid_logits(BY_NAME[name].build("eager"), BY_NAME[name].inputs())
    assert not torch.allclose(results[0], plain, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_compiled_model_gives_the_same(name):
    """Switch's experts are looked up by what a router says: no graph holds a whole model of those."""
    eager, ours = pair(BY_NAME[name])
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=name != "switch", backend="aot_eager")
    inputs = BY_NAME[name].inputs()
    got, expected = valid_logits(compiled, inputs), valid_logits(eager, inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    good(compare_gradients(gradients(ours, got), gradients(eager, expected)))
