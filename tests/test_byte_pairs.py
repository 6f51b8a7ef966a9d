"""Byte-pair encoding: exact on any bytes, kept whole in a file's header, clear about what is missing."""

import json
import random
import sys

import pytest

from undivided.tasks import BEGIN, END, PAD, from_header, to_header
from undivided.tasks.byte_pairs import BytePairs
from undivided.tasks.vocabulary import SPECIAL

TEXTS = [("the", "cat", "sat", "on", "the", "mat."), ("the", "caf\u00e9", "in", "1949,", "the", "cats'")] * 3
EVERY_BYTE = bytes(range(256))


@pytest.fixture(scope="module")
def pieces() -> BytePairs:
    return BytePairs.of(TEXTS, 272)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        EVERY_BYTE,
        EVERY_BYTE[::-1],  # no text in UTF-8
        b"\xff\xfe\x00\x80",
        b"  two  spaces, a tab\tand a line\r\n\n",
        "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 e\u0301".encode(),
        "\u0120\u0100<pad> <end>".encode(),  # the characters and marks that stand for others inside
        random.Random(5).randbytes(5000),
    ],
    ids=["empty", "every byte", "reversed", "no text", "white space", "scripts", "marks", "random"],
)
def test_any_bytes_come_back(pieces, data):
    ids = pieces.cut(data)
    assert pieces.join(ids) == data
    assert all(len(SPECIAL) <= number < len(pieces) for number in ids)


def test_words_come_back_and_frequent_ones_are_one_piece(pieces):
    words = ("the", "cat", "zigzag,", "caf\u00e9", "\u65e5\u672c", "'quoted'", "x")
    ids = pieces.encode(words)
    assert pieces.decode([BEGIN, *ids, END, 7, 8]) == words and pieces.decode([*ids, PAD]) == words
    assert pieces.pieces(words)[:2] == (" the", " cat")
    assert "".join(pieces.pieces(("the", "zigzag,", "'quoted'"))) == " the zigzag, 'quoted'"
    assert "".join(pieces.pieces(("\u65e5",))) == " " + "\ufffd" * 3  # a byte a piece, of which none is a letter
    assert pieces.encode(()) == [] and pieces.decode([]) == ()


def test_bytes_that_are_no_text_are_replaced_in_words(pieces):
    assert pieces.decode(pieces.cut(b" a\xff b")) == ("a\ufffd", "b")


def test_no_piece_goes_across_words_or_kinds_of_characters(pieces):
    for piece in (pieces.join([number]) for number in range(len(SPECIAL) + 256, len(pieces))):
        body = piece.removeprefix(b" ")
        assert b" " not in body
        assert not (b"." in body and body != b"." * len(body)), piece
    assert b" mat" in {pieces.join([number]) for number in range(len(SPECIAL), len(pieces))}


def test_the_same_text_gives_the_same_pieces_and_no_more_than_asked(pieces):
    again = BytePairs.of(iter(TEXTS), 272)
    assert again.symbols == pieces.symbols and again.tokenizer == pieces.tokenizer
    assert len(pieces) == len(SPECIAL) + 272
    assert len(BytePairs.of([("a", "b")], 1000)) < len(SPECIAL) + 256 + 3  # there is nothing more to merge


def test_a_header_holds_it_whole(pieces):
    again = from_header(json.loads(json.dumps(to_header(pieces))))
    assert type(again) is BytePairs and again.symbols == pieces.symbols
    assert again.cut(EVERY_BYTE * 2) == pieces.cut(EVERY_BYTE * 2)


def test_without_the_library_it_joins_but_cannot_cut(pieces, monkeypatch):
    ids, header = pieces.encode(("the", "cat")), to_header(pieces)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    again = from_header(header)
    assert again.decode(ids) == ("the", "cat")
    for act in (lambda: again.encode(("the",)), lambda: BytePairs.of(TEXTS, 272)):
        with pytest.raises(ImportError, match=r"tokenizers is not installed .*pip install 'undivided\[translation\]'"):
            act()


def test_bad_input_is_refused(pieces):
    with pytest.raises(ValueError, match="size=255 must be at least 256"):
        BytePairs.of(TEXTS, 255)
    for bad in ("two words", "", "tab\t"):
        with pytest.raises(ValueError, match="is not a word: words are not empty"):
            pieces.encode(("fine", bad))
