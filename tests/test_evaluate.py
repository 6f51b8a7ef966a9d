"""What evaluate prints and refuses, of a model whose scores the test makes up."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from undivided.cli import main
from undivided.commands import evaluate
from undivided.tasks import TASKS, Vocabulary
from undivided.training.models import SavedModel

MISTAKES = (("[it is]", "B [/b] AE", "B AE"),)


@pytest.fixture(autouse=True)
def scored(monkeypatch):
    """The calls that scored something."""
    calls = []

    def made_up(*given):
        calls.append(given)
        return evaluate.Evaluation({"wer": 25.0, "per": 6.0, "words": 4}, 4, 1.0, 1, (), MISTAKES)

    letters = Vocabulary("ab")
    saved = SavedModel(torch.nn.Linear(1, 1), "transformer", TASKS["g2p"], letters, letters, {"split": "s"})
    monkeypatch.setattr(evaluate, "load_model", lambda path, device: saved)
    monkeypatch.setattr(evaluate, "load_data", lambda *given: SimpleNamespace(comparable=False, split="s"))
    monkeypatch.setattr(evaluate, "evaluate", made_up)
    return calls


def test_mistakes_are_printed_as_they_are(capsys):
    assert main(["evaluate", "run", "--mistakes", "1", "--device", "cpu"]) == 0
    assert "  [it is]          B [/b] AE                        wanted B AE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--limit", "-3"], "--limit -3 must be at least 1"),
        (["--limit", "0"], "--limit 0 must be at least 1"),
        (["--batch-size", "-3"], "--batch-size -3 must be at least 1"),
        (["--beams", "0"], "--beams 0 must be at least 1"),
        (["--mistakes", "-3"], "--mistakes -3 must be at least 0"),
        (["--csv", "other.csv/rows.csv"], "other.csv/rows.csv cannot be written"),
        (["--csv", "."], ". is a folder or a device, a file is needed"),
        (["--csv", "other.csv"], "other.csv has the columns a, b; a result has also task"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused_before_anything_is_scored(scored, options, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("a,b\n1,2\n")
    assert main(["evaluate", "run", "--device", "cpu", *options]) == 2
    assert text in capsys.readouterr().err and not scored


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_score_is_printed_also_where_its_row_cannot_be_written(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "append_row", lambda *given: (_ for _ in ()).throw(OSError("disk full")))
    command = ["evaluate", "run", "--device", "cpu", "--csv", str(tmp_path / "rows.csv"), *options]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert "25.0" in printed.out and "disk full" in printed.err
