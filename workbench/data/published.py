"""The corpora of the papers, with the vocabulary rule of the code base that a recipe follows.

The same text has another vocabulary in each code base: the Transformer-XL and fast-weight codes
lose the newlines of enwik8 (204 symbols), the adaptive-span and AWD-LSTM codes keep them (205).
The rules are in `workbench.data.rules`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from workbench.config import model_validator
from workbench.data import lm1b, registry, store
from workbench.data.corpus import Corpus, CorpusConfig
from workbench.data.pieces import (
    NEWLINE,
    SPLITS,
    Member,
    Piece,
    lines,
    member,
    split_by_position,
    stripped,
)
from workbench.data.prepare import Counted
from workbench.data.rules import Name, Rule, order
from workbench.data.symbols import Symbols
from workbench.data.tables import Counts
from workbench.data.vocabulary import DECIMAL, END_OF_LINE, Level, PreparedVocabulary
from workbench.errors import DataError, DataMissing

logger = logging.getLogger("workbench")
# what the archives call the files of a split; ours first
FILES = ("{}.txt", "wiki.{}.tokens", "ptb.{}.txt", "ptb.char.{}.txt")


class Published(CorpusConfig):
    """A corpus that papers report on, from the files that the authors' scripts prepare."""

    kind: Literal["published"] = "published"
    name: Name
    rule: Rule = "plain"
    """whose preparation: which symbols there are and in which order they are numbered"""

    @model_validator(mode="after")
    def _known(self) -> Published:
        if self.rule not in (rules := registry.entry(self.name).rules):
            choices = ", ".join(rules)
            raise ValueError(
                f"rule: {self.name} was not used by {self.rule}; choose from: {choices}"
            )
        return self

    @property
    def dataset(self) -> str:
        return self.name

    @property
    def facts(self) -> registry.RuleFacts:
        """What is known of the corpus as it is prepared by the rule."""
        return registry.entry(self.name).rules[self.rule]

    @property
    def n_symbols(self) -> int:
        return self.facts.symbols

    @property
    def comparable(self) -> str:
        return self.facts.comparable

    @property
    def level(self) -> Level:
        """What a symbol is."""
        level = registry.entry(self.name).level
        assert level, "every corpus has one"
        return level

    def open(self) -> Corpus:
        """Prepare on first use, then map the files.

        Other files than the published ones are taken too; a warning then says that the vocabulary
        is another one.

        Raises:
            DataMissing: there are no such files; the message says which to put where.
            DataError: they are not in the prepared format.
        """
        place = store.root() / self.name
        sentences = self.name == "lm1b"
        members = lm1b.find(place, self.rule) if sentences else self._members(place)
        key = store.key(members, {"name": self.name, "rule": self.rule})

        def build(folder: Path) -> None:
            if sentences:
                lm1b.build(folder, members, self.rule)
            else:
                self._build(folder, members)
            logger.info("prepared %s by the rule of %s", self.name, self.rule)

        corpus = store.obtain(f"published-{self.name}-{self.rule}-{key}", build)
        self._compare(corpus, members)
        return corpus

    def _compare(self, corpus: Corpus, members: Sequence[Member]) -> None:
        """Say with which figures results on these files may be compared, or that none are."""
        fault = self.facts.fault(corpus.info["vocabulary_size"], corpus.info["tokens"])
        if fault := fault or ("" if self.facts.tokens else self._other_size(members)):
            logger.warning(
                "%s by the rule %s: %s as the published text has; results with these files are not "
                "comparable with published ones",
                *(self.name, self.rule, fault),
            )
        else:
            corpus.info["comparable"] = self.comparable

    def _other_size(self, members: Sequence[Member]) -> str:
        """How a file differs in size from the published one; nothing where none does."""
        contents = registry.entry(self.name).contents
        for m in members:
            known = contents.get(m.path.name)
            if known and known.bytes not in (None, m.bytes):
                return f"got {m.bytes:,} bytes of {m.path.name}, expected {known.bytes:,}"
        return ""

    def _members(self, folder: Path) -> list[Member]:
        """The three prepared files, or the one raw file of enwik8 and text8."""
        for form in FILES:
            paths = [folder / form.format(split) for split in SPLITS]
            if all(path.is_file() for path in paths):
                return [member(path, f"{s}.txt") for s, path in zip(SPLITS, paths, strict=True)]
        raw = folder / self.name
        if self.name in ("enwik8", "text8") and raw.is_file():
            return [member(raw, self.name)]
        raise DataMissing(
            f"corpus {self.name}: got no text in {folder}, expected the published files, or "
            "train.txt, valid.txt and test.txt as the authors' scripts prepare them. "
            f"{registry.by_hand(self.name)}"
        )

    def _build(self, folder: Path, members: list[Member]) -> None:
        raw = len(members) == 1
        source = members[0].path.parent

        def learn(counts: Counts) -> PreparedVocabulary:
            symbols = order(self.name, self.level, self.rule, counts)
            _check_spelling(self.level, symbols, source)
            return PreparedVocabulary(self.level, symbols)

        about = {
            "name": self.name,
            "source": str(source),
            "rule": self.rule,
            "split_rule": "by position in bytes" if raw else "as published",
        }
        split_of = {} if raw else dict(zip((m.name for m in members), SPLITS, strict=True))
        vocabulary = Counted(self._symbols(raw), learn)
        store.write(folder, self._splits(members), vocabulary, members, split_of, about)

    def _symbols(self, raw: bool) -> Symbols:
        """What the text's symbols are; raw text is spelled as the authors' scripts prepare it."""
        no_end = self.rule == "transformer-xl" and self.level != "word"
        newline = None if no_end else END_OF_LINE
        if raw:
            return Symbols(self.level, newline, blank="_")
        # prepared files are words, whatever a word is; a file opened for text ends its lines so
        return Symbols("word", newline, universal=True)

    def _splits(self, members: list[Member]) -> dict[str, list[Piece]]:
        pieces = [Piece(m.path, 0, m.bytes) for m in members]
        if len(members) == 3:
            splits = {s: [piece] for s, piece in zip(SPLITS, pieces, strict=True)}
        else:
            splits = split_by_position(pieces, (0.9, 0.05, 0.05), "byte")
        if self.rule == "plain" and self.level != "word":
            return splits
        if self.level == "char" and len(members) == 1:
            return {split: one_line(splits[split]) for split in SPLITS}
        return {split: lines(splits[split]) for split in SPLITS}


def one_line(pieces: Sequence[Piece]) -> list[Piece]:
    """A split of text8: one line, without the blanks at its edges that the cut has left."""
    return [*(s for p in pieces if (s := stripped(p)).start < s.stop), NEWLINE]


def _check_spelling(level: Level, symbols: list[str], folder: Path) -> None:
    """Refuse a natural text where symbols parted by blanks are expected."""
    if level == "word":
        return
    said = "bytes as decimal numbers" if level == "byte" else "characters, with _ for a blank,"
    for symbol in symbols:
        known = symbol in DECIMAL if level == "byte" else len(symbol) == 1 or symbol[0] == "<"
        if not known and symbol != END_OF_LINE:
            raise DataError(
                f"{folder}: got the symbol '{symbol:.20}', expected {said} parted by blanks, as "
                "the authors' scripts prepare them. Prepare the files so, use the raw file under "
                "its own name, or train on {kind: text, path: ...}"
            )
