"""The claims about models, each measured at its smallest as a user does, and what must hold at any size."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from task_files import standing_in, write_all
from undivided.cli import main
from undivided.commands.claims_page import rows_of
from undivided.tasks import TASKS
from undivided.tasks.base import Example
from undivided.training.claims import CLAIMS, Setup, depth, lengths, packing, positions
from undivided.training.models import build
from undivided.training.recipes import settings_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("data")
    with standing_in(out, write_all):
        yield out


def measured(task: str, claim: str, out: Path, *options: str) -> list[dict[str, str]]:
    """The rows that the command writes; its figure must be there too."""
    command = ["compare", task, "--claim", claim, "--quick", "--out", str(out), "--device", "cpu", "--quiet", "--debug"]
    assert main([*command, *options]) == 0
    assert (out / f"{claim}.png").read_bytes().startswith(b"\x89PNG")
    with (out / f"{claim}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and all(row["task"] == task and row["torch"] and row["threads"] for row in rows)
    read = rows_of(CLAIMS[claim].row, out / f"{claim}.csv")
    assert [str(value) for value in vars(read[0]).values() if value is not None] == [
        row_value for name, row_value in rows[0].items() if name in vars(read[0]) and row_value
    ]
    return rows


def test_over_784_steps_the_gradient_of_a_recurrent_network_underflows_and_a_transformers_does_not(
    folder, tmp_path, capsys
):
    rows = measured("mnist", "gradients", tmp_path, "--models", "rnn,transformer")
    gradients = {kind: [float(r["gradient"]) for r in rows if r["model"] == kind] for kind in ("rnn", "transformer")}
    assert [len(values) for values in gradients.values()] == [784, 784]
    assert gradients["rnn"][0] == 0.0 < gradients["rnn"][-1]
    assert 0.01 < gradients["transformer"][0] / gradients["transformer"][-1] < 100
    assert "where it is 0" in capsys.readouterr().out


def test_models_of_one_size_are_timed_at_two_lengths(folder, tmp_path, capsys):
    rows = measured("digits", "lengths", tmp_path, "--models", "gru,transformer")
    found = {(row["length"], row["model"]): row for row in rows}
    assert list(found) == [(length, kind) for length in ("16", "64") for kind in ("gru", "transformer")]
    # The width goes in steps of 2: 1 / 37 of the width of the GRU, in the square of it.
    sizes = [int(row["weights"]) for row in rows]
    assert max(sizes) / min(sizes) < 1.06 and len({row["weights"] for row in rows}) == 2
    assert all(float(row["update_ms"]) > 0 and 0 <= float(row["accuracy"]) <= 100 for row in rows)
    assert "ms/update" in capsys.readouterr().out


def test_an_image_is_pooled_to_the_nearest_level_of_the_mean():
    image = ("0", "16", "4", "4", "16", "0", "5", "6") + ("1",) * 8
    assert lengths.pooled(image, 2) == ("8", "5", "1", "1")
    assert lengths.pooled(image, 1) == image


def test_texts_are_cut_to_lengths(folder):
    data = TASKS["reviews"].load(None)
    found = lengths.shortened(Setup(TASKS["reviews"], data, minutes=1.0))
    assert list(found)[:2] == [16, 64] and {len(source) for source, _ in found[16].train} == {16}
    assert [one.source for one in found[16].test] == [one.source[:16] for one in data.test]


def test_every_kind_of_positions_is_tested_on_lengths_that_training_had_and_on_longer_ones(folder, tmp_path, capsys):
    rows = measured("g2p_medium", "positions", tmp_path)
    found = {kind: [row for row in rows if row["positions"] == kind] for kind in positions.POSITIONS}
    assert all({row["seen"] for row in own} == {"True", "False"} for own in found.values())
    assert len({tuple((row["length"], row["examples"]) for row in own) for own in found.values()}) == 1
    assert all(row["metric"] == "per" for row in rows) and "longer" in capsys.readouterr().out


def test_a_range_of_lengths_has_only_seen_or_only_longer_ones():
    examples = [Example("", ("a",) * length, ((),)) for length in range(1, 60)]
    groups = positions.by_length(examples, limit=20, fewest=2, most=2)
    assert list(groups)[0] == 2 and 20 in groups and 22 in groups and max(groups) == 40
    for end, group in groups.items():
        assert [len(one.source) for one in group] == [end - 1, end]  # 20 in 8 ranges: two lengths each
    data = TASKS["g2p"]
    assert positions.suits(data) is None and "have the same length" in str(positions.suits(TASKS["digits"]))


def test_losses_by_depth_are_of_every_variant(folder, tmp_path, capsys):
    rows = measured("digits", "depth", tmp_path)
    pairs = [(row["variant"], row["layers"]) for row in rows]
    assert pairs == [(name, layers) for name in depth.VARIANTS for layers in ("2", "12")]
    first = {row["variant"]: float(row["first_loss"]) for row in rows}
    assert len(set(first.values())) == len(first)  # the models differ
    assert "not finite" not in capsys.readouterr().out


def lowest_gradient(variant: str, layers: int = 12) -> float:
    """The norm of the loss's gradient in the lowest layer before training, over that in the highest."""
    norm, rebuild = depth.VARIANTS[variant]
    one = TASKS["digits"]
    torch.manual_seed(0)
    data = TASKS["digits"].load(None)
    options = {"d_model": 32, "nheads": 2, "d_ff": 64, "encoder_layers": layers, "norm": norm}
    model = build("transformer", one.shape, data.source, data.target, options)
    rebuild(model)
    src = torch.randint(3, 20, (4, 16))
    torch.nn.functional.cross_entropy(model(src), torch.arange(4)).backward()
    norms = [block.feed_forward.w_in.weight.grad.norm().item() for block in model.encoder.blocks]
    return norms[0] / norms[-1]


