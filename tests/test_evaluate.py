"""What evaluate prints and refuses, of a model whose scores the test makes up."""

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
