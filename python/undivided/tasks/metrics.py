"""Scores of symbol sequences. Outputs and their references are in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from .packages import needed

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


def error_rates(outputs: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> dict[str, float]:
    """Phoneme and word error rate, in percent, as papers on pronunciation score them.

    A word is right when its output equals any of its references. The phoneme error rate is the number of edits to the
    closest reference over the number of phonemes in those closest references.

    Args:
        outputs: one output a word.
        references: one or more references for each of the same words.

    Returns:
        {"per": percent, "wer": percent, "words": count}.

    Raises:
        ValueError: there is another number of references than of outputs, or there are none.
    """
    check_paired(outputs, references)
    edits = symbols = wrong = 0
    for output, accepted in zip(outputs, references, strict=True):
        distance, length = closest(output, accepted)
        edits += distance
        symbols += length
        wrong += distance > 0
    return {"per": 100.0 * edits / max(symbols, 1), "wer": 100.0 * wrong / len(references), "words": len(references)}


def label_accuracy(outputs: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> dict[str, float]:
    """Part of all labels that are right, in percent. Each example has one reference, of as many labels as the output.

    Returns:
        {"accuracy": percent, "labels": count}.

    Raises:
        ValueError: outputs and references do not pair, an example has more than one reference, or another length.
    """
    check_paired(outputs, references)
    right = labels = 0
    for number, (output, accepted) in enumerate(zip(outputs, references, strict=True)):
        if len(accepted) != 1 or len(accepted[0]) != len(output):
            raise ValueError(
                f"example {number} has {len(output)} labels and references of {[len(one) for one in accepted]}; "
                "one reference of the same length is needed"
            )
        right += sum(given == wanted for given, wanted in zip(output, accepted[0], strict=True))
        labels += len(output)
    return {"accuracy": 100.0 * right / max(labels, 1), "labels": labels}


def bleu(outputs: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> dict[str, float]:
    """BLEU of all outputs together (Papineni et al. 2002), in percent, over words as they are given.

    It is what multi-bleu.perl prints for the same words, and what sacrebleu calls `tokenize none`.

    Returns:
        {"bleu": percent, "words": count in the outputs}.

    Raises:
        ValueError: outputs and references do not pair, or an output has no reference.
        ImportError: sacrebleu is not installed.
    """
    check_paired(outputs, references)
    if not all(references):
        raise ValueError("a score needs at least 1 reference for every output, 0 were given for one")
    library = needed("sacrebleu", "translation")
    texts = [[" ".join(one) for one in accepted] for accepted in references]
    # The library wants the first reference of every output, then the second ones, None where there is none.
    streams = [list(stream) for stream in zip_longest(*texts)]
    found = library.corpus_bleu([" ".join(output) for output in outputs], streams, tokenize="none", force=True)
    return {"bleu": found.score, "words": found.sys_len}


def check_paired(outputs: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> None:
    """Raises: ValueError unless there is a list of references for every output, and at least one."""
    if not references or len(outputs) != len(references):
        raise ValueError(
            f"every output needs its references, and there must be at least one; "
            f"given {len(outputs)} outputs and {len(references)} lists of references"
        )
