"""The keywords with which transformers' models call attention: ours knows them, or refuses them, or need not look."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch
import transformers

import undivided
from undivided.integrations.hf_attention import undivided_attention
from undivided.integrations.hf_models import UNKNOWN_WORDS
from undivided.integrations.huggingface import NAME, register

# Whose sequences are laid end to end is for flash attention; the mask has it. Our gradients are deterministic.
NEED_NOT_LOOK = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids", "deterministic"}
PICKS_KEYS = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "MiniMaxM3VLModel", "Inkling2Model")


def keywords() -> dict[str, str]:
    """Each keyword of a call of attention_interface in transformers' models, and a file that has it."""
    found = {}
    for path in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        source = path.read_text(encoding="utf-8")
        if "attention_interface(" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "attention_interface":
                found |= {keyword.arg: path.name for keyword in node.keywords if keyword.arg is not None}
    return found


@pytest.mark.slow
def test_every_keyword_of_attention_is_known():
    known = set(inspect.signature(undivided_attention).parameters) | {*UNKNOWN_WORDS} | NEED_NOT_LOOK
    found = keywords()
    assert {"scaling", "dropout", "attention_mask"} <= found.keys()
    assert {word: where for word, where in found.items() if word not in known} == {}


@pytest.mark.parametrize("word", UNKNOWN_WORDS)
def test_a_keyword_that_ours_cannot_follow_is_refused(word):
    q, module = torch.randn(1, 2, 3, 8), torch.nn.Identity()
    with pytest.raises(ValueError, match=f"Identity gives its attention {word}=.*'sdpa' or 'eager'"):
        undivided_attention(module, q, q, q, None, is_causal=True, **{word: torch.zeros(1, 3, 2)})
    undivided_attention(module, q, q, q, None, is_causal=True, **{word: None})


@pytest.mark.parametrize("name", PICKS_KEYS)
def test_a_model_that_picks_keys_is_refused(name):
    model_class = getattr(transformers, name, None)
    if model_class is None:
        pytest.skip(f"this version of transformers has no {name}")
    register()
    with torch.device("meta"), pytest.raises(ValueError, match="gives its attention .*'sdpa' or 'eager'"):
        model_class._from_config(model_class.config_class(), attn_implementation=NAME)


def test_a_loaded_model_that_picks_keys_is_refused():
    if not hasattr(transformers, "DeepseekV32ForCausalLM"):
        pytest.skip("this version of transformers has no DeepSeek-V3.2")
    config = transformers.DeepseekV32Config(num_hidden_layers=1)
    with torch.device("meta"):
        model = transformers.DeepseekV32ForCausalLM._from_config(config, attn_implementation="eager")
    with pytest.raises(ValueError, match="DeepseekV32ForCausalLM gives its attention indices="):
        undivided.accelerate(model)
