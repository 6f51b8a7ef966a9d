"""What is hidden of a text, the tasks of finding it, and starting a classifier from a model that did."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from task_files import TINY, standing_in, write_all
from undivided.cli import main
from undivided.tasks import TASKS, from_header, pretraining, to_header
from undivided.tasks.corruption import (
    KEPT,
    MASK,
    SENTINELS,
    hide_spans,
    hide_words,
    noise_counts,
    parts,
    span_mask,
)
from undivided.training.batches import Batches, Examples
from undivided.training.models import load_model
from undivided.transformer import Config, NextToken


def filled(source: tuple[str, ...], target: tuple[str, ...]) -> list[str]:
    """The text of a source whose spans the target has."""
    spans: dict[str, list[str]] = {}
    for word in target:
        if word in SENTINELS:
            spans[word] = []
        else:
            spans[list(spans)[-1]].append(word)
    return [word for one in source for word in spans.get(one, [one])]


@pytest.mark.parametrize("length", [2, 3, 7, 20, 64, 512])
def test_spans_are_those_of_t5(length):
    made = random.Random(length)
    words = [f"w{number}" for number in range(length)]
    hidden = max(1, min(round(0.15 * length), length - 1))
    spans = max(1, round(hidden / 3))
    assert noise_counts(length) == (hidden, spans)
    for _ in range(50):
        mask = span_mask(length, made)
        assert len(mask) == length and sum(mask) == hidden
        assert not mask[0] and mask[-1]  # what is seen comes first, a hidden span last
        source, target = hide_spans(words, mask)
        assert len(source) == length - hidden + spans and len(target) == hidden + spans
        assert [one for one in source if one in SENTINELS] == list(SENTINELS[:spans])
        assert [one for one in target if one in SENTINELS] == list(SENTINELS[:spans])
        assert filled(source, target) == words


def test_the_example_of_the_paper():
    words = "Thank you for inviting me to your party last week".split()
    mask = [word in ("for", "inviting", "last") for word in words]
    source, target = hide_spans(words, mask)
    assert " ".join(source) == "Thank you <extra_0> me to your party <extra_1> week"
    assert " ".join(target) == "<extra_0> for inviting <extra_1> last"


def test_spans_are_three_words_on_average_and_every_cut_is_as_likely():
    made = random.Random(0)
    lengths = [len(one) for _ in range(200) for one in re.findall("1+", "".join("01"[n] for n in span_mask(200, made)))]
    assert sum(lengths) == 200 * 30 and len(lengths) == 200 * 10
    assert 1 in lengths and max(lengths) > 6
    cuts = [tuple(parts(5, 3, made)) for _ in range(1200)]
    # Five in three parts, none empty: 113, 122 and their orders, six lists, each 200 times but for chance.
    assert len(set(cuts)) == 6 and all(140 < cuts.count(one) < 260 for one in set(cuts))
    assert parts(4, 1, made) == [4]


def test_words_are_hidden_as_bert_hides_them():
    made = random.Random(2)
    words = tuple(f"w{number}" for number in range(40))
    known = ("a", "b")
    masked = replaced = left = 0
    for _ in range(400):
        source, target = hide_words(words, known, frozenset(words[:30]), made)
        chosen = [n for n, label in enumerate(target) if label != KEPT]
        assert len(source) == len(target) == 40 and len(chosen) == 6 and max(chosen) < 30
        assert all(target[n] == words[n] for n in chosen)
        assert all(source[n] == words[n] for n in range(40) if n not in chosen)
        masked += sum(source[n] == MASK for n in chosen)
        replaced += sum(source[n] in known for n in chosen)
        left += sum(source[n] == words[n] for n in chosen)
    assert masked + replaced + left == 2400
    assert 0.77 < masked / 2400 < 0.83 and 0.08 < replaced / 2400 < 0.12 and 0.08 < left / 2400 < 0.12
    assert sum(label != KEPT for label in hide_words(words[:3], known, words, made)[1]) == 1


def test_what_cannot_be_hidden_is_refused():
    made = random.Random(0)
    for act, text in (
        (lambda: span_mask(1, made), "a text of 1 words has none to hide"),
        (lambda: hide_spans(["a"], [True, False]), "1 words and a mask of 2"),
        (lambda: hide_spans(["a"] * 80, [True, False] * 40), "40 spans, at most 32"),
        (lambda: hide_words(("a", "b"), ("c",), ("d",), made), "none of the 2 words is known"),
        (lambda: pretraining.tokens(" "), "has no word; give a sentence, with <mask> or <extra_0>"),
        (lambda: pretraining.hidden_accuracy([("a",)], [[(KEPT,)]]), "1 references have 0 labels"),
    ):
        with pytest.raises(ValueError, match=text):
            act()
    assert pretraining.tokens("A <mask>, don't <extra_1>!") == ("a", "<mask>", ",", "don't", "<extra_1>", "!")


def test_only_hidden_words_are_scored():
    outputs, references = [("a", "b", "c"), ("d",)], [[("a", KEPT, "x")], [("d",)]]
    assert pretraining.hidden_accuracy(outputs, references) == {"accuracy": pytest.approx(200 / 3), "labels": 3}
    assert pretraining.symbol_error([("a", "b"), ()], [[("a",)], [("c", "d", "e")]]) == {"error": 100.0, "words": 4}


def test_labels_that_are_kept_are_padding_and_do_not_count():
    blanks = pretraining.Blanks(("<unknown>", "a", "b"))
    assert blanks.encode(("a", KEPT, "z", "b")) == [4, 0, 3, 5]
    assert type(from_header(to_header(blanks))) is pretraining.Blanks
    examples = Examples([([3, 4, 5], [0, 4, 0]), ([4, 4], [3, 3])], "cpu", shifted=False)
    batch = examples.batch(torch.tensor([0, 1]))
    assert batch.tokens == 3 and batch.targets.tolist() == [[0, 4, 0], [3, 3, 0]]
    assert Examples([([3], [4, 5]), ([3], [])], "cpu").batch(torch.tensor([0, 1])).tokens == 4  # each with its end
    assert next(Batches(examples, 2, 0)).all_tokens == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("data")
    with standing_in(out, write_all) as patch:
        patch.setattr(pretraining, "AT_LEAST", 2)
        yield out
    pretraining.read.cache_clear()


def test_scored_documents_stay_out_and_every_epoch_hides_others(folder):
    for name in ("span_corruption", "masked_words", "next_word"):
        data = TASKS[name].load(None)
        assert data.renewed(0) == data.train and len(data.renewed(1)) == len(data.train)
        assert (data.renewed(1) != data.train) == (name != "next_word")  # nothing is drawn for that one
        assert (
            data.dev
            and data.test
            and [one.source for one in TASKS[name].load(None).test] == [one.source for one in data.test]
        )
    spans, words = TASKS["span_corruption"].load(None), TASKS["next_word"].load(None)
    texts = {" ".join(filled(*pair)) for pair in spans.train}
    assert not texts & {" ".join(filled(one.source, one.references[0])) for one in (*spans.test, *spans.dev)}
    source, target = words.train[0]
    assert len(source) == len(target) and all(
        label in (KEPT, word) for label, word in zip(target, source[1:], strict=False)
    )
    assert max(len(one) for one, _ in words.train) < 64


@pytest.mark.parametrize("name", ["span_corruption", "masked_words", "next_word"])
def test_a_classifier_starts_from_a_model_of_unlabelled_text(name, folder, tmp_path, capsys):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    options = ["--steps", "30", "--lr", "1e-2", "--evaluations", "1", "--dev-words", "20"]
    assert main(["train", name, "--out", str(run), *options, *TINY]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--device", "cpu", "--limit", "20"]) == 0
    assert TASKS[name].metric in capsys.readouterr().out.lower()
    text = "the <mask> film of a story" if name == "masked_words" else "the film of a story"
    assert main(["generate", str(run), text, "--device", "cpu", "--no-png"]) == 0
    said = capsys.readouterr().out
    assert name == "span_corruption" or re.search(r"^the/\S+ \S+/\S+ ", said, re.MULTILINE)
    # The film's words are known, the verdict's too; the lowest layers stay, the others learn ever slower downwards.
    options = ["--freeze", "2", "--layer-rate", "0.9", "--steps", "40", "--lr", "1e-2", "--evaluations", "1"]
    options += ["--device", "cpu", "--debug", "--out", str(tuned)]
    assert main(["finetune", "sentiment", "--from", str(run), *options]) == 0
    printed = capsys.readouterr().err
    known, every = map(int, re.search(r"(\d+) of (\d+) source", printed).groups())
    assert known == every
    before, after = (load_model(place).model.state_dict() for place in (run, tuned))
    assert torch.equal(before["encoder.blocks.0.attention.q.weight"], after["encoder.blocks.0.attention.q.weight"])
    assert not torch.equal(before["encoder.blocks.1.attention.q.weight"], after["encoder.blocks.1.attention.q.weight"])


def test_a_language_model_does_not_see_what_comes():
    torch.manual_seed(0)
    model = NextToken(Config(20, 20, d_model=16, nheads=2, d_ff=32)).eval()
    src = torch.randint(3, 20, (2, 9))
    other = src.clone()
    other[:, 6:] = 5
    given, changed = model(src), model(other)
    assert given.shape == (2, 9, 20)
    assert torch.equal(given[:, :6], changed[:, :6]) and not torch.equal(given[:, 6:], changed[:, 6:])
    with pytest.raises(ValueError, match="src_vocab=20 and tgt_vocab=21 must be equal"):
        NextToken(Config(20, 21))


def test_a_recurrent_network_would_see_what_comes(folder, capsys):
    assert main(["train", "next_word", "--model", "gru"]) == 2
    assert "model='gru' is not for tasks from left to right; allowed: transformer" in capsys.readouterr().err


def test_missing_reviews_are_named_with_the_three_places(tmp_path, monkeypatch, capsys):
    def refuse(*args, **words):
        raise OSError("no network")

    monkeypatch.setenv("UNDIVIDED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("undivided.tasks.find.urllib.request.urlopen", refuse)
    assert main(["train", "masked_words", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr().err
    assert (
        "(1)" in printed and "(2) the cache" in printed and "(3) the download from https://github.com/nltk" in printed
    )
