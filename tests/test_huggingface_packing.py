"""Encoders that run without their padding, and when they do not."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("transformers")

import torch
import transformers

import undivided
from huggingface_pairs import BY_NAME, good, pair
from undivided.integrations.hf_masks import KeyMask, Tokens
from undivided.testing.huggingface import compare_gradients, gradients, valid_logits

LENGTHS = torch.tensor([3, 0, 5], dtype=torch.int32)
# RMS norms with a bias; with a bias of each layer; norms behind and in front; lengths of its own
FAMILIES = ["t5", "umt5", "bart", "speech_to_text"]


@pytest.fixture
def packed(monkeypatch):
    """The shapes of what the padding was taken out of."""
    shapes, take = [], Tokens.take

    def spy(self, x):
        shapes.append(tuple(x.shape))
        return take(self, x)

    monkeypatch.setattr(Tokens, "take", spy)
    return shapes


def test_padding_goes_and_comes_back():
    mask = Tokens.of(LENGTHS, 6)
    x = torch.arange(3 * 6 * 2.0).view(3, 6, 2).requires_grad_()
    taken = mask.take(x)
    assert mask.longest == 5 and mask.cu_seqlens.tolist() == [0, 3, 3, 8]
    assert torch.equal(taken, torch.cat([x[0, :3], x[2, :5]])[None])
    back = mask.put_back(taken)
    kept = (torch.arange(6) < LENGTHS[:, None])[..., None]
    assert torch.equal(back, torch.where(kept, x, 0.0))
    back.sum().backward()
    assert torch.equal(x.grad, kept.expand_as(x).float())


def test_only_what_lengths_say_is_packed():
    words = dict(seqlen_q=6, seqlen_k=6, window=(None, None), query_offset=None, key_lengths=LENGTHS, mask=None)
    for window in ((None, None), (None, 0)):
        found = KeyMask(**dict(words, window=window)).packed
        assert found.window == window and found.keys is found.queries
        assert found.keys.rows.tolist() == [0, 1, 2, 12, 13, 14, 15, 16]
    others = dict(query_offset=1, key_lengths=None, mask=torch.ones(3, 1, 1, 6, dtype=torch.bool), seqlen_q=1)
    for name, value in [*others.items(), ("key_lengths", torch.zeros_like(LENGTHS))]:
        assert KeyMask(**dict(words, **{name: value})).packed is None, name


@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_runs_without_padding(name, packed):
    """What comes out at tokens is eager's, what leaves the last block at padding is 0, and gradients are eager's."""
    family = BY_NAME[name]
    eager, ours = pair(family)
    inputs = family.inputs()
    logits = valid_logits(ours, inputs)
    assert len(packed) == 1
    expected = valid_logits(eager, inputs)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    good(compare_gradients(gradients(ours, logits), gradients(eager, expected)))
    if name == "speech_to_text":  # a norm behind its blocks adds its bias, and convolutions shorten the rows
        return
    found, right = (model(**inputs).encoder_last_hidden_state for model in (ours, eager))
    padding = (found == 0).all(-1)
    assert 0 < int(padding.sum()) < padding.numel() // 2
    torch.testing.assert_close(found[~padding], right[~padding], atol=1e-4, rtol=0)


def hook(model):
    model.encoder.block[1].register_forward_hook(lambda module, args, out: None)


def hook_part(model):
    model.encoder.block[1].layer[0].register_forward_hook(lambda module, args, out: None)


def replace_block(model):
    block = model.encoder.block[1]
    block.forward = lambda *args, **kwargs: type(block).forward(block, *args, **kwargs)


def adapt_table(model):
    attention = model.encoder.block[0].layer[0].SelfAttention
    attention.relative_attention_bias.register_forward_hook(lambda module, args, out: None)


@pytest.mark.parametrize("change", [hook, hook_part, replace_block, adapt_table])
def test_padding_stays_where_somebody_looks_in_between(change, packed):
    eager, ours = pair(BY_NAME["t5"])
    change(ours)
    inputs = BY_NAME["t5"].inputs()
    torch.testing.assert_close(valid_logits(ours, inputs), valid_logits(eager, inputs), atol=1e-4, rtol=0)
    assert not packed


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_hidden_states_of_every_layer_have_their_shapes(name, packed):
    family = BY_NAME[name]
    inputs = family.inputs()
    found, right = (m(**inputs, output_hidden_states=True).encoder_hidden_states for m in pair(family)[::-1])
    rows = inputs["attention_mask"].bool()
    assert len(found) == len(right) == 3 and not packed
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a[rows], b[rows], atol=1e-4, rtol=0)


def test_layers_that_may_be_left_out_keep_their_padding(packed):
    family = BY_NAME["bart"]
    model = pair(family)[1]
    model.model.encoder.layerdrop = model.model.decoder.layerdrop = 0.5
    model.train()(**family.inputs())
    assert not packed
    model.eval()(**family.inputs())
    assert len(packed) == 1


def test_a_batch_without_padding_is_taken_as_it_is(packed):
    model = pair(BY_NAME["t5"])[1]
    inputs = BY_NAME["t5"].inputs()
    model(**dict(inputs, attention_mask=torch.ones_like(inputs["attention_mask"])))
    assert not packed


def test_other_attention_chosen_afterwards_gets_its_mask(packed):
    eager, ours = pair(BY_NAME["t5"])
    for module in ours.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = "sdpa"
    inputs = BY_NAME["t5"].inputs()
    torch.testing.assert_close(valid_logits(ours, inputs), valid_logits(eager, inputs), atol=1e-4, rtol=0)
    assert not packed


def test_copies_and_restored_models_know_their_own_encoder(packed):
    eager, ours = pair(BY_NAME["t5"])
    before = vars(eager.encoder.block[0]).keys()
    twin = copy.deepcopy(ours)
    stack = vars(twin.encoder.block[0])["_undivided_stack"]
    assert stack.module is twin.encoder and stack.blocks == list(twin.encoder.block)
    undivided.restore(ours)
    assert vars(ours.encoder.block[0]).keys() == before
    inputs = BY_NAME["t5"].inputs()
    torch.testing.assert_close(valid_logits(twin, inputs), valid_logits(eager, inputs), atol=1e-4, rtol=0)
    assert len(packed) == 1


def test_the_report_names_an_encoder_that_keeps_its_padding():
    model = BY_NAME["t5"].build("eager")
    block = model.encoder.block[1]
    block.forward = lambda *args, **kwargs: type(block).forward(block, *args, **kwargs)
    report = undivided.accelerate(model)
    assert report.left["T5Stack", "not all of its blocks were replaced"] == 1
    assert report.count("stack without padding") == 1  # the decoder


def test_dropout_falls_on_tokens_alone(packed):
    """Training draws numbers for what there is; the same seed gives the same again."""
    config = BY_NAME["t5"].config()
    config.dropout_rate = 0.2
    model = transformers.T5ForConditionalGeneration._from_config(config, attn_implementation="eager").train()
    undivided.accelerate(model)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        packed.clear()
        found.append(valid_logits(model, BY_NAME["t5"].inputs()))
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2], atol=1e-3)
    assert len(packed) == 2 + 2  # both stacks, and the memory in both layers of the decoder
