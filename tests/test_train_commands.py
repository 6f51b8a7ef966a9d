"""train, evaluate, generate, data and demo as a user runs them, on a few hundred words that the test makes."""

import csv
import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from undivided.cli import main
from undivided.commands import generate
from undivided.tasks import g2p
from undivided.tasks.datasets import DATASETS
from undivided.training.inference import cross_attention
from undivided.training.log import read_log
from undivided.training.models import load_model

SOUNDS = dict(zip("ABDEFGIKLMNOPRSTUVZ", "AE B D EH F G IH K L M N OW P R S T UH V Z".split(), strict=True))
SMALL = ["--set", "d_model=32", "--set", "nheads=2", "--set", "d_ff=64", "--batch-size", "32"]


def lines(words: list[str]) -> str:
    return "".join(f"{word}\t{' '.join(SOUNDS[letter] for letter in word)}\n" for word in words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Words that are said as they are spelt, in the shape of the published split, which they stand in for."""
    made = random.Random(1)
    words = sorted({"".join(made.choices(list(SOUNDS), k=made.randint(2, 6))) for _ in range(700)})
    made.shuffle(words)
    out = tmp_path_factory.mktemp("words")
    (out / "g014b2b.train").write_text(lines(words[:-100]))
    (out / "g014b2b.test").write_text(lines(words[-100:]))
    row, files = DATASETS[g2p.PUBLISHED_SPLIT], []
    for file in row.files:
        content = (out / file.name).read_bytes()
        files.append(dataclasses.replace(file, sha256=hashlib.sha256(content).hexdigest(), size=len(content)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, row.name, dataclasses.replace(row, files=tuple(files)))
        patch.setenv("UNDIVIDED_DATA", str(out))
        patch.setenv("UNDIVIDED_CACHE", str(out / "cache"))
        yield out


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 1,000 updates, for all tests that only read it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    command = ["train", "g2p", "--out", str(out), "--steps", "1000", "--evaluations", "2", "--device", "cpu"]
    assert main([*command, *SMALL, "--lr", "5e-3", "--quiet", "--debug"]) == 0
    return out


def test_training_learns_to_spell(trained, capsys):
    assert main(["evaluate", str(trained), "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["words"] == 100 and report["wer"] < 30
    assert report["per"] < 40  # an answer that does not end has more phonemes than ten others
    assert report["trained"]["split"] == g2p.PUBLISHED_SPLIT
    kinds = [record["kind"] for record in read_log(trained / "log.jsonl")]
    assert kinds.count("dev") == 2 and "train" in kinds


def test_evaluate_prints_the_published_table_around_our_row(trained, capsys):
    assert main(["evaluate", str(trained), "--device", "cpu", "--mistakes", "2"]) == 0
    printed = capsys.readouterr().out
    assert "this checkpoint" in printed and "joint n-gram, Phonetisaurus" in printed
    assert printed.index("this checkpoint") < printed.index("joint n-gram, Phonetisaurus")


def test_evaluate_appends_rows_to_a_result_file(trained, tmp_path, capsys):
    path = tmp_path / "scores.csv"
    command = ["evaluate", str(trained), "--limit", "10", "--device", "cpu", "--csv", str(path)]
    assert main(command) == 0 and main(command) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and rows[0] == rows[1]
    assert rows[0]["task"] == "g2p" and rows[0]["words"] == "10"
    assert rows[0]["updates"] in ("500", "1000")  # whichever score was the best
    path.write_text("other,columns\n")
    assert main(command) == 2
    assert "has the columns other, columns" in capsys.readouterr().err


def test_evaluate_says_what_flatters(trained, capsys):
    assert main(["evaluate", str(trained), "--split", "dev", "--limit", "5", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "only the first 5 words were scored" in printed and "this score flatters it" in printed


def test_generate_prints_pronunciations_and_draws_a_map(trained, tmp_path, capsys):
    png = tmp_path / "maps.png"
    assert main(["generate", str(trained), "bad", "gift", "--png", str(png), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "bad   B AE D" in printed
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("model", ["rnn", "gru", "lstm", "gru-attention", "lstm-attention"])
def test_recurrent_models_are_trained_scored_and_run_likewise(folder, model, tmp_path, capsys):
    out, png = tmp_path / "run", tmp_path / "maps.png"
    command = ["train", "g2p", "--model", model, "--out", str(out), "--steps", "150", "--evaluations", "1", "--quiet"]
    options = ["--set", "d_model=48", "--set", "layers=1", "--batch-size", "32", "--lr", "4e-3", "--device", "cpu"]
    assert main([*command, *options, "--debug"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--json", "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == model and report["per"] < (95 if model == "rnn" else 70)  # of noise: 100
    assert main(["generate", str(out), "bad", "--png", str(png), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "bad  " in printed and ("attention map" in printed) == png.exists() == model.endswith("attention")


def test_the_map_has_a_row_for_every_phoneme_and_the_end(trained):
    saved = load_model(trained)
    weights = cross_attention(saved, tuple("BAD"), ("B", "AE", "D"))
    assert weights.shape == (4, 3)
    assert weights.sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["train", "poetry"], "poetry"),
        (["train", "g2p", "--set", "d_modl=3"], "'d_modl' is no field of the transformer's config"),
        (["train", "g2p", "--set", "d_model"], "is not KEY=VALUE"),
        (["train", "g2p", "--set", "positions=clock"], "positions='clock' is unknown; allowed: none"),
        (["train", "g2p", "--set", "dropout=abc"], "dropout='abc' must be a number"),
        (["train", "g2p", "--set", "shared_embedding=abc"], "shared_embedding='abc' must be true or false"),
        (["train", "g2p", "--model", "gru", "--set", "dropout=none"], "dropout='none' must be a number"),
        (["train", "g2p", "--device", "tpu"], "device='tpu'"),
        (["train", "g2p", "--steps", "0"], "steps"),
        (["train", "g2p", "--recipe", "slow"], "recipe 'slow' is unknown for g2p; allowed: quick, full"),
        (["train", "g2p", "--resume", "--recipe", "full"], "--recipe cannot change a run that is resumed"),
        (["train", "g2p", "--resume", "--overwrite"], "--resume goes on with a run and --overwrite replaces it"),
        (["info", "--into", "README.md"], "--into says where the table of --features is written"),
        (["train", "g2p", "--resume"], "there is no run"),
        (["evaluate", "missing.safetensors"], "missing.safetensors is not there"),
        (["evaluate", "damaged.safetensors"], "is not a safetensors file"),
        (["generate", "damaged.safetensors", "word"], "is not a safetensors file"),
        (["data", "fetch"], "fetch needs a name; there are: "),
        (["data", "fetch", "nothing"], "nothing"),
        (["data", "list", "nothing"], "list takes no name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line(command, text, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.safetensors").write_bytes(b"not a model")
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert text in printed and "Traceback" not in printed
    assert len(printed.strip().splitlines()) == 1


def test_an_exported_model_is_half_as_large_and_answers_the_same(trained, tmp_path, capsys):
    half = tmp_path / "half.safetensors"
    assert main(["export", str(trained), str(half)]) == 0
    assert half.stat().st_size < 0.6 * (trained / "best.safetensors").stat().st_size
    capsys.readouterr()
    scores = []
    for path in (trained, half):
        assert main(["evaluate", str(path), "--json", "--device", "cpu"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["wer"])
    assert abs(scores[0] - scores[1]) <= 1.0  # a rounding may turn one word of the hundred
    assert main(["export", str(trained), str(half)]) == 2
    assert "is there already; --overwrite replaces it" in capsys.readouterr().err


def test_words_with_other_letters_are_refused(trained, capsys):
    assert main(["generate", str(trained), "na\u00efve", "--no-png"]) == 2
    assert "is not a word of letters A to Z" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "word " * 60])
def test_a_text_that_is_no_path_is_a_text(text, monkeypatch):
    monkeypatch.setattr(generate, "default_checkpoint", lambda wanted: Path("shipped"))
    assert generate.split_arguments([text]) == (Path("shipped"), [text])


def test_data_list_says_what_is_here(folder, capsys):
    assert main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    assert "cmudict-g014b2b" in printed and f"here     {folder}" in printed


def test_the_demo_trains_scores_generates_and_draws(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "shipped_checkpoint", lambda name: None)
    assert main(["demo", "--minutes", "0.03", "--skip-verify", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for part in ("this machine", "its score", "trained here, 0.03 minutes", "undivided", "attention map:", "learning"):
        assert part in printed
    for name in ("attention.png", "learning_curve.png"):
        assert (tmp_path / "runs/demo" / name).stat().st_size > 1000
