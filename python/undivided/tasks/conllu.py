"""The CoNLL-U format of Universal Dependencies, as far as a part of speech is concerned."""

from __future__ import annotations

import hashlib


def forms_and_tags(content: bytes) -> bytes:
    """CoNLL-U to `FORM<TAB>UPOS` lines, an empty line between sentences.

    Comments, ranges of words that are written as one (`1-2`) and words that are not written (`1.1`) are left out.

    Raises:
        ValueError: a line has fewer than 4 columns; the text gives its number.
    """
    sentences: list[list[str]] = [[]]
    for number, line in enumerate(content.decode().split("\n"), start=1):
        if not line:
            sentences.append([])
        elif not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) < 4:
                raise ValueError(f"line {number} has {len(columns)} columns, CoNLL-U has 10")
            if columns[0].isdigit():
                sentences[-1].append(f"{columns[1]}\t{columns[3]}")
    return ("\n\n".join("\n".join(rows) for rows in sentences if rows) + "\n").encode()


def blocks_digest(content: bytes) -> str:
    """sha256 of the sentences in sorted order: the documents of a treebank come in several orders."""
    return hashlib.sha256(b"\n\n".join(sorted(content.strip().split(b"\n\n")))).hexdigest()
