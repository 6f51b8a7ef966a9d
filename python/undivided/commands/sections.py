"""Parts of a README that a command writes, between two comments."""

from __future__ import annotations

from . import CommandError


def with_section(text: str, name: str, body: str) -> str:
    """The text with `body` between the marks of the section `name`.

    Raises:
        CommandError: the marks are not there, once each and in order.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, found, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end or begin in tail or end in tail:
        raise CommandError(f"the file has no marks {begin.strip()} and {end}, or has them twice")
    return f"{head}{begin}{body}\n{end}{tail}"
