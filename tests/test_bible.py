"""Translation: its data, its score, and training, scoring and answering as a user does it."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from task_files import TINY_PAIR, standing_in, write_verses
from undivided.cli import main
from undivided.tasks import TASKS, bible
from undivided.tasks.byte_pairs import BytePairs
from undivided.tasks.metrics import bleu
from undivided.training.inference import answer
from undivided.training.models import load_model
from undivided.transformer import Config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("data")
    with standing_in(out, write_verses) as patch:
        patch.setattr(bible, "PIECES", 300)
        yield out


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A trained translator, for all tests that only read it."""
    out = tmp_path_factory.mktemp("bible") / "run"
    options = ["--steps", "150", "--lr", "1e-2", "--batch-size", "32", "--evaluations", "2", "--ema", "0.9"]
    assert main(["train", "bible", "--out", str(out), *options, *TINY_PAIR]) == 0
    return out


def test_verses_are_translated_and_scored_by_beam_search(run, tmp_path, capsys):
    capsys.readouterr()
    path = tmp_path / "scores.csv"
    assert main(["evaluate", str(run), "--device", "cpu", "--csv", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "Moses, this pair of versions" in printed and "24.01" in printed and "this checkpoint" in printed
    assert "20 verses in" in printed and "5 hypotheses each" in printed and "learnt from more versions" in printed
    header, row = (line.split(",") for line in path.read_text().splitlines())
    assert dict(zip(header, row, strict=True))["beams"] == "5"
    assert main(["evaluate", str(run), "--device", "cpu", "--json", "--beams", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    # Nine words, each with one translation; an untrained model scores under 5.
    assert report["bleu"] > 60 and report["task"] == "bible"


def test_a_verse_is_answered_in_words(run, capsys):
    capsys.readouterr()
    assert main(["generate", str(run), "hath thou lo", "--no-png", "--device", "cpu", "--beams", "2"]) == 0
    assert "has you see" in capsys.readouterr().out


def test_the_file_holds_one_table_and_the_pieces(run):
    saved = load_model(run)
    assert saved.model.encoder.embedding is saved.model.decoder.embedding
    assert type(saved.source) is BytePairs and saved.source.symbols == saved.target.symbols
    assert saved.source.symbols == TASKS["bible"].load(None).source.symbols


def test_an_attention_map_is_of_pieces(run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    png = tmp_path / "map.png"
    assert main(["generate", str(run), "zigzagging thou", "--png", str(png), "--device", "cpu"]) == 0
    assert png.stat().st_size > 1000


def test_hypotheses_are_for_sequences(run, capsys):
    assert main(["evaluate", str(run), "--beams", "0"]) == 2
    assert "--beams 0 must be at least 1" in capsys.readouterr().err


def test_hypotheses_reach_the_search_and_make_batches_smaller(run, monkeypatch):
    saved, seen = load_model(run), []
    search = saved.model.generate

    def spied(src: torch.Tensor, **words: Any) -> torch.Tensor:
        seen.append((len(src), words["beams"]))
        return search(src, **words)

    monkeypatch.setattr(saved.model, "generate", spied)
    verses = [("lo", "ye")] * 6
    answers = answer(saved.model, saved.task, saved.source, saved.target, verses, batch_size=6, beams=3)
    assert seen == [(2, 3)] * 3 and len(answers) == 6


def test_one_table_needs_the_same_symbols():
    with pytest.raises(ValueError, match="a shared embedding needs src_vocab=5 to equal tgt_vocab=6"):
        Config(5, 6, shared_embedding=True)


def test_bleu_is_that_of_its_definition():
    # Of five words, four pairs, three triples and two quadruples 4, 3, 2 and 1 are right; the lengths are the same.
    found = bleu([tuple("abcde")], [[tuple("abcdf")]])
    assert found == {"bleu": pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25), "words": 5}
    # A short output is right in all of its parts, and pays for its length.
    assert bleu([tuple("abcd")], [[tuple("abcdef")]])["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 4))
    # Any of the references may have a part; outputs may have different numbers of them.
    two = [[tuple("wxyz"), tuple("abcd")], [tuple("efgh")]]
    assert bleu([tuple("abcd"), tuple("efgh")], two)["bleu"] == pytest.approx(100)
    # Words are compared as they are: no punctuation is cut off.
    assert bleu([("a", "b", "c", "d.")], [[("a", "b", "c", "d", ".")]])["bleu"] < 80
    assert bleu([("a", "b", "c", "d"), ()], [[("a", "b", "c", "d")], [("e",)]])["words"] == 4


def test_bad_scores_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="given 1 outputs and 2 lists"):
        bleu([("a",)], [[("a",)], [("b",)]])
    with pytest.raises(ValueError, match="at least 1 reference for every output"):
        bleu([("a",), ("b",)], [[("a",)], []])
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"sacrebleu is not installed .*pip install 'undivided\[translation\]'"):
        TASKS["bible"].load(None)


def test_verses_pair_line_by_line():
    assert bible.verses("<BBE> And  God\n<BBE> lo,\n", "And God\nsee,\n") == [
        (("And", "God"), ("And", "God")),
        (("lo,",), ("see,",)),
    ]
    for source, target, text in (
        ("<BBE> a\n", "a\nb\n", "1 source and 2 target lines"),
        ("<BBE> a\nb\n", "a\nb\n", "line 2 is 'b' and 'b'"),
        ("<BBE> a\n<BBE> \n", "a\nb\n", "line 2 is '<BBE> ' and 'b'"),
        ("<BBE> a\n", " \n", "line 1 is"),
    ):
        with pytest.raises(ValueError, match=text):
            bible.verses(source, target)
    with pytest.raises(ValueError, match="has no word; give a verse"):
        bible.words("  ")


def test_missing_verses_are_named_with_the_three_places(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNDIVIDED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("undivided.tasks.find.urllib.request.urlopen", refuse)
    assert main(["train", "bible", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert f"(1) {tmp_path} does not hold YLTToBBE.Train.sourc" in printed
    assert "(2) the cache" in printed and "(3) the download from https://github.com/keithecarlson" in printed


def refuse(*args, **words):
    raise OSError("no network")
