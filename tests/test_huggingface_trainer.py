"""transformers' Trainer and PEFT on an accelerated model."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("transformers")

import torch
import transformers

import undivided
from huggingface_pairs import BY_NAME, good, pair
from undivided.testing.huggingface import compare_gradients, counted, gradients, valid_logits

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="transformers' Trainer needs accelerate: pip install accelerate",
)
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


class Pairs(torch.utils.data.Dataset):
    """Twelve rows of one length; sources end in padding and labels in -100, by different numbers."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(6)
        self.ids, self.labels = (torch.randint(3, 60, (12, n), generator=draw) for n in (9, 7))
        self.mask = (torch.arange(9) < torch.randint(3, 10, (12, 1), generator=draw)).long()
        self.labels[torch.arange(7) >= torch.randint(2, 8, (12, 1), generator=draw)] = -100

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return dict(input_ids=self.ids[row], attention_mask=self.mask[row], labels=self.labels[row])


def losses(model, folder) -> list[float]:
    """Of six optimizer steps of the Trainer."""
    words = dict(output_dir=str(folder), per_device_train_batch_size=4, num_train_epochs=2, learning_rate=1e-2)
    words |= dict(logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, seed=3)
    trainer = transformers.Trainer(model, transformers.TrainingArguments(**words), train_dataset=Pairs())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@needs_accelerate
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_trainer_finds_the_same_losses(name, tmp_path):
    eager, ours = pair(BY_NAME[name])
    expected = losses(eager, tmp_path)
    with counted() as calls:
        got = losses(ours, tmp_path)
    assert len(got) == 6 and sum(calls.values()) == 6 * 6
    assert expected[-1] < expected[0] - 0.1  # it learns, so that six steps mean something
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), atol=1e-4, rtol=0)


@needs_accelerate
def test_the_trainer_saves_and_loads_an_accelerated_model(tmp_path):
    model = pair(BY_NAME["t5"])[1]
    arguments = transformers.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    transformers.Trainer(model, arguments).save_model(str(tmp_path / "saved"))
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "saved")
    inputs = BY_NAME["t5"].inputs()
    torch.testing.assert_close(valid_logits(again.eval(), inputs), valid_logits(model, inputs), atol=1e-4, rtol=0)


def with_adapters(model, first: bool):
    """LoRA on attention's queries and values and on one feed-forward layer; accelerated before it or after it."""
    import peft

    if first:
        undivided.accelerate(model)
    torch.manual_seed(7)
    config = peft.LoraConfig(r=2, target_modules=["q", "v", "wo"], init_lora_weights=False, lora_dropout=0.0)
    adapted = peft.get_peft_model(model, config).eval()
    if first is False:
        undivided.accelerate(adapted)
    return adapted


@needs_peft
@pytest.mark.parametrize("first", [True, False], ids=["accelerated first", "adapted first"])
def test_lora_trains_and_the_base_stays_as_it_is(first):
    family = BY_NAME["t5"]
    eager = with_adapters(family.build("eager"), first=None)
    ours = with_adapters(family.build("eager"), first)
    inputs, found = family.inputs(), []
    for model in (ours, eager):
        with counted() as calls:
            logits = valid_logits(model, inputs)
        assert sum(calls.values()) == (6 if model is ours else 0)
        found.append((logits, gradients(model, logits)))
    (got, grads), (expected, right) = found
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert grads and all("lora_" in name for name in grads)
    good(compare_gradients(grads, right))

    base = {name: weight.clone() for name, weight in ours.named_parameters() if "lora_" not in name}
    adapters = [weight for name, weight in ours.named_parameters() if "lora_" in name]
    optimizer, curve = torch.optim.AdamW(adapters, lr=1e-2), []
    for _ in range(5):
        loss = ours.train()(**inputs, labels=inputs["decoder_input_ids"]).loss
        curve.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert curve[-1] < curve[0] - 0.05
    assert all(torch.equal(weight, dict(ours.named_parameters())[name]) for name, weight in base.items())


@needs_peft
def test_lora_is_merged_into_an_accelerated_model():
    family = BY_NAME["t5"]
    inputs, adapted = family.inputs(), with_adapters(family.build("eager"), first=True)
    expected = valid_logits(adapted, inputs)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(valid_logits(merged, inputs), expected, atol=1e-4, rtol=0)
