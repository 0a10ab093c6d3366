"""Symbols and their ids, at byte, character or word level (byte-pair encoding: `bpe.py`).

Byte level has the 256 byte values and nothing to learn. Ids of the other two: specials first, then
by falling count (ties: characters by code point, words by first appearance); a symbol that was not
counted is `<unk>`.
The texts of papers are prepared otherwise, each in its own way: `PreparedVocabulary`.
The processes that prepare a text import this module, so it does without PyTorch until it is asked.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Level = Literal["byte", "char", "word", "bpe"]
BYTEWISE: tuple[Level, ...] = ("byte", "bpe")
"""levels at which any bytes have ids, and an id stands for the same bytes wherever it is"""
UNKNOWN, END_OF_LINE = "<unk>", "<eos>"
SENTENCE, UNKNOWN_WORD = "<S>", "<UNK>"
"""of One Billion Word"""
N_CODE_POINTS = 0x110000


def printable(symbol: str) -> str:
    """A symbol as a label for plots: blanks and controls are made visible."""
    if symbol == " ":
        return "␣"
    if symbol == "\n":
        return "↵"
    if symbol.isprintable():
        return symbol
    return symbol.encode("unicode_escape").decode("ascii")


class Vocabulary(ABC):
    """The symbols of one corpus; `ids` of a block of text, and back."""

    level: Level
    size: int
    unknown: int | None = None
    """Id of `<unk>`; None where every text has ids."""

    @abstractmethod
    def ids(self, block: Any) -> np.ndarray:
        """Ids of a block of text as `blocks` yields it: bytes at byte and BPE level, else str."""

    def find(self, symbols: Sequence[str]) -> np.ndarray:
        """Ids of symbols as `tables` names them (bytes in decimal, `<eos>` for an end of line).

        Raises:
            DataError: a symbol has no id, and there is no `<unk>` to stand for it.
        """
        raise AssertionError(f"{type(self).__name__} is no vocabulary of counted symbols")

    @abstractmethod
    def decode(self, ids: Tensor) -> str:
        """The text that a 1-D tensor of ids stands for."""

    def raw(self, ids: Tensor) -> bytes:
        """The bytes of the text that a 1-D tensor of ids stands for."""
        return self.decode(ids).encode("utf-8")

    @abstractmethod
    def symbol(self, index: int) -> str:
        """A printable label of one id, for axes and tables."""

    def encode(self, text: str | bytes) -> Tensor:
        """Ids of a text as a 1-D int64 tensor; only those of `BYTEWISE` levels take bytes."""
        return tensor(self.ids(text))

    def dtype(self) -> np.dtype:
        """The smallest storage type that holds every id (little-endian)."""
        # two bytes have a sign where that is enough: PyTorch does little with the others
        sizes = {"u1": 1 << 8, "<i2": 1 << 15, "<u2": 1 << 16, "<i4": 1 << 31}
        return np.dtype(next(name for name, size in sizes.items() if self.size <= size))

    def save(self, path: Path) -> None:
        """Write the symbols as JSON; byte level has none to write."""
        path.write_text(json.dumps(self.symbols(), ensure_ascii=True), encoding="utf-8")

    def symbols(self) -> list[str] | dict[str, Any]:
        """All symbols in id order, as `restore` takes them; empty at byte level."""
        return []


class ByteVocabulary(Vocabulary):
    """Ids 0..255 are the byte values of the UTF-8 text (or of any file)."""

    level = "byte"
    size = 256

    def ids(self, block: bytes | str) -> np.ndarray:
        data = block.encode("utf-8") if isinstance(block, str) else block
        return np.frombuffer(data, dtype=np.uint8)

    def raw(self, ids: Tensor) -> bytes:
        return ids.numpy().astype(np.uint8).tobytes()

    def decode(self, ids: Tensor) -> str:
        return self.raw(ids).decode("utf-8", errors="replace")

    def symbol(self, index: int) -> str:
        return printable(chr(index)) if index < 0x80 else f"\\x{index:02x}"


BYTES = ByteVocabulary()
DECIMAL = [str(value) for value in range(256)]


class CharVocabulary(Vocabulary):
    """Ids of Unicode characters; id 0 is `<unk>`."""

    level = "char"
    unknown = 0

    def __init__(self, characters: list[str]) -> None:
        self._characters = characters
        self.size = len(characters) + 1
        self._id_of = np.zeros(N_CODE_POINTS, dtype=np.int32)
        codes = np.array([ord(c) for c in characters], dtype=np.int64)
        self._id_of[codes] = np.arange(1, self.size)

    @classmethod
    def learn(cls, counts: Mapping[str, int], max_size: int | None = None) -> CharVocabulary:
        """The characters that were counted; with `<unk>` no more than `max_size`."""
        ranked = sorted(counts, key=lambda c: (-counts[c], c))
        return cls(ranked[: None if max_size is None else max_size - 1])

    def ids(self, block: str) -> np.ndarray:
        return self._id_of[code_points(block)]

    def find(self, symbols: Sequence[str]) -> np.ndarray:
        return self._id_of[[ord(symbol) for symbol in symbols]]

    def decode(self, ids: Tensor) -> str:
        return "".join("\ufffd" if i == 0 else self._characters[i - 1] for i in ids.tolist())

    def symbol(self, index: int) -> str:
        return UNKNOWN if index == 0 else printable(self._characters[index - 1])

    def symbols(self) -> list[str]:
        return self._characters


class PreparedVocabulary(Vocabulary):
    """The symbols of a text that an original program prepared, in its own order.

    A prepared text is symbols parted by blanks, in lines: bytes as decimal numbers, characters
    with `_` for a blank, or words. Where `<eos>` is a symbol it stands for each end of line; where
    it is none, the ends of lines are no tokens. `<unk>` is special only where it is a symbol.

    Args:
        level: which of the three spellings.
        symbols: in order of their ids.
    """

    _end: str | None = END_OF_LINE
    _other = UNKNOWN

    def __init__(self, level: Level, symbols: list[str]) -> None:
        self.level, self._symbols, self.size = level, symbols, len(symbols)

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {symbol: index for index, symbol in enumerate(self._symbols)}

    @cached_property
    def unknown(self) -> int | None:  # type: ignore[override]
        """Id of `<unk>`, where it is a symbol."""
        return self._id_of.get(self._other)

    def ids(self, block: str) -> np.ndarray:
        """Ids of prepared text; errors as `find`."""
        return self.find(to_words(block, self._end if self._end in self._id_of else None))

    def find(self, symbols: Sequence[str]) -> np.ndarray:
        found = _look_up(self._id_of, symbols, -1)
        if found.size and found.min() < 0:
            if self.unknown is None:
                word = symbols[int(found.argmin())]
                raise DataError(
                    f"got the symbol '{word}', expected one of the {self.size} symbols of the "
                    "vocabulary, which has no <unk>. Use a text in the same symbols."
                )
            found[found < 0] = self.unknown
        return found

    def encode(self, text: str | bytes) -> Tensor:
        """Ids of a text as people write it; see `ids` for the errors."""
        return tensor(self.ids(spell(self.level, text)))

    def raw(self, ids: Tensor) -> bytes:
        between = b" " if self.level == "word" else b""
        text = between.join([self._bytes(self._symbols[i]) for i in ids.tolist()])
        return text.replace(b" \n", b"\n").replace(b"\n ", b"\n") if between else text

    def decode(self, ids: Tensor) -> str:
        return self.raw(ids).decode("utf-8", errors="replace")

    def _bytes(self, symbol: str) -> bytes:
        if symbol == self._end:
            return b"\n"
        if self.level == "byte":
            return bytes([int(symbol)])
        return (symbol.replace("_", " ") if self.level == "char" else symbol).encode("utf-8")

    def symbol(self, index: int) -> str:
        symbol = self._symbols[index]
        if self.level == "word":
            return printable(symbol)
        text = self._bytes(symbol)
        return BYTES.symbol(text[0]) if self.level == "byte" else printable(text.decode("utf-8"))

    def symbols(self) -> dict[str, Any]:
        return {"symbols": self._symbols}


class WordVocabulary(PreparedVocabulary):
    """Ids of blank-separated words; `<eos>` stands for each end of line, `<unk>` for other words.

    Args:
        words: in order of their ids; `<eos>` and `<unk>` come first unless they are among them.
        lower_case: make all letters of a text small.
        end_of_line: whether an end of line is a token.
    """

    def __init__(
        self, words: list[str], lower_case: bool = False, end_of_line: bool = True
    ) -> None:
        specials = [END_OF_LINE, UNKNOWN] if end_of_line else [UNKNOWN]
        super().__init__("word", [s for s in specials if s not in words] + words)
        self.lower_case, self.end_of_line = lower_case, end_of_line
        self._end = END_OF_LINE if end_of_line else None

    @classmethod
    def learn(
        cls,
        counts: Mapping[str, int],
        max_size: int | None = None,
        lower_case: bool = False,
        end_of_line: bool = True,
    ) -> WordVocabulary:
        """The words that were counted, in order of first appearance.

        Args:
            max_size: words at most, `<eos>` and `<unk>` among them: the most frequent.
        """
        specials = [END_OF_LINE, UNKNOWN] if end_of_line else [UNKNOWN]
        ranked = sorted(counts, key=counts.__getitem__, reverse=True)
        words = specials + [word for word in ranked if word not in specials]
        return cls(words[:max_size], lower_case, end_of_line)

    def ids(self, block: str) -> np.ndarray:
        return super().ids(block.lower() if self.lower_case else block)

    def symbols(self) -> dict[str, Any]:
        return {
            "words": self._symbols,
            "lower_case": self.lower_case,
            "end_of_line": self.end_of_line,
        }


class SentenceVocabulary(PreparedVocabulary):
    """The words of One Billion Word: `<S>` is the end of a line, `<UNK>` what has no id."""

    _end, _other = SENTENCE, UNKNOWN_WORD

    def __init__(self, symbols: list[str]) -> None:
        super().__init__("word", symbols)

    def symbols(self) -> dict[str, Any]:
        return {"sentences": self._symbols}


def spell(level: Level, text: bytes | str) -> str:
    """A text as `PreparedVocabulary` reads it: symbols parted by blanks, the same lines."""
    if level == "byte":
        data = text.encode("utf-8") if isinstance(text, str) else text
        return "\n".join(" ".join([DECIMAL[c] for c in line]) for line in data.split(b"\n"))
    assert isinstance(text, str), "above byte level a text is decoded"
    if level == "word":
        return text
    return "\n".join(" ".join(line.replace(" ", "_")) for line in text.split("\n"))


def restore(level: Level, path: Path) -> Vocabulary:
    """Read back what `Vocabulary.save` wrote."""
    symbols = json.loads(path.read_text(encoding="utf-8"))
    if level == "bpe":
        from workbench.data.bpe import BpeVocabulary  # here: it stands on this module

        return BpeVocabulary(symbols["tokenizer"])
    if "sentences" in symbols:
        return SentenceVocabulary(symbols["sentences"])
    if "symbols" in symbols:
        return PreparedVocabulary(level, symbols["symbols"])
    if level == "byte":
        return ByteVocabulary()
    return CharVocabulary(symbols) if level == "char" else WordVocabulary(**symbols)


def tensor(ids: np.ndarray) -> Tensor:
    """Ids as a 1-D int64 tensor."""
    import torch  # here: preparing a text needs none

    return torch.from_numpy(ids.astype(np.int64))


def _look_up(id_of: Mapping[str, int], symbols: Sequence[str], unknown: int) -> np.ndarray:
    return np.fromiter(map(id_of.get, symbols, repeat(unknown)), np.int32, len(symbols))


def code_points(text: str) -> np.ndarray:
    """The code points of a text, four bytes each."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def to_words(text: str, end: str | None) -> list[str]:
    """line.split() of every line, each end of line as a symbol; None: as a blank."""
    return (text if end is None else text.replace("\n", f" {end} ")).split()
