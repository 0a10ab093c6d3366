"""A corpus as byte ranges of files: cut in splits, read as a stream of blocks.

Nothing here holds a whole text in memory, so the size of a corpus is bounded by the disk.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from workbench.data.bpe import units
from workbench.data.vocabulary import Level
from workbench.errors import DataError

BLOCK_BYTES = 1 << 17
"""what is read at once: few enough words to stay in a core's cache"""
CHUNK_BYTES = 32 << 20
"""what one job counts or writes, of a text up to 0.5 GB"""
WORD_CHARACTERS = 1 << 20
"""a longer word is no word of a language"""
WORD_BYTES = 4 * WORD_CHARACTERS
_AHEAD = 1 << 16
# bytes of the longest blank and one more: what may be torn at the end of a read
_MARGIN = 4
# what `str.split` takes for a blank, in UTF-8; `\r\n` is not torn, and a blank is no part of a word
_BLANK = (
    rb"[\t-\r\x1c-\x20]|\xc2[\x85\xa0]|\xe1\x9a\x80"
    rb"|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
)
_ASCII_BLANKS = b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"
_EDGES = {
    "char": re.compile(rb"[^\x80-\xbf]"),
    "bpe": re.compile(rb"(?<=\n)"),
    "word": re.compile(rb"(?<=[ \t\n])|(?<=\r)(?!\n)|(?<!\r)(?=" + _BLANK + rb")"),
}
SPLITS = ("train", "valid", "test")
Fractions = tuple[float, float, float]


class Piece(NamedTuple):
    """Bytes `start` to `stop` of a file, or one newline where `path` is None."""

    path: Path | None
    start: int
    stop: int


# it follows every file of a folder, so that a model can see where one ends
NEWLINE = Piece(None, 0, 1)


class Member(NamedTuple):
    """One source file: its name inside the corpus, its place, size and modification time."""

    name: str
    path: Path
    bytes: int
    mtime_ns: int


def member(path: Path, name: str) -> Member:
    """The present size and modification time of a file."""
    stat = path.stat()
    return Member(name, path, stat.st_size, stat.st_mtime_ns)


def check_unchanged(members: Sequence[Member]) -> None:
    """Refuse a text of which a file changed or went away since it was listed."""
    for m in members:
        with readable(m.path):
            now = member(m.path, m.name)
        if now != m:
            raise DataError(
                f"{m.path}: got another size or modification time than at the start, expected a "
                "file at rest. Run again when it is no longer written to."
            )


def split_by_file(
    members: Sequence[Member], fractions: Fractions, largest: float = 1.0
) -> dict[str, list[Member]]:
    """Whole files to train, valid and test; no file is in two of them.

    The order is by sha256 of the name, which mixes folders and is the same everywhere; a file
    belongs to the split in which the middle of its bytes falls. Inside a split the files keep
    their sorted order.

    Args:
        members: the files, sorted.
        fractions: shares of train, valid and test, by bytes.
        largest: a file above this share of the smallest split goes to train whatever its place,
            so that no single file makes up a held-out split.
    """
    total = sum(m.bytes for m in members)
    # rounding: twenty equal files are 0.05 each, not a hair more
    large = round(min(f for f in fractions if f) * total * largest, 6)
    chosen: dict[str, str] = {m.name: "train" for m in members if m.bytes > large}
    rest = [m for m in members if m.bytes <= large]
    rest.sort(key=lambda m: hashlib.sha256(m.name.encode("utf-8", "surrogateescape")).digest())
    # held-out shares are of the whole; train takes what is left
    edges = (fractions[1] * total, (fractions[1] + fractions[2]) * total)
    for m, end in zip(rest, accumulate(m.bytes for m in rest), strict=True):
        middle = end - m.bytes / 2
        chosen[m.name] = "valid" if middle < edges[0] else "test" if middle < edges[1] else "train"
    return {s: [m for m in members if chosen[m.name] == s] for s in SPLITS}


def whole(members: Sequence[Member]) -> list[Piece]:
    """Files one after another, a newline after each."""
    return [p for m in members for p in (Piece(m.path, 0, m.bytes), NEWLINE)]


