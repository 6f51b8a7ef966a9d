"""The tasks besides English pronunciation: their data, and each of them trained, scored and run as a user does."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from task_files import TINY, standing_in, write_all, zipped
from undivided.cli import main
from undivided.tasks import GROUPS, TASKS, from_header, g2p_languages, images, pos, sentiment, to_header
from undivided.tasks.archives import members, members_digest, repack
from undivided.tasks.conllu import blocks_digest, forms_and_tags
from undivided.tasks.metrics import label_accuracy
from undivided.tasks.spelling import SPELLING, SpelledWords, spell
from undivided.tasks.vocabulary import UNKNOWN
from undivided.training.models import load_model

TINY_RECURRENT = ["--set", "d_model=32", "--set", "layers=1", "--set", "pooling=mean"]
TINY_RECURRENT += ["--device", "cpu", "--quiet", "--debug"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("data")
    with standing_in(out, write_all):
        yield out


def train(task: str, out: Path, *options: str) -> Path:
    assert main(["train", task, "--out", str(out), "--evaluations", "2", *options]) == 0
    return out


def score(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def tagger(folder, tmp_path_factory):
    """A run of the tagger, for all tests that only read it."""
    return train("pos", tmp_path_factory.mktemp("pos") / "run", "--steps", "80", "--lr", "5e-3", *TINY)


def test_a_tagger_reads_words_that_it_has_never_seen_by_their_letters(tagger, capsys):
    report = score(tagger, capsys)
    saved = load_model(tagger)
    test = TASKS["pos"].load(None).test
    known = {word for one in test for word in one.source if saved.source.encode([word])[0][0] != UNKNOWN}
    assert not known and report["labels"] == sum(len(one.source) for one in test)
    assert report["accuracy"] > 90  # four tags, equally frequent


def test_a_tagger_is_shown_beside_the_published_rows_and_tags_a_sentence(tagger, tmp_path, capsys):
    path = tmp_path / "scores.csv"
    assert main(["evaluate", str(tagger), "--device", "cpu", "--csv", str(path), "--mistakes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "bi-LSTM, words only" in printed and "this checkpoint" in printed and "40 sentences in" in printed
    assert "several releases of the treebank" in printed
    with path.open(newline="") as file:
        assert next(csv.DictReader(file))["task"] == "pos"
    assert main(["generate", str(tagger), "bdfkling gtrbdly", "--device", "cpu"]) == 0
    assert "bdfkling/VERB gtrbdly/ADV" in capsys.readouterr().out


def test_a_treebank_whose_documents_come_in_another_order_gives_the_same_training(folder, tmp_path):
    place = tmp_path / "ud-english-ewt"
    shutil.copytree(folder / place.name, place)
    path = place / "ewt_train.tsv"
    sentences = path.read_text().strip().split("\n\n")
    path.write_text("\n\n".join(reversed(sentences)) + "\n")
    first, second = (TASKS["pos"].load(one) for one in (folder, tmp_path))
    assert first.train == second.train and first.source.symbols == second.source.symbols


@pytest.mark.parametrize("model", ["transformer", "gru"])
def test_sentences_are_told_apart_by_a_word(folder, model, tmp_path, capsys):
    options = TINY if model == "transformer" else TINY_RECURRENT
    run = train("sentiment", tmp_path / "run", "--model", model, "--steps", "60", "--lr", "1e-2", *options)
    assert score(run, capsys)["accuracy"] > 95
    assert main(["generate", str(run), "Splendid film of the actor", "--device", "cpu"]) == 0
    assert " %  Splendid" in (printed := capsys.readouterr().out) and "positive" in printed


def test_whole_reviews_are_read(folder, tmp_path, capsys):
    run = train("reviews", tmp_path / "run", "--steps", "60", "--lr", "1e-2", *TINY)
    report = score(run, capsys)
    assert report["accuracy"] > 80 and max(len(one.source) for one in TASKS["reviews"].load(None).test) > 70


@pytest.mark.parametrize("model", ["transformer", "lstm"])
def test_digits_are_read_pixel_by_pixel(folder, model, tmp_path, capsys):
    options = TINY if model == "transformer" else TINY_RECURRENT
    run = train("digits", tmp_path / "run", "--model", model, "--steps", "160", "--lr", "1e-2", *options)
    report = score(run, capsys)
    # Of eight labels chance gets 12.5; the LSTM answers from its state after all 64 pixels, which takes it longer.
    assert report["labels"] == 100 and report["accuracy"] > (60 if model == "transformer" else 20)
    bright = " ".join("7" if n // 8 == 5 else "0" for n in range(64))
    assert main(["generate", str(run), bright, "--device", "cpu"]) == 0
    assert re.search(r"^\d \d+ %  0 0 0", capsys.readouterr().out, re.MULTILINE)


def test_models_are_compared_on_one_task(folder, tmp_path, capsys):
    out = tmp_path / "compare"
    options = ["--steps", "4", "--evaluations", "1", "--dev-words", "5", "--device", "cpu", "--quiet", "--debug"]
    assert main(["compare", "digits", "--models", "rnn,transformer", "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert "ms/update" in printed, printed
    assert (out / "gradients.png").stat().st_size > 1000
    with (out / "compare.csv").open(newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["rnn", "transformer"] and rows["rnn"]["positions"] == "64" and rows["rnn"]["updates"] == "4"
    fallen = {kind: float(row["first"]) / float(row["last"]) for kind, row in rows.items()}
    assert fallen["rnn"] < 0.5 * fallen["transformer"] and 0.5 < fallen["transformer"] < 2
    assert main(["compare", "digits", "--models", "gru-attention"]) == 2
    assert "'gru-attention' cannot be trained on digits; allowed: transformer, rnn" in capsys.readouterr().err


def test_large_digits_are_784_symbols(folder, tmp_path, capsys):
    run = train("mnist", tmp_path / "run", "--steps", "2", "--batch-size", "4", "--set", "encoder_layers=1", *TINY)
    assert 0 <= score(run, capsys)["accuracy"] <= 100
    assert {len(one.source) for one in TASKS["mnist"].load(None).dev} == {784}


@pytest.fixture(scope="module")
def languages(folder, tmp_path_factory):
    """A model of the ten languages with more words."""
    options = ["--steps", "150", "--batch-size", "32", "--lr", "1e-2", "--set", "encoder_layers=1"]
    out = tmp_path_factory.mktemp("medium") / "run"
    return train("g2p_medium", out, *options, "--set", "decoder_layers=1", "--set", "dropout=0.0", *TINY)


def test_one_model_pronounces_ten_languages(languages, capsys):
    assert score(languages, capsys)["wer"] < 40
    assert main(["generate", str(languages), "fre bade", "--no-png"]) == 0
    assert "fre bade  b a d e" in capsys.readouterr().out


def test_a_group_is_fine_tuned_and_compared_with_training_from_scratch(languages, tmp_path, monkeypatch, capsys):
    two = GROUPS["g2p_lowres"][:2]
    monkeypatch.setitem(GROUPS, "g2p_lowres", two)
    out = tmp_path / "low"
    command = ["finetune", "g2p_lowres", "--from", str(languages), "--scratch", "--out", str(out), "--device", "cpu"]
    assert main([*command, "--steps", "12", "--evaluations", "1", "--debug"]) == 0
    printed = capsys.readouterr().out
    assert "average" in printed and "from scratch" in printed and "fine-tuned" in printed and "21.50" in printed
    scores = json.loads((out / "scores.json").read_text())
    assert scores.keys() == set(two)
    for ways in scores.values():
        assert ways["fine-tuned"]["wer"] < ways["from scratch"]["wer"]
    assert main(command) == 2
    assert "holds scores; --overwrite replaces them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["train", "pos", "--model", "gru-attention"], "'gru-attention' is not for tasks from N to N; allowed: trans"),
        (["train", "sentiment", "--model", "cnn"], "model='cnn' is unknown; allowed: transformer, rnn, gru, lstm"),
        (["train", "sentiment", "--model", "gru", "--set", "cell=lstm"], "cell='lstm' is another model than gru"),
        (["train", "digits", "--set", "layers=2"], "'layers' is no field of the transformer's config"),
        (["generate", "--task", "reviews", "fine"], "there is no checkpoint: train one (undivided train reviews)"),
        (["train", "g2p_lowres"], "g2p_lowres is a group of tasks, one of them is needed here: g2p_ady, g2p_gre"),
        (["finetune", "pos", "--from", "nothing.safetensors"], "nothing.safetensors is not there"),
        (["generate", "--task", "poetry", "fine"], "no task is called 'poetry'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line(command, text, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert text in printed and len(printed.strip().splitlines()) == 1


def test_a_checkpoint_of_another_task_is_refused(tagger, capsys):
    assert main(["generate", "--task", "sentiment", str(tagger), "fine"]) == 2
    assert "is of task pos, sentiment was asked for" in capsys.readouterr().err


def test_the_table_of_tasks_is_whole():
    for name, one in TASKS.items():
        assert name == one.name and one.metric in one.columns and "quick" in one.recipes
        assert "transformer" in one.recipes["quick"]["model"]
        for row in one.published:
            assert row.source and row.scores and row.scores.keys() <= set(one.columns)
    assert {name for names in GROUPS.values() for name in names} <= TASKS.keys()
    better = [
        {"wer": low, "der": low, "error": low, "accuracy": high, "bleu": high} for low, high in ((10, 90), (20, 80))
    ]
    assert all(one.better(*better) and not one.better(*reversed(better)) for one in TASKS.values())
    averages = [sum(TASKS[name].published[0].scores["wer"] for name in names) / len(names) for names in GROUPS.values()]
    assert averages == [pytest.approx(25.10)]  # as the shared task gives it


def test_the_first_digits_of_a_part_are_not_all_the_same(monkeypatch):
    """The file is sorted by label: 100 development examples were zeros and ones."""
    sorted_by_label = [((pixel, label), str(label)) for label in range(10) for pixel in range(100)]
    monkeypatch.setattr(images, "read", lambda name, data: iter(sorted_by_label))
    data = images.load_mnist()
    for part in (data.dev, data.test):
        labels = [one.references[0] for one in part]
        assert len(set(labels[: len(labels) // 2])) >= 8
    assert len(data.train) + len(data.dev) + len(data.test) == 1000


def test_labels_are_counted_and_unlike_lengths_are_refused():
    scores = label_accuracy([("A", "B"), ("A",)], [[("A", "A")], [("A",)]])
    assert scores == {"accuracy": pytest.approx(200 / 3), "labels": 3}
    with pytest.raises(ValueError, match=r"example 1 has 1 labels and references of \[2\]"):
        label_accuracy([("A",), ("A",)], [[("A",)], [("A", "B")]])


def test_a_word_is_spelt_between_marks_and_a_long_one_loses_its_middle():
    row = spell("\u00e9t")
    assert row[:5] == (257, 0xC3 + 1, 0xA9 + 1, ord("t") + 1, 258) and set(row[5:]) == {0} and len(row) == SPELLING
    long = spell("counterrevolutionaries")
    assert bytes(number - 1 for number in long[1:-1]) == b"counterrtionaries"[:8] + b"ionaries"
    words = SpelledWords.of([("The", "the", "film")])
    assert words.symbols == ("<unknown>", "the")
    assert words.encode(("THE", "film")) == [(4, *spell("THE")), (3, *spell("film"))]
    again = from_header(json.loads(json.dumps(to_header(words))))
    assert type(again) is SpelledWords and again.symbols == words.symbols
    with pytest.raises(ValueError, match="kind 'pictures' is unknown; allowed: symbols, words, spelled words"):
        from_header({"kind": "pictures", "symbols": []})


def test_inputs_are_cut_and_bad_ones_are_refused():
    assert pos.words("I don't know, e-mail me!") == ("I", "do", "n't", "know", ",", "e-mail", "me", "!")
    assert sentiment.tokens("It's GREAT.") == ("it's", "great", ".")
    assert images.pixels("0, 16,3 2", 16) == ("0", "16", "3", "2")
    assert images.pixels("0 255 7 8", 255) == ("0", "16", "0", "1")
    assert g2p_languages.letters("bade", "fre") == g2p_languages.letters("fre bade") == ("<fre>", "b", "a", "d", "e")
    for function, bad, text in (
        (pos.words, " ", "has no word"),
        (sentiment.tokens, "", "has no word"),
        (partial(images.pixels, top=16), "1 2 3", "a square of numbers from 0 to 16; given 3 words"),
        (partial(images.pixels, top=16), "1 2 3 17", "among them '17'"),
        (g2p_languages.letters, "bade", "is not a language and one word"),
        (g2p_languages.letters, "xyz bade", "language 'xyz' is unknown; allowed: arm_e"),
    ):
        with pytest.raises(ValueError, match=text):
            function(bad)


def test_images_are_moved_and_turned_about_their_middle():
    image = (0, 0, 0, 8, 0, 0, 0, 0, 0)  # bright at the left of the middle row
    still, right, down, half, quarter = (
        images.warped([image], move, turn)[0]
        for move, turn in (((0, 0), 0), ((0, 1), 0), ((1, 0), 0), ((0, 0.5), 0), ((0, 0), 90))
    )
    assert still == image and right.index(8) == 4 and down.index(8) == 6
    assert half[3:5] == (4, 4) and sum(half) == 8
    assert quarter.index(8) == 1  # clockwise: from the left to the top
    both = images.warped([image], (1, 0), 90)[0]
    assert both.index(8) == 4  # turned to the top first, then moved down


def test_a_broken_line_of_tags_is_named():
    assert pos.parse("A\tDET\n\nB\tNOUN\nC\tVERB\n") == [(("A",), ("DET",)), (("B", "C"), ("NOUN", "VERB"))]
    with pytest.raises(ValueError, match="line 2 is 'B\\\\tTHING'; a word, a tab and one of ADJ"):
        pos.parse("A\tDET\nB\tTHING\n")


def test_a_treebank_is_converted_and_its_hash_does_not_depend_on_the_order_of_documents():
    text = "# text = It's x\n1-2\tIt's\t_\t_\n1\tIt\tit\tPRON\n2\t's\tbe\tAUX\n2.1\tgone\tgo\tVERB\n\n1\tx\tx\tX\n\n"
    converted = forms_and_tags(text.encode())
    assert converted == b"It\tPRON\n's\tAUX\n\nx\tX\n"
    assert blocks_digest(converted) == blocks_digest(b"x\tX\n\nIt\tPRON\n's\tAUX\n")
    assert blocks_digest(converted) != blocks_digest(b"x\tX\n\nIt\tPRON\n's\tVERB\n")
    with pytest.raises(ValueError, match="line 1 has 2 columns"):
        forms_and_tags(b"1\tIt\n")


def test_an_archive_is_its_files_however_it_is_packed(folder):
    tar = (folder / "sigmorphon-2021-g2p" / "data.tar").read_bytes()
    low = repack(tar, "low")
    assert members(low).keys() == {name[4:] for name in members(tar) if name.startswith("low/")}
    assert members_digest(zipped({name: data.decode() for name, data in members(tar).items()})) == members_digest(tar)
    assert members_digest(low) != members_digest(tar)
    with pytest.raises(ValueError, match="no files below high/"):
        repack(tar, "high")
    with pytest.raises(ValueError, match="not a whole zip or tar archive"):
        members(b"neither")
