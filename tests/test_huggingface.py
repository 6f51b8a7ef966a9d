"""transformers' models on our attention and accelerated, against their eager attention, family by family."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import transformers

import undivided
from huggingface_pairs import ACCELERATED, BY_NAME, good
from rows import DEVICE
from undivided import cli
from undivided.integrations.huggingface import NAME, register
from undivided.rules import TRITON_MISSING
from undivided.testing.huggingface import (
    GENERATIONS,
    Place,
    bfloat16,
    forward_backward,
    generation,
)
from undivided.testing.huggingface_models import CORE, FAMILIES, REFUSED

GENERATING = tuple(family for family in FAMILIES if family.generates)


def cases(families=FAMILIES) -> list:
    """The core families in the quick run, the others in the slow one."""
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(family, id=family.name, marks=marks[family.name in CORE]) for family in families]


@pytest.mark.parametrize("family", cases())
def test_our_attention_gives_eagers_logits_and_gradients(family):
    good(forward_backward(family, Place()))


@pytest.mark.parametrize("family", cases())
def test_an_accelerated_model_gives_eagers_logits_and_gradients(family):
    good(forward_backward(family, ACCELERATED))


@pytest.mark.parametrize("family", cases())
def test_bfloat16_is_as_good_as_eagers(family):
    good(bfloat16(family, ACCELERATED))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_bfloat16_on_our_attention_alone_is_as_good_as_eagers(family):
    good(bfloat16(family, Place()))


@pytest.mark.parametrize("kind", GENERATIONS)
@pytest.mark.parametrize("family", cases(GENERATING))
def test_an_accelerated_model_generates_eagers_tokens(family, kind):
    good(generation(family, ACCELERATED, kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", GENERATIONS)
@pytest.mark.parametrize("family", GENERATING, ids=lambda family: family.name)
def test_our_attention_alone_generates_eagers_tokens(family, kind):
    good(generation(family, Place(), kind))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n.startswith(("LED", "FSMT")) else pytest.mark.slow) for n in REFUSED]
)
def test_a_model_that_never_calls_attention_is_refused(name):
    register()
    model_class = getattr(transformers, name)
    with pytest.raises(ValueError, match=f"{name[:4]}.* computes its attention itself and never calls"):
        model_class._from_config(REFUSED[name](), attn_implementation=NAME)
    model = model_class._from_config(REFUSED[name](), attn_implementation="eager")
    with pytest.raises(ValueError, match="never calls transformers' attention interface"):
        undivided.accelerate(model)


VISION = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=16)
SAM = dict(vision_config=dict(VISION, patch_size=4, output_channels=32), prompt_encoder_config=dict(hidden_size=32))
TABLES = {
    "GitModel": ("GitConfig", dict(VISION, vision_config=dict(VISION, patch_size=4))),
    "SamModel": ("SamConfig", dict(SAM, mask_decoder_config=dict(hidden_size=32))),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_model_that_takes_attention_from_a_table_is_refused_when_it_is_made(name):
    register()
    config, words = TABLES[name]
    with pytest.raises(ValueError, match="from a table by name, which has no 'undivided'.*accelerate"):
        getattr(transformers, name)._from_config(getattr(transformers, config)(**words), attn_implementation=NAME)
    model = getattr(transformers, name)._from_config(getattr(transformers, config)(**words))
    assert undivided.accelerate(model).count("linear layer") > 0


def test_the_other_parts_of_a_model_with_a_table_are_not_refused():
    from undivided.integrations.hf_models import table_objection

    for model_class in (transformers.SamModel, transformers.GitForCausalLM):  # the models inside are asked themselves
        assert table_objection(model_class) is None
    assert "GitModel takes" in table_objection(transformers.GitModel)


@pytest.mark.slow
def test_a_part_that_never_calls_attention_is_left_and_named():
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48),
        transformers.TrOCRConfig(vocab_size=64, d_model=32, decoder_layers=1, decoder_attention_heads=4),
    )
    model = transformers.VisionEncoderDecoderModel._from_config(config, attn_implementation="eager")
    report = undivided.accelerate(model)
    assert report.replaced["ViTAttention", "attention"] == 1
    assert any(name == "TrOCRForCausalLM" and "never calls" in why for name, why in report.left)
    assert model.decoder.config._attn_implementation == "eager"


@pytest.mark.slow
@pytest.mark.skipif(TRITON_MISSING is not None, reason="needs Triton")
@pytest.mark.parametrize("name", ["t5", "bart", "gpt_oss", "gemma2"])
def test_the_triton_kernels_give_the_same(name, monkeypatch):
    """In Triton's interpreter where there is no GPU, with masks as a GPU gets them."""
    monkeypatch.setattr("undivided.integrations.hf_masks.readable", lambda value: False)
    try:
        good(forward_backward(BY_NAME[name], Place(device=DEVICE.type, backend="triton", accelerated=True)))
    finally:
        register()


def verify(monkeypatch, capsys) -> tuple[int, str]:
    monkeypatch.setattr("undivided.testing.huggingface_models.CORE", ("bert",))
    code = cli.main(["verify", "--integrations", "--quick", "--device", "cpu"])
    return code, capsys.readouterr().out


def test_verify_prints_the_matrix(monkeypatch, capsys):
    code, printed = verify(monkeypatch, capsys)
    assert code == 0
    assert "4 passed, 0 failed" in printed
    assert [line.split() for line in printed.splitlines() if line.startswith("bert ")][-1] == ["bert"] + ["ok"] * 4


def test_verify_fails_where_padding_is_lost(monkeypatch, capsys):
    monkeypatch.setattr("undivided.integrations.hf_masks.padding_words", lambda *given: (None, None))
    code, printed = verify(monkeypatch, capsys)
    assert code == 1
    assert "0 passed, 4 failed" in printed


def test_verify_takes_no_op_beside_models(capsys):
    assert cli.main(["verify", "--integrations", "--op", "attention"]) == 2
    assert "--op attention has no meaning beside it" in capsys.readouterr().err
