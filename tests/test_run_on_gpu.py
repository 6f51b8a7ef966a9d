"""`make gpu` itself: what it refuses, and that a command that fails or hangs is told and does not stop the others."""

import sys

import pytest

import run_on_gpu
from run_on_gpu import NOT_FOUND, OUT_OF_TIME, PYTHON, Part, main, parts, run


def python(code: str) -> tuple[str, ...]:
    return PYTHON, "-c", code


def test_every_command_runs_and_the_first_failure_counts(tmp_path):
    commands = (python("print('one')"), python("raise SystemExit(3)"), ("no-such-tool",), python("print('last')"))
    assert run("part", Part(60, commands), tmp_path, 60) == 3
    log = (tmp_path / "part.log").read_text()
    assert "one\n[exit 0" in log and "[exit 3" in log and f"[exit {NOT_FOUND}" in log and "last\n[exit 0" in log
    assert "no-such-tool is not installed: nothing was checked" in log


def test_what_hangs_is_ended_and_its_output_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(run_on_gpu, "GRACE", 1)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('[]', flush=True); time.sleep(99)"
    assert run("part", Part(3, (python(deaf),), "result.json"), tmp_path, 3) == OUT_OF_TIME
    assert (tmp_path / "result.json").read_text() == "[]\n"
    assert "stopped: of the part's time 3 s were left" in (tmp_path / "part.log").read_text()


def test_all_parts_fit_ten_minutes(tmp_path):
    assert sum(part.seconds for part in parts(tmp_path).values()) <= 600
    assert all(part.seconds < run_on_gpu.ALONE for part in parts(tmp_path).values())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--out", ""], "say where the results go: make gpu OUT=folder"),
        (["--out", "x", "--part", "tests"], "PART=tests is unknown; allowed: build, test, verify, sanitize"),
        (["--out", "x"], "sees no GPU; only PART=build runs without one"),
    ],
)
def test_refusals(words, text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["run_on_gpu.py", *words])
    with pytest.raises(SystemExit, match=text) as refusal:
        main()
    assert isinstance(refusal.value.code, str)  # printed, with exit status 1
    assert not list(tmp_path.iterdir())


def test_each_part_leaves_a_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run_on_gpu, "no_gpu", lambda: None)
    fake = {"first": Part(60, (python("raise SystemExit(1)"),)), "second": Part(60, (python("print(2)"),))}
    monkeypatch.setattr(run_on_gpu, "parts", lambda out: fake)
    monkeypatch.setattr(sys, "argv", ["run_on_gpu.py", "--out", str(tmp_path / "out")])
    assert main() == 1
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line.split()[:3] for line in lines] == [["first", "exit", "1"], ["second", "exit", "0"]]
    assert capsys.readouterr().out.splitlines() == lines
