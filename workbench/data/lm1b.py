"""One Billion Word: shards of sentences, with `<S>` between every two of them.

A split is `<S> word word <S> word ... <S>`: one `<S>` closes a sentence and opens the next, also
from shard to shard. Where the shards begin is in `info.json`, so that sentences can be dealt out to
the rows of a batch as the Transformer-XL code does (`workbench.data.sentences`).

Train is the 99 shards; valid and test are both the first held-out shard of 50. By the rule
transformer-xl the vocabulary is a file of its own: the first word of each line, in the order of the
lines, and `<UNK>` stands for every other word. By the rule plain it is that of the paper, the words
that train has three times and more, by falling count, and `<UNK>`.

A line is a sentence, an empty one too. A word `<S>` inside a line ends a sentence there and begins
another: the tokens are the same, but the two parts are shuffled apart.

Paper: arXiv:1312.3005.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench.data import registry, store
from workbench.data.pieces import NEWLINE, SPLITS, Member, Piece, lines, member
from workbench.data.prepare import Counted
from workbench.data.symbols import Symbols
from workbench.data.tables import Counts, Keep
from workbench.data.vocabulary import SENTENCE, UNKNOWN_WORD, SentenceVocabulary, restore
from workbench.errors import DataError, DataMissing

ARCHIVE = "1-billion-word-language-modeling-benchmark-r13output"
HELD_OUT = "heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050"
WORDS = "1b_word_vocab.txt"
MIN_COUNT = 3


def find(folder: Path, rule: str) -> list[Member]:
    """The shards of train in order, the held-out shard, and the vocabulary if the rule has one.

    Raises:
        DataMissing: one of them is not there.
    """
    names = [n for n in registry.entry("lm1b").contents if n != WORDS or rule != "plain"]
    # where `workbench data get` puts them, or where the archive was unpacked
    for base in (folder / ARCHIVE, folder):
        paths = [(folder if name == WORDS else base) / name for name in sorted(names, key=_rank)]
        missing = [path for path in paths if not path.is_file() or not path.stat().st_size]
        if not missing:
            return [member(path, path.name) for path in paths]
    raise DataMissing(
        f"corpus lm1b: got {len(missing)} of {len(paths)} files missing or empty, such as "
        f"{missing[0]}, expected the published files. {registry.by_hand('lm1b')}"
    )


def _rank(name: str) -> tuple[bool, bool, str]:
    return name == WORDS, name == HELD_OUT, name


def build(folder: Path, members: Sequence[Member], rule: str) -> None:
    """Prepare the sentences.

    Args:
        folder: an empty folder.
        members: as `find` gives them.
        rule: plain or transformer-xl.

    Raises:
        DataError: the vocabulary lacks `<S>` or `<UNK>`, or a shard is not UTF-8.
    """
    given = members[-1].path if rule != "plain" else None
    shards = [m for m in members if m.path != given]
    train, held = _sentences(shards[:-1]), _sentences(shards[-1:])
    how, keep = (read(given), Keep(max_size=0)) if given else (learn, Keep(min_count=MIN_COUNT))
    symbols = Symbols("word", newline=SENTENCE, universal=True)
    about = {
        "name": "lm1b",
        "source": str(shards[-1].path.parents[1]),
        "rule": rule,
        "split_rule": "as published; valid and test are the same held-out shard",
    }
    split_of = {m.name: "train" for m in shards[:-1]} | {shards[-1].name: "valid"}
    splits = {"train": train, "valid": held, "test": held}
    counted = Counted(symbols, how, keep)
    info = store.write(folder, splits, counted, members, split_of, about, edges=True)
    # from where the tokens of files begin to the `<S>` that opens each shard
    edges: dict[str, list[int]] = info.pop("edges")
    info["sentences"] = {
        "symbol": SENTENCE,
        "id": int(restore("word", folder / "vocabulary.json").find([SENTENCE])[0]),
        "shards": {split: [edge - 1 for edge in edges[split]] for split in SPLITS},
    }
    store.record(folder, info)


def _sentences(shards: Sequence[Member]) -> list[Piece]:
    """Lines with an end of line before the first, which opens it."""
    return [NEWLINE, *lines([Piece(m.path, 0, m.bytes) for m in shards])]


def learn(counts: Counts) -> SentenceVocabulary:
    """The words of train by falling count, which `Keep` has rid of the rare ones."""
    known = [word for word, _ in counts["train"].most_common()]
    return SentenceVocabulary(list(dict.fromkeys([*known, SENTENCE, UNKNOWN_WORD])))


def read(path: Path) -> Callable[[Any], SentenceVocabulary]:
    """The vocabulary of a file, whatever was counted.

    Raises:
        DataError: `<S>` or `<UNK>` is not in it, or it is not UTF-8.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: got byte 0x{error.object[error.start]:02x} at {error.start} ({error.reason}),"
            " expected UTF-8. Download it again: `workbench data get lm1b`"
        ) from None
    words = [first[0] for line in text.split("\n") if (first := line.split(maxsplit=1))]
    known = list(dict.fromkeys(words))
    if missing := [symbol for symbol in (SENTENCE, UNKNOWN_WORD) if symbol not in known]:
        raise DataError(
            f"{path}: got {len(known):,} words without {' and '.join(missing)}, expected the "
            "vocabulary of One Billion Word. Download it again: `workbench data get lm1b`"
        )
    return lambda _: SentenceVocabulary(known)