def test_without_residual_sums_and_norms_the_lowest_of_twelve_layers_has_no_gradient(folder):
    assert lowest_gradient("norm before, residual sum") > 0.1
    assert lowest_gradient("neither") < 1e-3


def test_packed_batches_have_no_padding_and_the_same_losses(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("undivided.transformer.padding.pack", None)  # padded ones keep theirs, through all layers
    rows = measured("g2p_medium", "packing", tmp_path)
    ways = {way: [row for row in rows if row["way"] == way] for way in packing.WAYS}
    for padded, packed in (("padded", "packed"), ("padded, like lengths", "packed, like lengths")):
        assert len(ways[padded]) == len(ways[packed]) == 3
        for one, other in zip(ways[padded], ways[packed], strict=True):
            assert one["tokens"] == other["tokens"] and float(other["padding"]) == 0.0
            assert float(one["loss"]) == pytest.approx(float(other["loss"]), abs=1e-3)  # rows are rounded to 1e-4
    padding = {way: float(own[-1]["padding"]) for way, own in ways.items()}
    assert padding["padded"] > padding["padded, like lengths"] >= 0.0 and padding["padded"] > 10
    assert "times as fast" in capsys.readouterr().out


def test_padding_is_counted_batch_by_batch():
    assert packing.counted(torch.tensor([3, 1]), torch.tensor([2, 2])) == (8, 10)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["digits", "--claim", "beauty"], "no claim is called 'beauty'; allowed: gradients, lengths, positions, depth"),
        (["pos", "--claim", "lengths"], "cannot be measured on pos: it needs a task from N to 1, pos is from N-to-N"),
        (["digits", "--claim", "positions"], "all inputs of digits have the same length"),
        (["spoken_digits", "--claim", "positions"], "the score of spoken_digits needs single digits and strings"),
        (["g2p", "--claim", "depth"], "it needs a task with an encoder alone, g2p is N-to-M"),
        (["digits", "--claim", "depth", "--lr", "0.1"], "--lr cannot be used with --claim"),
        (["digits", "--claim", "depth", "--warmup", "0"], "--warmup cannot be used with --claim"),
        (["digits", "--claim", "depth", "--steps", "5"], "--steps cannot be used with --claim"),
        (["digits", "--claim", "depth", "--minutes", "0"], "--minutes 0.0 must be positive"),
        (["digits", "--claim", "gradients", "--models", "cnn"], "--models 'cnn' cannot be trained on digits"),
        (["digits", "--claim", "depth", "--models", "gru"], "depth is about the transformer alone: leave out --models"),
        (["digits", "--quick"], "--quick is for --claim"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line(command, text, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *command]) == 2
    printed = capsys.readouterr().err
    assert text in printed and len(printed.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_help_names_every_claim(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    printed = capsys.readouterr().out
    assert all(f"{name}:" in printed for name in CLAIMS)


def test_every_claim_has_what_its_panels_draw(folder):
    for name, one in CLAIMS.items():
        assert name == one.name and one.panels and one.columns
    fields = {"gradients": {"model", "position", "gradient"}, "packing": {"way", "seconds", "loss"}}
    for name, words in fields.items():
        assert {word for panel in CLAIMS[name].panels for word in (panel.x, panel.y, panel.line)} == words


def test_the_recipe_of_a_measurement_is_that_of_the_task():
    settings = depth.settings_of(Setup(TASKS["digits"], None, 1.0), "no norm", 6, 1e-3, 50)  # type: ignore[arg-type]
    usual = settings_for(TASKS["digits"], steps=50, device="cpu")
    assert (settings.batch_size, settings.weight_decay) == (usual.batch_size, usual.weight_decay)
    assert settings.model_options["encoder_layers"] == 6 and settings.model_options["d_model"] == 64
