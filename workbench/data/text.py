"""Any text of the user's: files, folders, patterns, archives; bytes, characters, words or BPE.

Splits. By position, as enwik8: of n bytes the first floor(0.9 n) train, up to floor(0.95 n) valid,
the rest test (above byte level a cut moves forward to the end of the character or word it falls
in). By file: whole files, mixed by the sha256 of their names. Given: the recipe names the files of
each split. `auto` takes 20 files or more by file, and fewer by position, or if their few large
files leave nothing for valid or test. A newline follows each file of several, but for a file that
is a given split by itself. A file of train in a held-out split is refused, a copy warned of.

Levels. Bytes and BPE take any file as it is. Characters and words are UTF-8 without a byte-order
mark at a file's begin; what is no UTF-8 is refused with file and byte offset, or replaced
(`invalid`). Words are those of `str.split`: all blanks of Unicode part them, a carriage return
too, and a newline alone ends a line (`<eos>`); NUL is part of a word. A word of more than 2^20
characters is refused. Otherwise nothing is changed: carriage returns, NUL and odd blanks are
characters like others. A line may have any length. Symbols that the vocabulary lacks are `<unk>`,
counted in `info.json` (`unknown`), and a warning tells their share of valid and test.

Files. Empty ones among others are empty lines. Unreadable ones, dangling links, devices and pipes
are refused by name, and so is a file that changes (its size or time) or vanishes before all is
prepared. A split needs two tokens; when training starts, train needs a segment for every stream
and valid and test what their evaluation needs (there may be no test at all).
"""

from __future__ import annotations

import json
import logging
import shutil
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from workbench.config import Config, Positive, load, model_validator
from workbench.data import store
from workbench.data.corpus import Corpus, CorpusConfig
from workbench.data.learning import Learning
from workbench.data.pieces import (
    NEWLINE,
    SPLITS,
    Member,
    Piece,
    check_unchanged,
    ends_line,
    readable,
    split_by_file,
    split_by_position,
)
from workbench.data.sources import find, fixed, plain_name, unpack
from workbench.data.vocabulary import BYTEWISE, ByteVocabulary, Level
from workbench.errors import DataError

logger = logging.getLogger("workbench")
FILES_FOR_WHOLE = 20


def _names(data: Any) -> Any:
    names = data if isinstance(data, list | tuple) else [data]
    sound = names and all(isinstance(n, str) and n and "\0" not in n for n in names)
    if data is not None and not sound:
        raise ValueError(f"got {data!r:.80}, expected a path or a list of paths")
    return tuple(data) if isinstance(data, list) else data


Names = Annotated[str | tuple[str, ...] | None, BeforeValidator(_names)]


