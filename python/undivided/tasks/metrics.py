"""Scores of symbol sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Symbols = Sequence[str]


def edit_distance(a: Symbols, b: Symbols) -> int:
    """Fewest insertions, deletions and substitutions that turn `a` into `b` (Levenshtein, 1966)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[len(b)]


def closest(output: Symbols, references: Sequence[Symbols]) -> tuple[int, int]:
    """(edit distance, length) of the reference that is nearest to `output`; the first listed wins a tie.

    Raises:
        ValueError: there are no references.
    """
    if not references:
        raise ValueError("a score needs at least 1 reference, 0 were given")
    return min(((edit_distance(output, one), len(one)) for one in references), key=lambda pair: pair[0])


def error_rates(outputs: Mapping[str, Symbols], references: Mapping[str, Sequence[Symbols]]) -> dict[str, float]:
    """Phoneme and word error rate, in percent, as papers on pronunciation score them.

    A word is right when its output equals any of its references. The phoneme error rate is the number of edits to the
    closest reference over the number of phonemes in those closest references.

    Args:
        outputs: one output a word.
        references: one or more references for exactly the same words.

    Returns:
        {"per": percent, "wer": percent, "words": count}.

    Raises:
        ValueError: the words differ, or there are none.
    """
    if not references or outputs.keys() != references.keys():
        raise ValueError(
            f"outputs and references must be of the same words, at least one; "
            f"given {len(outputs)} and {len(references)}, {len(outputs.keys() ^ references.keys())} of them unpaired"
        )
    edits = symbols = wrong = 0
    for word, output in outputs.items():
        distance, length = closest(output, references[word])
        edits += distance
        symbols += length
        wrong += distance > 0
    return {"per": 100.0 * edits / max(symbols, 1), "wer": 100.0 * wrong / len(references), "words": len(references)}
