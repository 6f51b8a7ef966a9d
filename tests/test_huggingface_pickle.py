"""A model that is accelerated can be saved whole, and what is loaded is accelerated too."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

pytest.importorskip("transformers")

import torch

import undivided
from huggingface_pairs import ACCELERATED, BY_NAME
from undivided.testing.huggingface import counted, valid_logits

NAMES = ["t5", "umt5", "switch", "bart", "mbart", "bert", "llama", "gemma2", "t5gemma", "vit", "moonshine"]
LOAD = """
import sys, torch
model, inputs, expected = torch.load(sys.argv[1], weights_only=False)
torch.testing.assert_close(model(**inputs).logits, expected, atol=0, rtol=0)
"""


def changed(model) -> list[str]:
    """The methods that stand on single modules."""
    return [
        f"{n}.{word}" for n, m in model.named_modules() for word, own in vars(m).items() if hasattr(own, "__func__")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_same_when_it_is_loaded(name, tmp_path):
    family = BY_NAME[name]
    model, inputs = ACCELERATED.ours(family), family.inputs()
    expected, methods = valid_logits(model, inputs), changed(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert changed(loaded) == methods and len(methods) > 5
    assert inspect.signature(loaded.forward) == inspect.signature(type(model).forward.__get__(model))
    undivided.restore(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with counted() as calls:
        assert torch.equal(valid_logits(loaded, inputs), expected)
    assert calls
    undivided.restore(loaded)
    assert changed(loaded) == []
    with counted() as calls:
        torch.testing.assert_close(valid_logits(loaded, inputs), expected, atol=1e-4, rtol=0)
    assert not calls


@pytest.mark.slow
def test_a_new_process_loads_it(tmp_path):
    model, inputs = ACCELERATED.ours(BY_NAME["t5"]), BY_NAME["t5"].inputs()
    torch.save((model, inputs, model(**inputs).logits.detach()), tmp_path / "model.pt")
    subprocess.run([sys.executable, "-c", LOAD, tmp_path / "model.pt"], check=True, timeout=300)
