"""Decoders that run without their padding: by their mask, or in training by the labels; and when they do not."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("transformers")

import torch
from transformers import DynamicCache, EncoderDecoderCache

import undivided
from huggingface_pairs import BY_NAME, good, pair
from undivided.integrations.hf_masks import Tokens
from undivided.testing.huggingface import compare_gradients, gradients, valid_logits

LENGTHS = torch.tensor([4, 6, 1])
# A bias shared by the layers, and one of each layer; norms behind and in front; positions of its own; sound.
FAMILIES = ["t5", "umt5", "bart", "mbart", "m2m_100", "whisper"]
LAYERS = 2


@pytest.fixture
def taken(monkeypatch):
    """The numbers of rows before and after each time that padding was taken out."""
    sizes, take = [], Tokens.take

    def spy(self, x):
        found = take(self, x)
        sizes.append((x.shape[0] * x.shape[1], found.shape[1]))
        return found

    monkeypatch.setattr(Tokens, "take", spy)
    return sizes


def batch(name, **changes):
    """A batch of the family whose targets are 4, 6 and 1 symbols long."""
    inputs = {word: x for word, x in BY_NAME[name].inputs().items() if not word.startswith("decoder")}
    rows = next(iter(inputs.values())).shape[0]
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, 20, (rows, 6), generator=generator)
    lengths = LENGTHS.repeat(rows)[:rows, None]
    labels = labels.masked_fill(torch.arange(6) >= lengths, -100)
    return {**inputs, "labels": labels, **changes}


def decoder_batch(name):
    inputs = batch(name)
    labels = inputs.pop("labels")
    mask = labels.ne(-100)
    return {**inputs, "decoder_input_ids": labels.masked_fill(~mask, 0), "decoder_attention_mask": mask.long()}


def rows_of(inputs, word="labels"):
    tokens = inputs[word].ne(-100) if word == "labels" else inputs[word].bool()
    return tokens.numel(), int(tokens.sum())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_with_a_mask_runs_without_padding(name, taken):
    eager, ours = pair(BY_NAME[name])
    inputs = dict(decoder_batch(name), use_cache=False)
    logits = valid_logits(ours, inputs)
    assert taken.count(rows_of(inputs, "decoder_attention_mask")) == 1
    expected = valid_logits(eager, inputs)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    good(compare_gradients(gradients(ours, logits), gradients(eager, expected)))
    memory = [sizes for sizes in taken if sizes != rows_of(inputs, "decoder_attention_mask")]
    # Once in the encoder where its mask is ours to see, and in every cross attention.
    assert len(memory) in (LAYERS, LAYERS + 1) and len(set(memory)) == 1


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_training_leaves_out_what_is_behind_the_labels(name, checkpointed, taken):
    losses, grads = [], []
    inputs = batch(name)
    inputs["labels"][1, 2] = -100  # a place without a loss within a row is seen by those behind it
    for model in pair(BY_NAME[name]):
        model.train()
        for module in model.modules():  # M2M100 leaves layers and weights of attention out in training
            for word in ("layerdrop", "dropout"):
                if isinstance(getattr(module, word, None), float):
                    setattr(module, word, 0.0)
        if checkpointed:
            model.gradient_checkpointing_enable(dict(use_reentrant=False))
        taken.clear()
        loss = model(**inputs).loss
        count = taken.count((18, 11)) if len(inputs["labels"]) == 3 else taken.count((12, 10))
        loss.backward()
        losses.append(loss.detach())
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert count == 1
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=0)
    good(compare_gradients(grads[1], grads[0]))


def test_labels_beside_decoder_ids_and_masks(taken):
    """Collators of transformers give both ids and labels; a mask of the caller's own is his."""
    eager, ours = (model.train() for model in pair(BY_NAME["t5"]))
    inputs = batch("t5")
    ids = eager.prepare_decoder_input_ids_from_labels(inputs["labels"])
    for changes in (dict(decoder_input_ids=ids), dict(decoder_attention_mask=torch.ones_like(ids))):
        taken.clear()
        torch.testing.assert_close(ours(**inputs, **changes).loss, eager(**inputs, **changes).loss, atol=1e-5, rtol=0)
        assert ((18, 11) in taken) == ("decoder_input_ids" in changes)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("tokens", [0, 4])