def _listed(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else names


class Given(Config):
    """The files of each split, in the forms of `Text.path`."""

    train: Names
    valid: Names
    test: Names = None
    """null for no test split"""

    @model_validator(mode="after")
    def _named(self) -> Given:
        if self.train is None or self.valid is None:
            raise ValueError("got null for train or valid, expected files; only test may be null")
        return self


def _split(data: Any) -> Any:
    if isinstance(data, Mapping):
        return Given.model_validate(data)
    shares = data if isinstance(data, tuple) and len(data) == 3 else ()
    if isinstance(data, Given) or (shares and all(type(x) in (int, float) for x in shares)):
        return data
    raise ValueError(
        f"got {data!r:.80}, expected three shares, such as [0.9, 0.05, 0.05], or files: "
        "{train: ..., valid: ..., test: ...}"
    )


Split = Annotated[tuple[float, float, float] | Given, BeforeValidator(_split)]


class Text(CorpusConfig):
    """Text files of yours."""

    kind: Literal["text"] = "text"
    path: Names = None
    """A file, a folder, a pattern such as `books/**/*.txt`, or a list of these; relative to the
    working directory, `~` is the home folder. null where `split` names the files."""
    level: Level = "byte"
    """What a token is: a byte, a Unicode character, a blank-separated word, or a frequent string
    of bytes (`bpe`: byte-pair encoding)."""
    split: Split = (0.9, 0.05, 0.05)
    """Shares of train, valid and test (0 for no test split), or the files of each:
    `{train: ..., valid: ..., test: ...}`, each as `path`."""
    split_by: Literal["auto", "position", "file"] = "auto"
    """How shares are cut: `position` in the joined text, or whole `file`s; `auto`: files from 20
    files on, position below."""
    vocabulary: Learning = Learning()
    """Which symbols get ids (char, word and BPE level)."""
    invalid: Literal["refuse", "replace"] = "refuse"
    """What happens to bytes that are no UTF-8 at char and word level: an error names the file and
    the byte, or U+FFFD takes their place, and `info.json` says how often (`replaced`)."""
    glob: str = "**/*.txt"
    """Which files of a folder or archive belong to the text; not used for files named in `path`.
    The ending of a compressed file does not count: `a.txt.gz` is `*.txt` too."""
    max_unpacked_bytes: Positive = 64_000_000_000
    """What compressed files may take on the disk, unpacked, while the text is prepared."""
    name: str | None = None
    """What to call the text in titles and lists; null: as its first file or folder."""

    @model_validator(mode="after")
    def _possible(self) -> Text:
        given = isinstance(self.split, Given)
        if not isinstance(self.split, Given) and (
            min(self.split[:2]) <= 0 or self.split[2] < 0 or not abs(sum(self.split) - 1) <= 1e-6
        ):
            raise ValueError(
                f"split: got {list(self.split)}, expected three shares that sum to 1, such as "
                "[0.9, 0.05, 0.05]; only that of test may be 0"
            )
        if given is bool(_listed(self.path)):
            raise ValueError(
                "path: expected the text's files here, or those of each split in `split: {train: "
                "..., valid: ..., test: ...}`; got " + ("both" if given else "neither")
            )
        if given and self.split_by != "auto":
            raise ValueError(
                f"split_by: got '{self.split_by}', but split names files; leave it out"
            )
        if fault := self.vocabulary.fault(self.level):
            raise ValueError(f"vocabulary: {fault}; leave it out, or choose another level")
        if self.invalid == "replace" and self.level in BYTEWISE:
            raise ValueError(f"invalid: got replace, but {self.level} level takes any bytes")
        if not self.glob or Path(self.glob).is_absolute():
            raise ValueError(
                f"glob: got '{self.glob}', expected a pattern below the folder, such as '**/*.md'"
            )
        return self

    @property
    def dataset(self) -> str:
        first = _listed(self.split.train if isinstance(self.split, Given) else self.path)[0]
        return self.name or Path(plain_name(fixed(first))).stem or "text"

    @property
    def n_symbols(self) -> int | None:
        return ByteVocabulary.size if self.level == "byte" else None

    def open(self) -> Corpus:
        """Prepare the text if it or the options are new, then map the files.

        Raises:
            DataMissing: a path is not there, or no file of it matches `glob`.
            DataError: the text is empty, cannot be read, is too short to split, or is not UTF-8
                at char or word level.
        """
        groups = self._find()
        members = [m for group in groups.values() for m in group]
        fields = {"level", "split", "split_by", "vocabulary", "invalid", "glob"}
        options = {
            **self.model_dump(mode="json", include=fields),
            "vocabulary_file": self.vocabulary.identity(),
            "files": {split: len(group) for split, group in groups.items()},
        }
        name = f"text-{_plain(self.dataset)}-{self.level}-{store.key(members, options)}"
        return store.obtain(name, lambda folder: self._build(folder, groups))

    def _find(self) -> dict[str, list[Member]]:
        """The files of each split where they are given, else all under ""."""
        if isinstance(self.split, tuple):
            groups = {"": find(_listed(self.path), self.glob)}
        else:
            given = {s: paths for s in SPLITS if (paths := _listed(getattr(self.split, s)))}
            found = {s: find(given[s], self.glob, f"corpus.split.{s}") for s in given}
            # the folders of two splits may hold files of one name
            groups = {s: [m._replace(name=f"{s}/{m.name}") for m in found[s]] for s in found}
            _refuse_leaks(groups)
        if not any(m.bytes for group in groups.values() for m in group):
            raise DataError(
                f"{self.dataset}: got an empty text (0 bytes in "
                f"{sum(map(len, groups.values()))} file(s)), expected text. Name another file in "
                "corpus.path."
            )
        return groups

    def _build(self, folder: Path, groups: dict[str, list[Member]]) -> None:
        packed = [m for group in groups.values() for m in group]
        groups = self._unpacked(groups, folder / "unpacked")
        members = [m for group in groups.values() for m in group]
        if isinstance(self.split, Given):
            chosen, rule = {s: groups.get(s, []) for s in SPLITS}, "as given"
        else:
            chosen, rule = self._by_file(members), "by whole files"
        if chosen:
            splits = {s: self._joined(chosen[s], len(members)) for s in SPLITS}
        else:
            assert isinstance(self.split, tuple)
            joined = self._joined(members, len(members))
            splits, rule = split_by_position(joined, self.split, self.level), "by position in bytes"
        self._check_filled(splits, len(members), bool(chosen))
        about = {
            "name": self.dataset,
            "source": list(_listed(self.path)),
            "split": self.model_dump(mode="json", include={"split"})["split"],
            "split_rule": rule,
        }
        split_of = {m.name: s for s, group in chosen.items() for m in group}
        how = self.vocabulary.rule(self.level, splits, self.invalid == "replace")
        info = store.write(folder, splits, how, members, split_of, about)
        shutil.rmtree(folder / "unpacked")
        check_unchanged(packed)
        logger.info("prepared %s: %d file(s) at %s level", self.dataset, len(members), self.level)
        self._warn(info)
        self._warn_of_copies((folder / "files.jsonl").read_text("ascii"))

    def _warn_of_copies(self, files: str) -> None:
        texts: dict[str, set[str]] = {s: set() for s in ("", *SPLITS)}
        for file in map(json.loads, files.splitlines()):
            if file["bytes"]:
                texts[file["split"]].add(file["sha256"])
        if n := len(texts["train"] & (texts["valid"] | texts["test"])):
            copies = "%s: %d text(s) of train are in valid or test too, in files of other names"
            logger.warning(copies, self.dataset, n)

    def _warn(self, info: dict[str, Any]) -> None:
        """Say once, when it is prepared, what of the text is not what it was."""
        for split in ("valid", "test"):
            if n := info["unknown"][split]:
                share = f"{100 * n / info['tokens'][split]:.3g}"
                of = f"{self.dataset}, {split}: {n:,} of {info['tokens'][split]:,} tokens"
                size = f"{info['vocabulary_size']:,}"
                logger.warning("%s (%s %%) are <unk>, none of the %s symbols", of, share, size)
        if n := sum(info["replaced"].values()):
            logger.warning("%s: %d places were no UTF-8 and are U+FFFD now", self.dataset, n)

    def _unpacked(self, groups: dict[str, list[Member]], folder: Path) -> dict[str, list[Member]]:
        plain, left = {}, self.max_unpacked_bytes
        for split, group in groups.items():
            (folder / split).mkdir(parents=True)
            plain[split] = unpack(group, folder / split, self.glob, left)
            left -= sum(m.bytes for m in plain[split] if folder in m.path.parents)
        return plain

    def _by_file(self, members: list[Member]) -> dict[str, list[Member]]:
        """Whole files of each split; nothing where the text is to be cut by position."""
        assert isinstance(self.split, tuple)
        if self.split_by == "position":
            return {}
        chosen = split_by_file(members, self.split)
        wanted = [s for s, share in zip(SPLITS, self.split, strict=True) if share]
        filled = all(any(m.bytes for m in chosen[s]) for s in wanted)
        many = len(members) >= FILES_FOR_WHOLE and filled
        return chosen if many or self.split_by == "file" else {}

    def _joined(self, members: list[Member], n_files: int) -> list[Piece]:
        """Files of a split as one text. A last line without its newline is a line all the same."""
        pieces = [Piece(m.path, self._begin(m), m.bytes) for m in members]
        alone = len(members) == 1 and (n_files == 1 or isinstance(self.split, Given))
        if not alone:
            return [p for piece in pieces for p in (piece, NEWLINE)]
        line = self.level == "word" and not ends_line(pieces[0])
        return [*pieces, NEWLINE] if line else pieces

    def _begin(self, m: Member) -> int:
        """Where the text of a file begins: after the mark that says it is UTF-8."""
        if self.level in BYTEWISE:
            return 0
        with readable(m.path), m.path.open("rb") as file:
            return len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0

    def _check_filled(self, splits: dict[str, list[Piece]], n_files: int, by_file: bool) -> None:
        sizes = {s: sum(p.stop - p.start for p in splits[s] if p.path) for s in SPLITS}
        with_test = self.split[2] if isinstance(self.split, tuple) else self.split.test
        if any(sizes[s] < 2 for s in SPLITS[: 3 if with_test else 2]):
            got = ", ".join(f"{s} {n}" for s, n in sizes.items())
            cure = "a longer text, or a larger share for the short split (corpus.split)"
            if isinstance(self.split, Given):
                cure = "more or longer files for the short split (corpus.split)"
            elif by_file:
                cure += ", or `split_by: position`, which cuts files in two"
            raise DataError(
                f"{self.dataset}: got {got} bytes from {n_files} file(s), expected at least 2 in "
                f"each split. Use {cure}."
            )


def _place(m: Member) -> tuple[tuple[int, int], Path]:
    """What a file is under whatever name, and one of its names."""
    with readable(m.path):
        facts = m.path.stat()
    return (facts.st_dev, facts.st_ino), m.path


def _refuse_leaks(groups: dict[str, list[Member]]) -> None:
    """No file of train in valid or test; the same file in valid and test is allowed."""
    places = {s: dict(map(_place, group)) for s, group in groups.items()}
    for held_out in ("valid", "test"):
        if both := places["train"].keys() & places.get(held_out, {}).keys():
            one = min(places["train"][place] for place in both)
            raise DataError(
                f"corpus.split: got {one} in train and in {held_out}, expected no file in "
                "both: a model would be measured on what it was trained on. Take it out of one."
            )
    if both := places["valid"].keys() & places.get("test", {}).keys():
        logger.warning(
            "%s is in valid and in test: what is chosen by validation is tested on the same text",
            min(places["valid"][place] for place in both),
        )


def from_strings(strings: Iterable[str], name: str, **fields: Any) -> Text:
    """A text from an iterator of strings, written to the data folder one after another.

    Each string ends with a newline, which is added where it has none. The file is
    `<data>/texts/<name>-<digest of its contents>.txt`: the same strings give the same file, and
    the result is plain data for a recipe.

    Args:
        strings: any number, read once and never held together.
        name: what to call the text.
        fields: of `Text`, such as `level="word"`.

    Raises:
        ConfigError: a field of `Text` is wrong; nothing was read then.
        DataError: something is no string or cannot be UTF-8 (half a surrogate pair), or the data
            folder cannot be written to.
    """
    load(Text, {**fields, "path": name, "name": name})
    path = store.spool(_encoded(strings, name), store.root() / "texts", _plain(name))
    return load(Text, {**fields, "path": str(path), "name": name})


def _encoded(strings: Iterable[str], name: str) -> Iterator[bytes]:
    if isinstance(strings, str) or not isinstance(strings, Iterable):
        raise DataError(
            f"{name}: got one {type(strings).__name__}, expected several strings or an iterator of "
            "them. Write [text]."
        )
    index = None
    for index, text in enumerate(strings):
        if not isinstance(text, str):
            raise DataError(
                f"{name}: got {type(text).__name__} as item {index}, expected a string. Decode "
                "bytes first."
            )
        try:
            yield (text if text.endswith("\n") else text + "\n").encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{name}: got the half surrogate {text[error.start]!a} at character {error.start} "
                f"of item {index}, expected Unicode text. Decode the source with errors='strict', "
                "or replace it: text.encode('utf-8', 'replace').decode()."
            ) from None
    if index is None:
        raise DataError(
            f"{name}: got no strings, expected some. An iterator gives its strings only once; "
            "begin it again."
        )


def _plain(stem: str) -> str:
    """A file name's stem as part of a folder name."""
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in stem)[:40] or "text"
