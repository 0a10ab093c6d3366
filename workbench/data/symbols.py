"""What counts as a symbol of a text, and a chunk of text as counted symbols.

Words get provisional ids in order of first appearance, which wait on disk (a spool) until the
vocabulary is known. Bytes and characters are quicker read again than spooled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workbench.data.pieces import WORD_CHARACTERS, Piece, blocks, long_word, raw_blocks
from workbench.data.tables import NEVER, Table, load, save
from workbench.data.vocabulary import (
    DECIMAL,
    END_OF_LINE,
    N_CODE_POINTS,
    Level,
    Vocabulary,
    code_points,
)
from workbench.data.words import Words

NEWLINE, BLANK = ord("\n"), ord(" ")
PART_WORDS = 1_000_000
"""different words that one table holds; with more a new part begins"""
SPOOL_BYTES = 4 << 20


class Symbols(NamedTuple):
    """What the symbols of a text are, before they have ids.

    Bytes are named by their decimal number, characters and words by themselves.
    """

    level: Level
    """what a symbol is in the files: a byte, a character, or a word between blanks"""
    newline: str | None = END_OF_LINE
    """name of the symbol that ends a line; None where ends of lines are no tokens"""
    blank: str = " "
    """char level: which character stands for a blank"""
    universal: bool = False
    """word level: `\\r\\n` and `\\r` end a line too"""
    lower_case: bool = False
    """word level: all letters small"""
    replace: bool = False
    """what is no UTF-8 becomes U+FFFD, instead of an error"""

    def names(self, codes: np.ndarray) -> list[str]:
        """The symbols of bytes or code points."""
        name = DECIMAL.__getitem__ if self.level == "byte" else chr
        return [str(self.newline) if code == NEWLINE else name(code) for code in codes.tolist()]


class Part(NamedTuple):
    """A stretch of one split: where its symbols are, and how many tokens they give."""

    pieces: list[Piece]
    stem: str
    """of the table and the spool"""
    tokens: int
    replaced: int = 0
    """places that were no UTF-8"""

    @classmethod
    def of(cls, plain: Any) -> Part:
        """From what came through a pipe."""
        pieces, *rest = plain
        return cls(list(map(piece_of, pieces)), *rest)


def piece_of(plain: Any) -> Piece:
    """From what came through a pipe."""
    path, start, stop = plain
    return Piece(None if path is None else Path(path), start, stop)


def count(symbols: Symbols, pieces: list[Piece], stem: str) -> list[Part]:
    """Count the symbols of a chunk: tables, and spools at word level, whose names begin with stem.

    Raises:
        DataError: the text cannot be decoded, or has a word without end.
    """
    replaced: list[int] = []
    if symbols.level == "word":
        parts = list(_count_words(symbols, pieces, stem, replaced))
    else:
        parts = [_count_codes(symbols, pieces, stem, replaced)]
    return [part._replace(replaced=sum(replaced)) if part is parts[-1] else part for part in parts]


def _count_words(
    symbols: Symbols, pieces: list[Piece], stem: str, replaced: list[int]
) -> Iterator[Part]:
    texts = _lines(symbols, pieces, replaced)
    for number, text in enumerate(texts):
        yield _count_part(texts, text, pieces, f"{stem}-{number}")


def _lines(symbols: Symbols, pieces: Sequence[Piece], replaced: list[int]) -> Iterator[str]:
    """Words between blanks, the end of each line among them if it is a token."""
    for text in blocks("word", pieces, replaced if symbols.replace else None):
        if symbols.lower_case:
            text = text.lower()
        if symbols.universal:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield text if symbols.newline is None else text.replace("\n", f" {symbols.newline} ")


def _count_part(texts: Iterator[str], text: str | None, pieces: list[Piece], stem: str) -> Part:
    """Number the words of blocks until the table is full."""
    words, tokens = Words(), 0
    numbering = words.numbering
    with Path(f"{stem}.ids").open("wb") as spool:
        while text is not None:
            ids = words.ids(text)
            spool.write(ids.data)
            tokens += len(ids)
            text = next(texts, None) if len(numbering) < PART_WORDS else None
    counts = np.zeros(len(numbering), np.int64)
    for ids in spooled(stem, np.dtype(np.int32)):
        counts += np.bincount(ids, minlength=len(counts))
    if numbering and max(map(len, numbering)) > WORD_CHARACTERS:
        raise long_word(pieces[0].path, pieces[0].start)
    order = np.arange(len(numbering))
    save(stem, Table(list(numbering), order, order, counts))
    return Part([], stem, tokens)


def _count_codes(symbols: Symbols, pieces: list[Piece], stem: str, replaced: list[int]) -> Part:
    """Count bytes or characters, which number themselves."""
    size = 256 if symbols.level == "byte" else N_CODE_POINTS
    counts, firsts, read = np.zeros(size, np.int64), np.full(size, NEVER), 0
    for codes in _codes(symbols, pieces, replaced):
        seen = np.bincount(codes)
        counts[: len(seen)] += seen
        if (firsts[np.flatnonzero(seen)] == NEVER).any():
            # backwards: of several places the last written one stays
            at = np.full(len(seen), NEVER)
            at[codes[::-1]] = np.arange(read + len(codes) - 1, read - 1, -1)
            firsts[: len(seen)] = np.minimum(firsts[: len(seen)], at)
        read += len(codes)
    found = np.flatnonzero(counts)
    save(stem, Table(symbols.names(found), found, firsts[found], counts[found]))
    return Part(pieces, stem, int(counts.sum()))


def _codes(symbols: Symbols, pieces: Sequence[Piece], replaced: list[int]) -> Iterator[np.ndarray]:
    """The text as bytes or code points, without ends of lines if they are no tokens."""
    if symbols.level == "byte":
        # the quickest way to drop one value
        drop = b"\n" if symbols.newline is None else b""
        for _, _, block in raw_blocks(pieces):
            yield np.frombuffer(block.translate(None, drop) if drop else block, np.uint8)
        return
    for text in blocks("char", pieces, replaced if symbols.replace else None):
        if symbols.blank != " ":
            text = text.replace(" ", symbols.blank)
        if symbols.newline is None:
            text = text.replace("\n", "")
        yield np.frombuffer(text.encode(), np.uint8) if text.isascii() else code_points(text)


def renumber(vocabulary: Vocabulary, part: Part) -> int:
    """Write down which id of the vocabulary each symbol of a part has, for `final`.

    Returns:
        how many tokens of the part are `<unk>`.
    """
    table = load(part.stem)
    found = vocabulary.find(table.symbols)
    ids_of = np.zeros(int(table.ids.max(initial=0)) + 1, vocabulary.dtype())
    ids_of[table.ids] = found
    np.save(f"{part.stem}.final.npy", ids_of)
    return int(table.counts[found == vocabulary.unknown].sum())


def final(symbols: Symbols, part: Part) -> Iterator[np.ndarray]:
    """The ids of a part that `renumber` has seen, block by block.

    Args:
        symbols: what its text was counted as.
        part: what `count` gave.
    """
    ids_of = np.load(f"{part.stem}.final.npy")
    if symbols.level == "word":
        return (ids_of[ids] for ids in spooled(part.stem, np.dtype(np.int32)))
    return (ids_of[codes] for codes in _codes(symbols, part.pieces, []))


def spooled(stem: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The ids of a spool, block by block."""
    with Path(f"{stem}.ids").open("rb") as file:
        while block := file.read(SPOOL_BYTES):
            yield np.frombuffer(block, dtype)


def encode(vocabulary: Vocabulary, pieces: list[Piece], stem: str) -> Part:
    """Spool the ids that a vocabulary made beforehand gives to a chunk."""
    tokens = 0
    with Path(f"{stem}.ids").open("wb") as spool:
        for block in blocks(vocabulary.level, pieces):
            ids = vocabulary.ids(block).astype(vocabulary.dtype())
            spool.write(ids.data)
            tokens += len(ids)
    return Part([], stem, tokens)
