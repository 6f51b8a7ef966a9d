"""The command line: exit codes and one-line errors."""

import os
import subprocess
import sys

import pytest

from undivided import __version__, cli
from undivided.commands import CommandError, tasks
from undivided.commands.sections import write_sections


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_no_command_prints_help(capsys):
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_info_names_every_part(capsys):
    assert cli.main(["info", "--backends"]) == 0
    out = capsys.readouterr().out
    for word in ("extension", "cuda build", "triton", "gpu", "auto takes:"):
        assert word in out


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fly"])
    assert stop.value.code == 2
    assert "invalid choice: 'fly'" in capsys.readouterr().err


def test_a_number_that_is_too_large_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(tasks, "run", lambda args: int(1e400))
    assert cli.main(["tasks"]) == 2
    assert capsys.readouterr().err == "undivided tasks: OverflowError: cannot convert float infinity to integer\n"


def test_output_that_nobody_reads_any_more_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "undivided", "data", "list"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


MARKED = "ü\n<!-- a:begin -->\nold\n<!-- a:end -->\n"


def test_sections_of_a_file_are_replaced_whole_or_not_at_all(tmp_path):
    path, link = tmp_path / "README.md", tmp_path / "link.md"
    path.write_text(MARKED, encoding="utf-8")
    link.symlink_to(path)
    with path.open(encoding="utf-8") as before:
        write_sections(link, {"a": "é"})
        assert before.read() == MARKED
    assert path.read_text(encoding="utf-8") == MARKED.replace("old", "é") and link.is_symlink()


def test_a_file_without_marks_or_of_other_bytes_is_named(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(MARKED, encoding="utf-8")
    with pytest.raises(CommandError, match=r"README.md has no marks <!-- b:begin -->"):
        write_sections(path, {"a": "new", "b": "new"})
    assert path.read_text(encoding="utf-8") == MARKED
    path.write_bytes(MARKED.encode("latin-1"))
    with pytest.raises(CommandError, match=r"README.md is not text in UTF-8: .* can't decode byte 0xfc"):
        write_sections(path, {"a": "new"})
