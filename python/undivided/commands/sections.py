"""Parts of a README that a command writes, between two comments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from . import CommandError


def read_sections(path: Path) -> str:
    """The text of the file.

    Raises:
        FileNotFoundError: it is not there.
        CommandError: it is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not text in UTF-8: {error}") from error


def write_sections(path: Path, bodies: Mapping[str, str]) -> None:
    """Writes {name of a section: body} between their marks in the file, all of them or none.

    Raises:
        FileNotFoundError, CommandError: see `read_sections` and `with_section`.
    """
    from ..training.checkpoint import write_atomically  # not for `undivided info`, which should be quick

    text = read_sections(path)
    for name, body in bodies.items():
        text = with_section(text, name, body, str(path))
    write_atomically(path.resolve(), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def with_section(text: str, name: str, body: str, file: str) -> str:
    """The text with `body` between the marks of the section `name`.

    Raises:
        CommandError: the marks are not there, once each and in order; it says of which file.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, found, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end or begin in tail or end in tail:
        raise CommandError(f"{file} has no marks {begin.strip()} and {end}, or has them twice")
    return f"{head}{begin}{body}\n{end}{tail}"
