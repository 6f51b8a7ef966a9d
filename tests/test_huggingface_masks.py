"""What a call of transformers' attention function means: masks, caches, weights, and what is refused."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("transformers")

import torch
import transformers

import undivided
from huggingface_pairs import BY_NAME, T5_FAMILY, good, pair
from undivided.integrations.hf_attention import undivided_attention
from undivided.integrations.huggingface import register
from undivided.testing.huggingface import (
    Place,
    compare_gradients,
    valid_logits,
)
from undivided.testing.huggingface_models import Family, of, text_left


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_mask_of_the_callers_own_is_taken_as_it_is(name, dtype):
    """(batch, 1, seqlen_q, seqlen_k), with holes that no padding has."""
    family = BY_NAME[name]
    eager, ours = pair(family)
    inputs = family.inputs()
    batch, length = inputs["input_ids"].shape
    seen = torch.rand(batch, 1, length, length, generator=torch.Generator().manual_seed(2)) > 0.4
    seen |= torch.eye(length, dtype=torch.bool)
    added = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    inputs["attention_mask"] = added
    if name == "t5":  # for cross attention the same 4-D mask would not fit
        encode = lambda model, mask: model.encoder(inputs["input_ids"], attention_mask=mask).last_hidden_state  # noqa: E731
        got, expected = encode(ours, seen if dtype == torch.bool else added), encode(eager, added)
    else:
        got = ours(inputs["input_ids"], attention_mask=seen if dtype == torch.bool else added).logits
        expected = eager(**inputs).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_padding_on_the_left_and_holes_reach_the_encoder():
    eager, ours = pair(T5_FAMILY)
    inputs = T5_FAMILY.inputs()
    mask = inputs["attention_mask"].flip(1)
    mask[0, 4] = 0
    got, expected = (m(**dict(inputs, attention_mask=mask)).logits for m in (ours, eager))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float_mask_hides_what_the_bool_mask_hides(dtype, looks, monkeypatch):
    """In the rows of padding on the left, too, which see no key: out and gradients are 0 there."""
    if not looks:
        monkeypatch.setattr("undivided.integrations.hf_attention.readable", lambda value: False)
    seen = torch.ones(7, 7, dtype=torch.bool).tril() & (torch.arange(7) >= torch.tensor([[0], [3]]))[:, None, None]
    given = torch.randn(4, 2, 2, 7, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for mask in (seen, torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)):
        q, k, v = (x.clone().requires_grad_() for x in given[:3])
        out, _ = undivided_attention(Module(), q, k, v, mask)
        results.append((out, *torch.autograd.grad(out, (q, k, v), given[3].transpose(1, 2))))
    torch.testing.assert_close(results[1], results[0])
    assert not results[1][0][1, :3].any() and not results[1][1][1, :, :3].any()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_a_batch_padded_on_the_left_trains_where_masks_are_floats(name):
    """The rows of padding have no labels, and neither has the first token, which the last of them predicts."""
    model, words = {"gpt2": ("GPT2", dict(attn_pdrop=0.0)), "gpt_neox": ("GPTNeoX", dict(intermediate_size=48))}[name]
    config = of(f"{model}Config", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **words)
    family = Family(name, f"{model}ForCausalLM" if name == "gpt_neox" else f"{model}LMHeadModel", config, text_left)
    inputs, found, blind = family.inputs(), [], []
    mask = inputs["attention_mask"].bool()
    labels = inputs["input_ids"].masked_fill(~mask | (mask.cumsum(1) == 1), -100)
    eager, ours = pair(family)
    layer = ours.transformer.h[1].attn.c_proj if name == "gpt2" else ours.gpt_neox.layers[1].attention.dense
    layer.register_forward_pre_hook(lambda module, given: blind.append(given[0][~mask]))
    for model in (eager, ours):
        model(**inputs, labels=labels).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    good(compare_gradients(found[1], found[0]))
    assert len(blind[0]) > 0 and not blind[0].any()


def test_without_a_look_at_the_padding_the_result_is_the_same(monkeypatch):
    """As on a GPU, where a look would wait for the device."""
    family = BY_NAME["llama"]
    eager, ours = pair(family, accelerated=False)
    monkeypatch.setattr("undivided.integrations.hf_masks.readable", lambda value: False)
    inputs = family.inputs()
    torch.testing.assert_close(valid_logits(ours, inputs), valid_logits(eager, inputs), atol=1e-4, rtol=0)


def test_sequences_laid_end_to_end_do_not_see_each_other():
    """Positions that start again: transformers then asks for a mask that no window says."""
    family = BY_NAME["llama"]
    eager, ours = pair(family, accelerated=False)
    ids = torch.arange(3, 14)[None]
    positions = torch.cat((torch.arange(6), torch.arange(5)))[None]
    got, expected = (m(input_ids=ids, position_ids=positions).logits for m in (ours, eager))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(expected, eager(input_ids=ids).logits, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_several_tokens_are_added_to_a_cache_at_once(name):
    family = BY_NAME[name]
    eager, ours = pair(family, accelerated=False)
    ids = torch.randint(3, 64, (2, 13), generator=torch.Generator().manual_seed(7))
    results = []
    for model in (ours, eager):
        first = model(input_ids=ids[:, :6], use_cache=True)
        results.append(model(input_ids=ids[:, 6:], past_key_values=first.past_key_values).logits)
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
    whole = eager(input_ids=ids).logits[:, 6:]
    torch.testing.assert_close(results[0], whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("accelerated", [False, True], ids=["register", "accelerate"])
def test_attention_weights_are_real(accelerated):
    eager, ours = pair(T5_FAMILY, accelerated)
    inputs = T5_FAMILY.inputs()
    got, expected = (m(**inputs, output_attentions=True) for m in (ours, eager))
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        found, right = getattr(got, name), getattr(expected, name)
        assert len(found) == len(right) == 2
        rows = inputs["decoder_attention_mask" if name[0] != "e" else "attention_mask"].bool()
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a.transpose(1, 2)[rows], b.transpose(1, 2)[rows], atol=1e-5, rtol=0)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-4, rtol=0)


def test_windows_are_read_off_transformers_functions():
    from transformers import masking_utils as theirs

    from undivided.integrations.hf_masks import window_of

    sliding, both = theirs.sliding_window_causal_mask_function, theirs.sliding_window_bidirectional_mask_function
    assert window_of(theirs.causal_mask_function, None) == (None, 0)
    assert window_of(theirs.bidirectional_mask_function, None) == (None, None)
    assert window_of(sliding(4), 4) == (3, 0)  # the query itself and three before it
    assert window_of(both(4), 4) == (4, 4)
    chunked = theirs.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.int64))
    joined = theirs.and_masks(sliding(4), theirs.padding_mask_function(torch.ones(2, 9, dtype=torch.bool)))
    either = theirs.or_masks(theirs.causal_mask_function, theirs.bidirectional_mask_function)
    for other in (chunked, joined, either, sliding(5), both(5), lambda *places: True):
        assert window_of(other, 4) is None


def test_a_model_that_uses_its_mask_fails_with_a_sentence():
    from undivided.integrations.hf_masks import undivided_mask

    config = transformers.LlamaConfig()
    mask = undivided_mask(2, 3, 3, config=config)
    with pytest.raises(RuntimeError, match="gives its attention mask to torch's add.*load the model with"):
        torch.zeros(3) + mask
    with pytest.raises(AttributeError, match="reads .shape of its attention mask"):
        mask.shape  # noqa: B018
    with pytest.raises(ValueError, match="made for seqlen_q 3 and seqlen_k 3, attention is called with 3 and 4"):
        mask.words(3, 4, torch.device("cpu"))


class Module(torch.nn.Module):
    is_causal = True


def test_a_call_that_cannot_be_understood_is_refused():
    from undivided.integrations.hf_attention import undivided_attention as attend

    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    with pytest.raises(ValueError, match="Module is causal but gives no mask for seqlen_q 3 and seqlen_k 5"):
        attend(Module(), q, k, k, None)
    with pytest.raises(ValueError, match="sliding_window=4 but gives no mask for 5 keys"):
        attend(Module(), k, k, k, None, sliding_window=4)
    with pytest.raises(ValueError, match="Linear gives neither a mask nor is_causal"):
        attend(torch.nn.Linear(1, 1), q, k, k, None)
    with pytest.raises(TypeError, match="mask is of torch.int64; allowed: a bool mask"):
        attend(Module(), q, k, k, torch.ones(1, 1, 3, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="no paged cache"):
        attend(Module(), q, k, k, None, cache=object())


def test_another_version_of_transformers_is_refused(monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.25.0")  # transformers replaces its module as it likes
    with pytest.raises(ImportError, match=r"transformers 5.25.0 is installed, transformers 5.15 to 5.24 is supported"):
        register()


def test_without_transformers_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for call in (register, undivided.accelerate, undivided.restore):
        given = () if call is register else (torch.nn.Linear(1, 1),)
        with pytest.raises(
            ImportError, match=r"needs transformers 5.15 to 5.24; pip install 'undivided\[huggingface\]'"
        ):
            call(*given)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend='gpu' is unknown; allowed: auto"):
        register("gpu")


def test_the_backend_that_is_asked_for_is_obeyed():
    try:
        model = Place(backend="reference").ours(T5_FAMILY)
        model(**T5_FAMILY.inputs())
        register("cuda")
        with pytest.raises(undivided.BackendRefused, match="backend='cuda' does not run this call"):
            model(**T5_FAMILY.inputs())
    finally:
        register()


def test_dropout_drops_what_the_seed_says():
    from undivided.integrations.hf_attention import undivided_attention as attend

    q, module = torch.randn(2, 4, 9, 8), Module().train()
    torch.manual_seed(5)
    got, _ = attend(module, q, q, q, None, dropout=0.3)
    torch.manual_seed(5)
    seed, turned = int(torch.randint(2**62, ())), q.transpose(1, 2)
    expected = undivided.reference.attention(turned, turned, turned, causal=True, dropout_p=0.3, seed=seed)
    torch.testing.assert_close(got, expected)
    quiet, _ = attend(module.eval(), q, q, q, None, dropout=0.3)
    torch.testing.assert_close(quiet, undivided.reference.attention(turned, turned, turned, causal=True))
