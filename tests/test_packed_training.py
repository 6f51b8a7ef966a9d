"""Packed and token-budget batches: what is in them, and that a training does not notice the difference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dying_worker import write_digits
from small_trainings import BROKEN_AT, UPDATES, assert_same_log, make, records, run
from undivided.cli import main
from undivided.tasks import N_TO_1, N_TO_M, N_TO_N
from undivided.training.batches import Batches, Examples
from undivided.training.checkpoint import LAST, load_training
from undivided.training.gradients import input_gradients
from undivided.training.shapes import SHAPES
from undivided.training.world import World


def examples(shifted: bool = True, count: int = 200) -> Examples:
    generator = torch.Generator().manual_seed(2)
    sizes = torch.randint(1, 12, (count, 2), generator=generator).tolist()
    rows = [tuple(torch.randint(3, 9, (size,), generator=generator).tolist() for size in both) for both in sizes]
    return Examples(rows, "cpu", shifted)


def test_a_packed_batch_has_the_rows_of_the_padded_one() -> None:
    made, rows = examples(), torch.tensor([5, 0, 199, 17])
    padded, packed = made.batch(rows), made.packed(rows)
    for whole, lengths, joined, packing in (
        (padded.src, padded.src_lengths, packed.src, packed.src_lengths),
        (padded.tgt, padded.tgt_lengths, packed.tgt, packed.tgt_lengths),
        (padded.targets, padded.tgt_lengths, packed.targets, packed.tgt_lengths),
    ):
        inside = torch.arange(whole.shape[1]) < lengths[:, None]
        assert joined.tolist() == [whole[inside].tolist()]
        assert packing.cu_seqlens.diff().tolist() == lengths.tolist() and packing.cu_seqlens.dtype == torch.int32
        assert packing.positions.tolist() == [n for length in lengths.tolist() for n in range(length)]
        assert packing.longest == int(lengths.max())
    assert packed.tokens == packed.all_tokens == padded.tokens == int(padded.tgt_lengths.sum())


def test_packed_labels_and_spelled_words() -> None:
    rows = [([(3, 7), (4, 8)], [5, 6]), ([(3, 9)], [8])]
    batch = Examples(rows, "cpu", shifted=False).packed(torch.tensor([1, 0]))
    assert batch.src.tolist() == [[[3, 9], [3, 7], [4, 8]]] and batch.src_lengths.cu_seqlens.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [[8, 5, 6]] and batch.tokens == 3


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_budget_of_symbols_is_kept_and_nearly_used(packed: bool, shifted: bool) -> None:
    made = examples(shifted)
    batches = Batches(made, 16, 3, batch_tokens=80, packed=packed)
    order = batches.order(0)
    assert sorted(torch.cat(order).tolist()) == list(range(200)) and len(order) == len(batches)
    sizes = []
    for rows in order:
        batch = next(batches)
        sizes.append(batch.src.numel() + batch.tgt.numel())
        assert len(rows) == (len(batch.src_lengths.cu_seqlens) - 1 if packed else len(batch.src))
    assert max(sizes) <= 80 and sum(sizes) / len(sizes) > (70 if packed else 65)
    assert batches.position() == {"epoch": 1, "index": 0}


def test_a_pair_beyond_the_budget_is_alone() -> None:
    made = Examples([([3] * 30, [4]), ([3], [4]), ([3], [5])], "cpu")
    for packed in (False, True):
        order = Batches(made, 16, 3, batch_tokens=10, packed=packed).order(0)
        assert sorted(sorted(rows.tolist()) for rows in order) == [[0], [1, 2]]
    with pytest.raises(ValueError, match="batch_tokens=0 must be at least 1"):
        Batches(made, 16, 3, batch_tokens=0)


def test_epochs_of_unlike_length_are_taken_up_anywhere() -> None:
    made = examples()
    whole = Batches(made, 16, 1, batch_tokens=50)
    assert len({len(whole.order(epoch)) for epoch in range(8)}) > 1
    taken = []
    for _ in range(100):
        position = whole.position()
        taken.append((position, next(whole).src))
    for position, wanted in taken[::7]:
        other = Batches(made, 16, 1, batch_tokens=50)
        other.restore(position)
        assert torch.equal(next(other).src, wanted)
    most = max(len(whole.order(epoch)) for epoch in range(8))
    with pytest.raises(ValueError, match=f"batch {most} of an epoch of"):
        whole.restore({"epoch": 0, "index": most})


@pytest.mark.parametrize("packed", [False, True])
def test_ranks_share_a_batch_without_a_rest(packed: bool) -> None:
    made = examples(count=33)  # two batches of 16, and one pair that only one rank has
    alone = Batches(made, 16, 0, packed=packed)
    ranks = [Batches(made, 16, 0, packed=packed, world=World(rank, 3, True)) for rank in range(3)]
    idle = 0
    for _ in range(3):
        whole, shares = next(alone), [next(rank) for rank in ranks]
        assert {share.all_tokens for share in shares} == {whole.tokens} == {sum(share.tokens for share in shares)}
        symbols = torch.cat([share.targets[share.targets > 0] for share in shares])
        assert sorted(symbols.tolist()) == sorted(whole.targets[whole.targets > 0].tolist())
        idle += sum(share.tokens == 0 for share in shares)
        assert all(share.src.numel() and (share.tokens or not share.targets.any()) for share in shares)
    assert idle == 2


@pytest.mark.parametrize("shape", [N_TO_M, N_TO_N, N_TO_1])
def test_packed_and_padded_trainings_have_the_same_losses(tmp_path: Path, shape: str) -> None:
    for batches in ("padded", "packed"):
        run(make("ddp", tmp_path / batches, parallel=None, shape=shape, batches=batches))
    assert_same_log(tmp_path / "packed", tmp_path / "padded")
    losses = [one["loss"] for one in records(tmp_path / "packed") if one["kind"] == "train"]
    assert len(losses) == UPDATES and losses[-1] < losses[0]  # so the gradients count


def test_a_packed_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    changes = dict(parallel=None, dropout=0.3)
    run(make("ddp, packed", tmp_path / "whole", **changes))
    run(make("ddp, packed", tmp_path / "broken", checkpoint_steps=1, **changes), BROKEN_AT)
    state = load_training(tmp_path / "broken" / LAST)
    assert state["step"] == BROKEN_AT
    run(make("ddp, packed", tmp_path / "broken", state=state, **changes))
    assert records(tmp_path / "whole") == records(tmp_path / "broken")


def test_input_gradients_need_a_padded_batch(tmp_path: Path) -> None:
    trainer = make("ddp, packed", tmp_path, parallel=None)
    with pytest.raises(TypeError, match="input_gradients needs a padded batch, this one is packed"):
        input_gradients(trainer.model, SHAPES[N_TO_M], next(trainer.batches))


def test_models_that_cannot_be_packed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path / "data", monkeypatch)
    command = ["train", "digits", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*command, "--model", "gru", "--batches", "packed"]) == 2
    assert "model='gru' takes no packed batches; those that do: transformer" in capsys.readouterr().err
    assert main([*command, "--batches", "loose"]) == 2
    assert "batches='loose' is unknown; allowed: padded, packed" in capsys.readouterr().err
    assert main([*command, "--parallel", "fsdp"]) == 2
    assert "parallel='fsdp' is for processes that torchrun starts" in capsys.readouterr().err