def test_labels_behind_a_prefix_in_the_cache(name, tokens, taken):
    """As in prefix tuning; a cache without tokens is no prefix."""
    losses = []
    for model in pair(BY_NAME[name]):
        config, generator = model.config, torch.Generator().manual_seed(5)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for layer in range(LAYERS if tokens else 0):
            rows, heads = len(LENGTHS), config.num_attention_heads
            keys, values = torch.randn(2, rows, heads, tokens, config.hidden_size // heads, generator=generator)
            cache.self_attention_cache.update(keys, values, layer)
        losses.append(model.train()(**batch(name), past_key_values=cache).loss)
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=0)
    assert ((18, 11) in taken) == (tokens == 0)


def test_rows_without_any_label(taken):
    eager, ours = (model.train() for model in pair(BY_NAME["t5"]))
    inputs = batch("t5")
    inputs["labels"][0] = -100
    torch.testing.assert_close(ours(**inputs).loss, eager(**inputs).loss, atol=1e-5, rtol=0)
    assert (18, 7) in taken
    taken.clear()
    assert ours(**dict(inputs, labels=torch.full_like(inputs["labels"], -100))).loss.isnan()
    assert all(rows != 18 for rows, _ in taken)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_evaluation_gives_the_logits_of_every_place(name, taken):
    eager, ours = pair(BY_NAME[name])
    inputs = batch(name)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(ours(**inputs).logits, eager(**inputs).logits, atol=1e-4, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(ours.train()(**inputs).logits, eager.train()(**inputs).logits, atol=1e-4, rtol=0)
    assert all(rows != 18 for rows, _ in taken)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_cache_that_is_asked_for_has_its_padding(name, taken):
    eager, ours = pair(BY_NAME[name])
    inputs = dict(decoder_batch(name), use_cache=True)
    with torch.no_grad():
        found, right = (model(**inputs).past_key_values for model in (ours, eager))
    mask = inputs["decoder_attention_mask"].bool()[:, None, :, None]
    for a, b in zip(found.self_attention_cache.layers, right.self_attention_cache.layers, strict=True):
        assert a.keys.shape == b.keys.shape
        torch.testing.assert_close(a.keys * mask, b.keys * mask, atol=1e-5, rtol=0)
    assert all(rows != 18 for rows, _ in taken)


def test_padding_stays_where_lengths_do_not_say_what_is_seen(taken):
    """Padding on the left, of either side."""
    eager, ours = pair(BY_NAME["t5"])
    for word in ("attention_mask", "decoder_attention_mask"):
        inputs = dict(decoder_batch("t5"), use_cache=False)
        inputs[word] = inputs[word].flip(1)
        taken.clear()
        torch.testing.assert_close(valid_logits(ours, inputs), valid_logits(eager, inputs), atol=1e-4, rtol=0)
        assert all(rows != 18 for rows, _ in taken), word


def test_a_memory_without_padding(taken):
    eager, ours = pair(BY_NAME["t5"])
    inputs = dict(decoder_batch("t5"), use_cache=False)
    del inputs["attention_mask"]
    torch.testing.assert_close(valid_logits(ours, inputs), valid_logits(eager, inputs), atol=1e-4, rtol=0)
    assert (18, 11) in taken and len([one for one in taken if one[0] == one[1]]) == LAYERS


def test_the_signature_stays_and_comes_back():
    model = BY_NAME["bart"].build("eager")
    words = inspect.signature(model.forward)
    report = undivided.accelerate(model)
    assert "forward" in vars(model) and inspect.signature(model.forward) == words
    assert report.count("training without what is behind the labels") == 1
    undivided.restore(model)
    assert "forward" not in vars(model)
