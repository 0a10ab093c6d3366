"""How the vocabulary of a user's text is made: counted in it, or given as a file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from workbench.config import Config
from workbench.data.bpe import MAX_SIZE, MIN_COUNT, PART_BYTES, BpeVocabulary
from workbench.data.pieces import SPLITS, Piece, mixed, raw_blocks
from workbench.data.prepare import Counted, Rule
from workbench.data.sources import find
from workbench.data.symbols import Symbols
from workbench.data.tables import Counts, Keep
from workbench.data.vocabulary import (
    BYTES,
    END_OF_LINE,
    UNKNOWN,
    CharVocabulary,
    Level,
    Vocabulary,
    WordVocabulary,
)
from workbench.errors import DataError, DataMissing

MOST_PAIRS = 1 << 20
"""tokens of BPE: several times as many as anybody has used"""


class Learning(Config):
    """Which symbols get ids."""

    counted: Literal["train", "all"] = "train"
    """Whose symbols: those of `train`, or of `all` splits, the rule of some of the papers' codes,
    by which held-out text leaks into the vocabulary."""
    min_count: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Occurrences at least: a rarer symbol is `<unk>`, a rarer pair of BPE is not joined; null: 1,
    for BPE 2."""
    max_size: Annotated[int, Field(ge=3, lt=1 << 31)] | None = None
    """Symbols at most, `<eos>` and `<unk>` among them: the most frequent; null for all, for BPE
    16,384."""
    file: str | None = None
    """A vocabulary of yours instead, UTF-8, in order of the ids. Word level: the first word of each
    line, with `<eos>` and `<unk>` in front unless they are among them. Char level: a character a
    line, after `<unk>`; `\\n`, `\\t`, `\\\\` and `\\u3000` as in JSON. BPE: a tokenizer.json."""
    lower_case: bool = False
    """Word level: all letters small."""
    end_of_line: bool = True
    """Word level: `<eos>` stands for each end of line; else it is a blank like others."""

    def fault(self, level: Level) -> str:
        """What says nothing at a level, or beside a file; "" where all is well."""
        changed = {name for name in Learning.model_fields if getattr(self, name) != default(name)}
        if level == "byte" and changed:
            return f"got {_listed(changed)} at byte level, which always has the 256 bytes"
        if level != "word" and (words := changed & {"lower_case", "end_of_line"}):
            return f"got {_listed(words)} at {level} level, expected this at word level only"
        if self.file and (beside := changed & {"counted", "min_count", "max_size"}):
            return f"got {_listed(beside)} beside file, which is taken as it is"
        if level == "bpe" and not 256 <= (self.max_size or MAX_SIZE) <= MOST_PAIRS:
            # the library takes memory for all of them, and ends the process where there is none
            return (
                f"got max_size {self.max_size}, expected at least the 256 bytes at BPE level and "
                f"at most {MOST_PAIRS:,}"
            )
        return ""

    def identity(self) -> list[Any]:
        """What tells one vocabulary file from another."""
        if self.file is None:
            return []
        path = Path(os.path.expanduser(self.file))
        if not path.is_file():
            raise DataMissing(
                f"corpus.vocabulary.file: got '{self.file}', which is no file here, expected a "
                "vocabulary. Correct the path; a relative one starts from the working directory "
                f"{Path.cwd()}."
            )
        (file,) = find([self.file], "", where="corpus.vocabulary.file")
        return [str(file.path), file.bytes, file.mtime_ns]

    def rule(self, level: Level, splits: Mapping[str, Sequence[Piece]], replace: bool) -> Rule:
        """How a text's symbols get ids.

        Args:
            level: of the symbols.
            splits: the text.
            replace: what is no UTF-8 becomes U+FFFD, at char and word level.

        Raises:
            DataMissing, DataError: the vocabulary file is not there, or is none.
        """
        path = Path(self.file).expanduser().absolute() if self.file is not None else None
        if level == "byte":
            return BYTES
        if level == "bpe":
            return BpeVocabulary.load(path) if path else self._pairs(splits)
        newline = "\n" if level == "char" else END_OF_LINE if self.end_of_line else None
        symbols = Symbols(level, newline, lower_case=self.lower_case, replace=replace)
        if path is not None:
            given = self._given(level, path)
            return Counted(symbols, lambda counts: given, Keep(max_size=0))
        # ties of characters are by code point, so those at the limit cannot be left out here
        most = self.max_size if level == "word" else None
        keep = Keep(self._splits, self.min_count or 1, most)
        return Counted(symbols, lambda counts: self._learn(level, counts), keep)

    @property
    def _splits(self) -> tuple[str, ...]:
        return SPLITS[: 1 if self.counted == "train" else 3]

    def _pairs(self, splits: Mapping[str, Sequence[Piece]]) -> BpeVocabulary:
        parts = mixed([piece for split in self._splits for piece in splits[split]], PART_BYTES)
        read = (b"".join(block for *_, block in raw_blocks([part])) for part in parts)
        size, count = self.max_size or MAX_SIZE, self.min_count or MIN_COUNT
        return BpeVocabulary.learn(read, size, count)

    def _learn(self, level: Level, counts: Counts) -> Vocabulary:
        total: Counter[str] = Counter()
        for split in self._splits:
            total.update(counts[split])
        if self.min_count and not total.keys() - {END_OF_LINE}:
            raise DataError(
                f"corpus.vocabulary.min_count: got {self.min_count}, expected no more than the "
                "occurrences of the most frequent symbol. Lower it."
            )
        if level == "char":
            return CharVocabulary.learn(total, self.max_size)
        return WordVocabulary.learn(total, self.max_size, self.lower_case, self.end_of_line)

    def _given(self, level: Level, path: Path) -> Vocabulary:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: got byte 0x{error.object[error.start]:02x} at byte offset {error.start}, "
                "expected a vocabulary in UTF-8. Convert the file."
            ) from None
        if not lines[-1]:
            del lines[-1]
        read = _character if level == "char" else _word
        symbols = [read(path, number, line) for number, line in enumerate(lines, 1)]
        if not symbols:
            raise DataError(f"{path}: got an empty file, expected a symbol on each line.")
        if twice := [symbol for symbol, n in Counter(symbols).items() if n > 1]:
            raise DataError(
                f"{path}: got {twice[0]!r} twice, expected every symbol once. Take one out."
            )
        if level == "char":
            return CharVocabulary([s for s in symbols if s != UNKNOWN])
        return WordVocabulary(symbols, self.lower_case, self.end_of_line)


def default(name: str) -> object:
    """A field's default."""
    return Learning.model_fields[name].default


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _word(path: Path, number: int, line: str) -> str:
    if words := line.split():
        return words[0]
    raise DataError(f"{path}: got line {number} empty, expected a word on it. Take it out.")


def _character(path: Path, number: int, line: str) -> str:
    symbol = line if len(line) == 1 or line == UNKNOWN else ""
    if line.startswith("\\") and len(line) > 1:
        try:
            symbol = str(json.loads(f'"{line}"'))
        except ValueError:
            symbol = ""
    if symbol == UNKNOWN or (len(symbol) == 1 and not "\ud800" <= symbol <= "\udfff"):
        return symbol
    raise DataError(
        f"{path}: got '{line:.20}' in line {number}, expected one character or one such as \\n, "
        "\\t, \\\\ or \\u3000. Correct the line, or use `level: word`."
    )
