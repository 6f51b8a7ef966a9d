"""What a training is made of: batches, schedule, loss and settings."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trainer_runs import VOCABULARY, pairs
from undivided.tasks import N_TO_M, Vocabulary
from undivided.training.batches import Batches, Examples
from undivided.training.gradients import input_gradients
from undivided.training.loss import token_loss
from undivided.training.models import METADATA, build, load_model
from undivided.training.schedule import Budget, Schedule
from undivided.training.settings import Settings, choose_device, choose_dtype
from undivided.training.shapes import SHAPES


def test_an_epoch_has_every_pair_once_in_batches_of_like_length() -> None:
    examples = Examples(pairs(1000), "cpu")
    batches = Batches(examples, 16, seed=3)
    order = batches.order(0)
    assert sorted(torch.cat(order).tolist()) == list(range(1000)) and len(order) == len(batches) == 63
    taken = [examples.batch(rows) for rows in order]
    real = sum(int(batch.src_lengths.sum()) for batch in taken)
    assert real / sum(batch.src.numel() for batch in taken) > 0.9
    assert [rows.tolist() for rows in batches.order(1)] != [rows.tolist() for rows in order]


def test_targets_are_the_inputs_moved_by_one() -> None:
    batch = Examples([([3, 4], [5, 6, 7]), ([3], [8])], "cpu").batch(torch.tensor([0, 1]))
    assert batch.src.tolist() == [[3, 4], [3, 0]] and batch.src_lengths.tolist() == [2, 1]
    assert batch.tgt[0].tolist() == [1, 5, 6, 7] and batch.targets[0].tolist() == [5, 6, 7, 2]
    assert batch.targets[1].tolist() == [8, 2, 0, 0] and batch.tgt_lengths.tolist() == [4, 2] and batch.tokens == 6


def test_labels_are_targets_as_they_are_and_words_may_have_several_numbers() -> None:
    rows = [([(3, 7), (4, 8)], [5, 6]), ([(3, 9)], [8])]
    batch = Examples(rows, "cpu", shifted=False).batch(torch.tensor([1, 0]))
    assert batch.src.tolist() == [[[3, 9], [0, 0]], [[3, 7], [4, 8]]] and batch.src_lengths.tolist() == [1, 2]
    assert batch.targets.tolist() == [[8, 0], [5, 6]] and batch.tgt_lengths.tolist() == [1, 2] and batch.tokens == 3


def test_the_order_depends_on_seed_and_epoch_and_can_be_taken_up_anywhere() -> None:
    examples = Examples(pairs(), "cpu")
    whole = Batches(examples, 32, seed=5)
    taken = [next(whole).src for _ in range(25)]
    first = Batches(examples, 32, seed=5)
    for _ in range(13):
        next(first)
    second = Batches(examples, 32, seed=5)
    second.restore(first.position())
    assert all(torch.equal(next(second).src, wanted) for wanted in taken[13:])
    assert Batches(examples, 32, seed=6).order(0)[0].tolist() != Batches(examples, 32, seed=5).order(0)[0].tolist()
    with pytest.raises(ValueError, match="batch 99 of an epoch of 10"):
        second.restore({"epoch": 0, "index": 99})


def test_empty_data_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        Examples([], "cpu")
    with pytest.raises(ValueError, match="source 1 is empty"):
        Examples([([3], [4]), ([], [4])], "cpu")


def test_the_rate_warms_up_and_falls_to_the_floor() -> None:
    schedule = Schedule(peak=2.0, warmup=0.1, floor=0.25)
    assert schedule.rate(0.05) == pytest.approx(1.0) and schedule.rate(0.1) == pytest.approx(2.0)
    assert schedule.rate(0.55) == pytest.approx(2.0 * (0.25 + 0.75 * 0.5)) and schedule.rate(1.0) == pytest.approx(0.5)
    assert schedule.rate(0.0) > 0
    assert Schedule(1.0, warmup=0.0).rate(0.0) == 1.0
    with pytest.raises(ValueError, match="warmup=1"):
        Schedule(1.0, warmup=1.0)
    with pytest.raises(ValueError, match="lr=0"):
        Schedule(0.0)


def test_the_rate_may_fall_with_the_inverse_square_root() -> None:
    schedule = Settings("g2p", steps=1, lr=2.0, warmup=0.04, floor=0.3, lr_decay="inverse-sqrt").schedule
    assert schedule.rate(0.02) == pytest.approx(1.0) and schedule.rate(0.04) == pytest.approx(2.0)
    assert schedule.rate(0.16) == pytest.approx(1.0) and schedule.rate(1.0) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="warmup=0 must be above 0"):
        Settings("g2p", steps=1, warmup=0, lr_decay="inverse-sqrt")
    with pytest.raises(ValueError, match="lr_decay='linear' is unknown; allowed: cosine, inverse-sqrt"):
        Settings("g2p", steps=1, lr_decay="linear")


def test_a_budget_is_steps_or_minutes() -> None:
    assert Budget(steps=10).fraction(5, 1e9) == 0.5 and Budget(minutes=2).fraction(10**9, 30) == 0.25
    assert Budget(minutes=1).fraction(0, 90) == 1.0
    for steps, minutes in ((None, None), (1, 1.0), (0, None), (None, -1.0)):
        with pytest.raises(ValueError, match=f"given steps={steps}, minutes={minutes}"):
            Budget(steps, minutes)


def test_padding_adds_nothing_to_the_loss() -> None:
    batch = Examples([([3, 4], [5, 6, 7]), ([3], [8])], "cpu").batch(torch.tensor([0, 1]))
    logits = torch.randn(2, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    expected = -sum(
        logits[row, column].log_softmax(-1)[symbol]
        for row, column, symbol in ((0, 0, 5), (0, 1, 6), (0, 2, 7), (0, 3, 2), (1, 0, 8), (1, 1, 2))
    )
    assert torch.allclose(token_loss(logits, batch), expected / 6)
    logits[1, 2:] = 1e9
    logits.requires_grad_()
    loss = token_loss(logits, batch, label_smoothing=0.1)
    loss.backward()
    assert float(loss.detach()) < 10 and bool((logits.grad[1, 2:] == 0).all())


def test_label_smoothing_spreads_its_part_over_all_symbols() -> None:
    batch = Examples([([3, 4], [5, 6, 7]), ([3], [8])], "cpu").batch(torch.tensor([0, 1]))
    logits = torch.randn(2, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    log_p, inside = logits.log_softmax(-1), batch.targets > 0
    right = log_p.gather(-1, batch.targets[..., None])[..., 0][inside].mean()
    wanted = -(0.7 * right + 0.3 * log_p.mean(-1)[inside].mean())
    torch.testing.assert_close(token_loss(logits, batch, label_smoothing=0.3), wanted)


def test_input_gradients_are_the_encoders_where_the_decoder_shares_its_embedding() -> None:
    symbols = Vocabulary(tuple("abcdef"))
    sizes = {"d_model": 8, "nheads": 2, "d_ff": 8, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
    batch = Examples([([3, 4], [5, 6, 7]), ([3], [8])], "cpu").batch(torch.tensor([0, 1]))
    shared, own = (
        build("transformer", N_TO_M, symbols, symbols, {**sizes, "shared_embedding": one}) for one in (True, False)
    )
    own.load_state_dict(shared.state_dict())
    found, wanted = (input_gradients(model, SHAPES[N_TO_M], batch) for model in (shared, own))
    assert found.shape == (2,) and bool((found > 0).all())
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"batch_tokens": 0}, "batch_tokens=0 must be at least 1"),
        ({"checkpoint_steps": 0}, "checkpoint_steps=0 must be at least 1"),
        ({"batches": "loose"}, "batches='loose' is unknown; allowed: padded, packed"),
        ({"parallel": "pipeline"}, "parallel='pipeline' is unknown; allowed: ddp, fsdp"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"dtype": "int8"}, "dtype='int8' is unknown; allowed: float32, bfloat16$"),
        ({"dtype": "float16"}, "loss scaling"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"clip": math.nan}, "clip=nan must be at least 0"),
        ({"lr": math.nan}, "lr=nan must be positive and finite"),
        ({"lr": math.inf}, "lr=inf must be positive and finite"),
        ({"steps": None, "minutes": math.nan}, "the budget must be positive and finite; given steps=None, minutes=nan"),
        ({"weight_decay": math.nan}, "weight_decay=nan must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        ({"weight_decay": math.inf}, "weight_decay=inf must be finite"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds=-1.0 must be at least 0"),
        ({"checkpoint_seconds": math.nan}, "checkpoint_seconds=nan must be at least 0"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be at least -.* and at most 18446744073709551615"),
        ({"batch_size": 10**18}, "batch_size=1000000000000000000 must be at least 1 and at most 2147483647"),
        ({"batch_tokens": 10**18}, "batch_tokens=1000000000000000000 must be at least 1 and at most 2147483647"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Settings(**{"task": "g2p", "steps": 1, **changes})


def test_settings_survive_a_checkpoint_and_unknown_ones_are_refused() -> None:
    settings = Settings("g2p", minutes=2.0, model_options={"d_model": 64})
    assert Settings.from_dict(settings.to_dict()) == settings
    with pytest.raises(ValueError, match="unknown settings colour"):
        Settings.from_dict({**settings.to_dict(), "colour": 1})


def test_device_and_dtype_follow_the_machine() -> None:
    assert choose_device("cpu") == "cpu" and choose_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_dtype("auto", "cpu") == "float32" and choose_dtype("auto", "cuda:0") == "bfloat16"
    assert choose_dtype("float32", "cuda") == "float32"
    with pytest.raises(ValueError, match="device='abacus' is unknown"):
        choose_device("abacus")
    with pytest.raises(ValueError, match="is not there"):
        choose_device(f"cuda:{torch.cuda.device_count()}")


def header(**changes: Any) -> str:
    """What is written about a model, with some of it replaced; None takes it away."""
    sizes = {"d_model": 8, "nheads": 2, "d_ff": 8, "encoder_layers": 1, "decoder_layers": 1}
    whole = {"kind": "transformer", "task": "g2p", "config": sizes, "source": ["a"], "target": ["b"], "about": {}}
    return json.dumps({name: value for name, value in (whole | changes).items() if value is not None})


@pytest.mark.parametrize(
    ("about", "text"),
    [
        (header(source=None), "KeyError: 'source'"),
        (header(source=3), "TypeError"),
        (header(task="poetry"), "no task is called 'poetry'"),
        (header(kind="gru", config=[]), "AttributeError"),
        (header()[:-9], "JSONDecodeError"),
        ("[]", "TypeError"),
        (header(), "RuntimeError: .* Missing key"),
    ],
)
def test_a_damaged_model_file_is_named_in_one_line(about: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {METADATA: about})
    with pytest.raises(ValueError, match=f"best.safetensors does not hold a model .*{text}") as raised:
        load_model(path)
    assert "\n" not in str(raised.value)
