"""Any text of the user's: a file, or a folder of files, at byte, character or word level.

A file is split by position, as enwik8 is: of n bytes the first floor(0.9 n) train, up to
floor(0.95 n) valid, the rest test (above byte level a cut moves forward to the end of the
character or word it falls in). A folder with 20 files or more is split by whole files; a smaller
one, or one whose few large files leave nothing for valid or test, by position in its files joined
in sorted order. A newline follows each file of a folder.
Word level is `line.split()` with `<eos>` for each end of line.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from workbench.config import model_validator
from workbench.data import store
from workbench.data.corpus import Corpus, CorpusConfig
from workbench.data.pieces import (
    NEWLINE,
    Member,
    Piece,
    ends_line,
    member,
    split_by_file,
    split_by_position,
    whole,
)
from workbench.data.prepare import Counted, Rule
from workbench.data.symbols import Symbols
from workbench.data.vocabulary import (
    BYTES,
    ByteVocabulary,
    CharVocabulary,
    Level,
    WordVocabulary,
)
from workbench.errors import DataError, DataMissing

logger = logging.getLogger("workbench")
FILES_FOR_WHOLE = 20
# held-out text never shapes the vocabulary: train alone is counted
RULES: dict[str, Rule] = {
    "byte": BYTES,
    "char": Counted(
        Symbols("char", newline="\n"), lambda counts: CharVocabulary.learn(counts["train"])
    ),
    "word": Counted(Symbols("word"), lambda counts: WordVocabulary.learn(counts["train"])),
}


class Text(CorpusConfig):
    """A local text file or folder."""

    kind: Literal["text"] = "text"
    path: str
    """File or folder; relative to the working directory, `~` is the home folder."""
    level: Level = "byte"
    """What a token is: a byte, a Unicode character, or a blank-separated word."""
    split: tuple[float, float, float] = (0.9, 0.05, 0.05)
    """Shares of train, valid and test."""
    glob: str = "**/*.txt"
    """Which files of a folder belong to the text; not used for a single file."""

    @model_validator(mode="after")
    def _possible(self) -> Text:
        if min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(
                f"split: got {list(self.split)}, expected three positive shares that sum to 1, "
                "such as [0.9, 0.05, 0.05]"
            )
        if not self.glob or Path(self.glob).is_absolute():
            raise ValueError(
                f"glob: got '{self.glob}', expected a pattern below the folder, such as '**/*.md'"
            )
        return self

    @property
    def dataset(self) -> str:
        return Path(self.path).stem

    @property
    def n_symbols(self) -> int | None:
        return ByteVocabulary.size if self.level == "byte" else None

    def open(self) -> Corpus:
        """Prepare the text if it or the options are new, then map the files.

        Raises:
            DataMissing: no such file or folder, or no file in it matches `glob`.
            DataError: the text is empty, too short to split, or not UTF-8 at char or word level.
        """
        path = Path(self.path).expanduser().absolute()
        members = self._members(path)
        options = {"level": self.level, "split": self.split, "single": path.is_file()}
        name = f"text-{_plain(path.stem)}-{self.level}-{store.key(members, options)}"
        return store.obtain(name, lambda folder: self._build(folder, path, members))

    def _members(self, path: Path) -> list[Member]:
        if path.is_file():
            members = [member(path, path.name)]
        elif path.is_dir():
            files = (f for f in path.glob(self.glob) if f.is_file())
            members = sorted(member(f, f.relative_to(path).as_posix()) for f in files)
        else:
            raise DataMissing(
                f"corpus.path: got '{self.path}', which is not there ({path}), expected a text "
                "file or a folder. Correct the path or put the text there; a relative path starts "
                f"from the working directory {Path.cwd()}."
            )
        if not members:
            raise DataMissing(
                f"corpus.path: got the folder {path} without a file that matches '{self.glob}', "
                "expected text files. Put them there, or set corpus.glob, for example '**/*.md'."
            )
        if sum(m.bytes for m in members) == 0:
            raise DataError(
                f"{path}: got an empty text (0 bytes in {len(members)} file(s)), expected text. "
                "Name another file in corpus.path."
            )
        return members

    def _build(self, folder: Path, path: Path, members: list[Member]) -> None:
        split_of: dict[str, str] = {}
        chosen = split_by_file(members, self.split)
        by_file = len(members) >= FILES_FOR_WHOLE and all(
            any(m.bytes for m in group) for group in chosen.values()
        )
        if by_file:
            split_of = {m.name: s for s, group in chosen.items() for m in group}
            splits = {s: whole(chosen[s]) for s in chosen}
        else:
            splits = split_by_position(self._joined(path, members), self.split, self.level)
        about = {
            "name": path.stem,
            "source": str(path),
            "split": list(self.split),
            "split_rule": "by whole files" if by_file else "by position in bytes",
        }
        store.write(folder, splits, RULES[self.level], members, split_of, about)
        logger.info("prepared %s: %d file(s) at %s level", path, len(members), self.level)

    def _joined(self, path: Path, members: list[Member]) -> list[Piece]:
        if path.is_dir():
            return whole(members)
        (only,) = members
        piece = Piece(only.path, 0, only.bytes)
        # a last line without its newline is a line all the same
        return [piece, NEWLINE] if self.level == "word" and not ends_line(piece) else [piece]


def _plain(stem: str) -> str:
    """A file name's stem as part of a folder name."""
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in stem)[:40] or "text"
