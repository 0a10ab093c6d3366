"""Words numbered by arrays: always what `str.split` and a dictionary give."""

import random
import sys

import numpy as np
import pytest

from workbench.data import words
from workbench.data.tables import Numbering
from workbench.data.words import Words

# short and long at the edges of both integers, NUL, signs of two to four bytes, all kinds of blanks
PARTS = ["a", "b", "ab", "ba", "<eos>", "\0", "é", "“", "\U0001f600", "x" * 7, "y" * 8, "z" * 16]
BLANKS = [" ", "\n", "\t", "\x0b", "\x1c", "\x1f", "\r\n", "  "]
WIDE = ["\xa0", "\u2003", "\u3000", "\x85", "\u2029"]


def plain(numbering, text):
    return [numbering[word] for word in text.split()]


@pytest.mark.parametrize("slot_bits", [1, 3, 20])
@pytest.mark.parametrize("blanks", [BLANKS, BLANKS + WIDE], ids=["narrow", "wide"])
def test_numbers_are_those_of_a_dictionary(monkeypatch, slot_bits, blanks):
    monkeypatch.setattr(words, "SLOT_BITS", slot_bits)
    draw = random.Random(slot_bits)
    ours, theirs = Words(), Numbering()
    for _ in range(150):
        pieces = [
            "".join(draw.choices(PARTS[: draw.randint(1, len(PARTS))], k=draw.randint(0, 4)))
            + draw.choice(blanks)
            for _ in range(draw.randint(0, 60))
        ]
        text = "".join(pieces)
        assert ours.ids(text).tolist() == plain(theirs, text)
    assert ours.numbering == theirs and list(ours.numbering) == list(theirs)


def test_every_word_of_many_is_found_again():
    names = [f"{n:x}" + "-" * (n % 15) for n in range(200_000)]
    ours = Words()
    for _ in range(2):
        assert (ours.ids(" ".join(names)) == np.arange(len(names))).all()


def test_words_that_begin_alike_differ():
    alike = ["x" * n for n in range(1, 20)] + ["x" * 8 + "y", "x" * 16 + "y", "x\0", "x\0\0"]
    ours = Words()
    for text in (" ".join(alike), " ".join(reversed(alike))):
        found = ours.ids(text).tolist()
        assert found == [ours.numbering[word] for word in text.split()]
    assert len(ours.numbering) == len(alike)


def test_blanks_are_those_of_split():
    blanks = [c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()]
    ascii_ones = [c for c in blanks if ord(c) < 128]
    assert [chr(n) for n in np.flatnonzero(words.BLANK)] == ascii_ones
    assert all(words.WIDE_BLANKS.search(c) for c in blanks if c not in ascii_ones)


def test_no_words():
    for text in ("", " ", "\n\n"):
        assert Words().ids(text).tolist() == []
