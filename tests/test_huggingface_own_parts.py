"""Parts of a model that somebody else wrote or changed run as they are, before `accelerate` and after."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("transformers")

import torch

import undivided
from huggingface_pairs import BY_NAME, pair
from undivided.testing.huggingface import valid_logits

SAME_NAMES = [
    ("t5", "T5LayerNorm", "forward"),
    ("t5", "T5DenseActDense", "forward"),
    ("t5", "ReLU", "forward"),
    ("t5", "T5Attention", "compute_bias"),
    ("t5", "T5LayerFF", "forward"),
    ("t5", "T5Block", "forward"),
    ("bart", "BartEncoderLayer", "forward"),
    ("bart", "GELUActivation", "forward"),
    ("bert", "BertIntermediate", "forward"),
    ("bert", "BertOutput", "forward"),
    ("bert", "BertLayer", "feed_forward_chunk"),
    ("llama", "LlamaMLP", "forward"),
    ("llama", "LlamaDecoderLayer", "forward"),
]


def louder(found):
    return found * 1.5 if isinstance(found, torch.Tensor) else (found[0] * 1.5, *found[1:])


def subclass(kind: type, method: str) -> type:
    """A class of the same name, as in a script of somebody's own or in code that comes with weights."""

    @functools.wraps(getattr(kind, method))  # the same signature: transformers counts its arguments
    def own(self, *args, **kwargs):
        return louder(getattr(kind, method)(self, *args, **kwargs))

    return type(kind.__name__, (kind,), {method: own, "__module__": "modeling_of_somebody"})


@pytest.mark.parametrize(("name", "kind", "method"), SAME_NAMES)
def test_a_class_that_only_has_the_same_name_runs(name, kind, method):
    model, inputs = BY_NAME[name].build("eager"), BY_NAME[name].inputs()
    plain = valid_logits(model, inputs)
    parts = [module for module in model.modules() if type(module).__name__ == kind]
    own = subclass(type(parts[0]), method)
    for part in parts:
        part.__class__ = own
    expected = valid_logits(model, inputs)
    undivided.accelerate(model)
    torch.testing.assert_close(valid_logits(model, inputs), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(plain, expected, atol=1e-3)


ACTIVATIONS = [("t5", "act"), ("bart", "activation_fn"), ("bert", "intermediate_act_fn"), ("llama", "act_fn")]


def inner(model, part):
    return [m for n, m in model.named_modules() if n.endswith(f"DenseReluDense.{part}" if part == "dropout" else part)]


@pytest.mark.parametrize("before", [False, True], ids=["hook", "pre-hook"])
@pytest.mark.parametrize(("name", "part"), [*ACTIVATIONS, ("t5", "dropout")])
def test_hooks_inside_of_a_feed_forward_block_run(name, part, before):
    results, calls = [], []

    def hook(module, given, found=None):
        calls.append(found is None)
        return louder(given if before else found)

    for model in pair(BY_NAME[name]):
        parts = inner(model, part)
        for module in parts:
            (module.register_forward_pre_hook if before else module.register_forward_hook)(hook)
        results.append(valid_logits(model, BY_NAME[name].inputs()))
    assert calls == [before] * 2 * len(parts)
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "part"), ACTIVATIONS)
def test_an_activation_that_somebody_puts_in_later_runs(name, part):
    results = []
    for model in pair(BY_NAME[name]):
        for module in model.modules():
            if hasattr(module, part):
                setattr(module, part, torch.nn.Tanh())
        results.append(valid_logits(model, BY_NAME[name].inputs()))
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)