def mixed(pieces: Sequence[Piece], size: int) -> list[Piece]:
    """The pieces of files in ranges of at most `size` bytes, in the same mixed order everywhere.

    However few are read from the beginning on, they are spread evenly over the text.
    """
    ranges = [
        Piece(path, at, min(at + size, stop))
        for path, start, stop in pieces
        if path
        for at in range(start, stop, size)
    ]
    # their numbers with the bits in reverse: 0, 1/2, 1/4, 3/4, 1/8, ... of the way
    order = sorted(range(len(ranges)), key=lambda i: f"{i:064b}"[::-1])
    return [ranges[i] for i in order]


def ends_line(piece: Piece) -> bool:
    """Whether a range of a file ends with a newline."""
    assert piece.path is not None
    with readable(piece.path), piece.path.open("rb") as file:
        file.seek(max(piece.start, piece.stop - 1))
        return file.read(1) == b"\n"


def lines(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces whose last lines end: a last line without its newline is a line all the same."""
    return [q for p in pieces for q in ([p] if ends_line(p) else [p, NEWLINE])]


def stripped(piece: Piece) -> Piece:
    """A range of a file without the blanks (of ASCII) at its edges."""
    path, start, stop = piece
    assert path is not None
    with readable(path), path.open("rb") as file:
        while start < stop:
            file.seek(start)
            data = file.read(min(_AHEAD, stop - start))
            kept = len(data.lstrip(_ASCII_BLANKS))
            start += len(data) - kept
            if kept or not data:
                break
        while start < stop:
            first = max(start, stop - _AHEAD)
            file.seek(first)
            kept = len(file.read(stop - first).rstrip(_ASCII_BLANKS))
            stop = first + kept
            if kept:
                break
    return Piece(path, start, stop)


def split_by_position(
    pieces: Sequence[Piece], fractions: Fractions, level: Level
) -> dict[str, list[Piece]]:
    """Cut a text of n bytes at floor(0.9 n) and floor(0.95 n) for fractions (.9, .05, .05).

    This is the rule of enwik8. Above byte level a cut inside a character or word moves forward
    to its end.
    """
    total = sum(p.stop - p.start for p in pieces)
    # rounding first: 0.9 + 0.05 is a little less than 0.95 in binary
    cuts = [int(round(fractions[0] * total, 6)), int(round(sum(fractions[:2]) * total, 6))]
    result: dict[str, list[Piece]] = {s: [] for s in SPLITS}
    begin, edges = 0, [*cuts, total]
    for piece in pieces:
        end = begin + piece.stop - piece.start
        at = piece.start
        for index, name in enumerate(SPLITS):
            inside = min(edges[index], end) - begin + piece.start
            if index < 2 and piece.path is not None and piece.start < inside < piece.stop:
                # a line may be the whole text, so that even at BPE level it is cut
                symbol: Level = "char" if level == "bpe" else level
                inside = forward(piece.path, inside, piece.stop, symbol)
            if inside > at:
                result[name].append(Piece(piece.path, at, inside))
                at = inside
        begin = end
    return result


def forward(path: Path, position: int, stop: int, level: Level) -> int:
    """The first place from `position` on that tears no character (word; at BPE level line) in two.

    Raises:
        DataError: a word goes on for more than `WORD_BYTES`.
    """
    if level == "byte":
        return position
    at, edge = position, _EDGES[level]
    with readable(path), path.open("rb") as file:
        while at - position <= WORD_BYTES or level == "bpe":
            # one byte more at the front: what is no blank may end a word
            file.seek(at - 1)
            data = file.read(min(_AHEAD, stop - at + 1))
            last = at - 1 + len(data) >= stop or len(data) <= _MARGIN
            found = edge.search(data, 1)
            if found and (last or found.start() <= len(data) - _MARGIN):
                return at - 1 + found.start()
            if last:
                return stop
            at += len(data) - _MARGIN
    raise long_word(path, position)


def long_word(path: Path | None, position: int) -> DataError:
    """The fault of a text that is no text of words."""
    return DataError(
        f"{path}: got a word of more than {WORD_CHARACTERS:,} characters after byte offset "
        f"{position:,}, expected words parted by blanks. Use `level: byte` or `level: char`."
    )


def chunk_bytes(n_bytes: int) -> int:
    """What one job counts or writes, of a text of so many bytes.

    Every chunk has a table of nearly all common words, so those of a large text are larger.
    """
    return max(CHUNK_BYTES, min(n_bytes // 16, 4 * CHUNK_BYTES))


def chunks(
    pieces: Sequence[Piece], level: Level, size: int, alone: bool = False
) -> list[list[Piece]]:
    """The pieces in groups of about `size` bytes; a larger piece is cut where no symbol is torn.

    Args:
        pieces: of one split, in order.
        level: of the symbols.
        size: bytes.
        alone: begin a new group with every file.
    """
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        for part in _ranges(piece, level, size):
            # a newline stays with what it ends
            if not groups or (part.path and (room < part.stop - part.start or alone)):
                groups.append([])
                room = size
            groups[-1].append(part)
            room -= part.stop - part.start
    return groups


def _ranges(piece: Piece, level: Level, size: int) -> Iterator[Piece]:
    path, at, stop = piece
    while path is not None and stop - at > size:
        cut = forward(path, at + size, stop, level)
        yield Piece(path, at, cut)
        at = cut
    if at < stop:
        yield Piece(path, at, stop)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in a user's words that a file cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: got '{error.strerror or error}', expected a file that can be read. Mend its "
            "permissions, or run again if it was moved meanwhile."
        ) from None


def raw_blocks(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, int, bytes]]:
    """The bytes of the pieces in order, as (piece, offset in its file, block).

    Raises:
        DataError: a file cannot be read, or became shorter since it was listed.
    """
    for piece in pieces:
        if piece.path is None:
            yield piece, 0, b"\n"
            continue
        with readable(piece.path), piece.path.open("rb") as file:
            file.seek(piece.start)
            at = piece.start
            while at < piece.stop:
                block = file.read(min(BLOCK_BYTES, piece.stop - at))
                if not block:
                    raise DataError(
                        f"{piece.path}: got {at} bytes, expected {piece.stop}: the file became "
                        "shorter while it was read. Run again when it is no longer written to."
                    )
                yield piece, at, block
                at += len(block)


def blocks(
    level: Level, pieces: Sequence[Piece], replaced: list[int] | None = None
) -> Iterator[Any]:
    """What `Vocabulary.ids` takes: bytes at byte and BPE level, else str; no symbol is torn.

    Args:
        level: of the symbols.
        pieces: what to read.
        replaced: takes numbers of places that were no UTF-8 and are U+FFFD now; None refuses them.

    Raises:
        DataError: the text is no UTF-8 (char and word level).
    """
    if level == "byte":
        for _, _, block in raw_blocks(pieces):
            yield block
        return
    if level == "bpe":
        yield from units(block for _, _, block in raw_blocks(pieces))
        return
    if level == "char":
        yield from _decoded(pieces, level, replaced)
        return
    held: list[str] = []
    for text in _decoded(pieces, level, replaced):
        # only the new part is searched, so a line of any length costs its length once
        if cut := max(text.rfind(" "), text.rfind("\n")) + 1:
            yield "".join(held) + text[:cut]
            held = []
        held.append(text[cut:])
    if rest := "".join(held):
        yield rest


def _decoded(pieces: Sequence[Piece], level: Level, replaced: list[int] | None) -> Iterator[str]:
    torn, errors = b"", "strict" if replaced is None else "replace"
    for piece, at, block in raw_blocks(pieces):
        data = torn + block
        last = piece.path is None or at + len(block) == piece.stop
        try:
            text, used = codecs.utf_8_decode(data, errors, last)
        except UnicodeDecodeError as error:
            offset = at - len(torn) + error.start
            wide = offset == 0 and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            raise DataError(
                f"{piece.path}: got byte 0x{data[error.start]:02x} at byte offset {offset} "
                f"({'UTF-16, it seems' if wide else error.reason}), expected UTF-8 text for "
                f"`level: {level}`. Convert the file to UTF-8; a text of your own (`kind: text`) "
                "may also have `invalid: replace`, or `level: byte`, which takes any bytes."
            ) from None
        if replaced is not None:
            replaced.append(text.count("\ufffd") - data.count("\ufffd".encode(), 0, used))
        torn = data[used:]
        yield text
