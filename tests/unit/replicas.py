"""Made-up copies of the published corpora: their archives, their formats, their counts.

Nothing here reads a text through the package: how many tokens and symbols a copy has follows from
how it is made. A copy is seeded, so it is the same file every time.

Shapes of the true corpora: lines, tokens (words and ends of lines), symbols (`<eos>` among them).
"""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "valid", "test")
WORDS_AT_ONCE = 1 << 21


class Shape(NamedTuple):
    """What a corpus of words has."""

    lines: tuple[int, int, int]
    tokens: tuple[int, int, int]
    symbols: int


TRUE = {
    "wikitext-2": Shape((36_718, 3_760, 4_358), (2_088_628, 217_646, 245_569), 33_278),
    "wikitext-103": Shape((1_801_350, 3_760, 4_358), (103_227_021, 217_646, 245_569), 267_735),
    "ptb": Shape((42_068, 3_370, 3_761), (929_589, 73_760, 82_430), 10_000),
    # of these only the number of symbols was ever stated, and that as about
    "ptb-char": Shape((42_068, 3_370, 3_761), (5_100_000, 400_000, 450_000), 50),
}
SMALL = {
    "wikitext-2": Shape((90, 12, 14), (2_088, 217, 245), 333),
    "wikitext-103": Shape((180, 12, 14), (10_322, 217, 245), 2_677),
    "ptb": Shape((42, 5, 6), (929, 73, 82), 100),
    "ptb-char": Shape((42, 5, 6), (5_100, 400, 450), 40),
}
BYTES = {True: 100_000_000, False: 100_000}
"""of enwik8 and text8, in true size and small"""

ENWIK8_VALUES = np.delete(np.arange(256), np.r_[0:9, 11:32, 127, 192, 193, 238:256])
"""205 byte values, newline among them"""
TEXT8_VALUES = b" etaoinshrdlucmfwypvbgkqjxz"
BYTES_AT_ONCE = 10_000_000

R13 = "1-billion-word-language-modeling-benchmark-r13output"


class Replica(NamedTuple):
    """A copy: what is downloaded, and what must be found in it."""

    files: list[Path]
    tokens: dict[str, int]
    """words and ends of lines of each split; of enwik8, text8 and lm1b bytes, characters and words
    with one `<S>` before, between and after the sentences"""
    symbols: int


def build(name: str, folder: Path, true_size: bool = False, seed: int = 1) -> Replica:
    """Make the archive of a corpus, as it is published.

    Args:
        name: of the corpus.
        folder: for the archive.
        true_size: as large as the published one, else in a fraction of a second.
        seed: of everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if name == "lm1b":
        return lm1b(folder, rng)
    if name in ("enwik8", "text8"):
        return flat(name, folder, BYTES[true_size], rng)
    shape = (TRUE if true_size else SMALL)[name]
    tokens = dict(zip(SPLITS, shape.tokens, strict=True))
    if name.startswith("ptb"):
        # one archive serves both
        other = "ptb-char" if name == "ptb" else "ptb"
        shapes = {name: shape, other: (TRUE if true_size else SMALL)[other]}
        return Replica([simple_examples(folder, shapes, rng)], tokens, shape.symbols)
    return Replica([wikitext(name, folder, shape, rng)], tokens, shape.symbols)


# words


def vocabulary(n: int, marks: tuple[str, ...]) -> list[str]:
    """`n` different words: the marks, then made-up ones, some with letters beyond ASCII."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = list(marks)
    for i in range(n - len(marks)):
        word, rest = "", i
        while rest >= 0:
            word, rest = word + letters[rest % 26], rest // 26 - 1
        # three letters and more, so that no made-up word is a mark
        words.append(f"{word}{'é' if i % 97 == 5 else 'th'}{letters[i % 26]}q")
    return words


def word_lines(
    words: list[str], n_lines: int, n_tokens: int, every: bool, rng: np.random.Generator
) -> Iterator[list[str]]:
    """Lines that hold `n_tokens - n_lines` words in all, frequent ones first in `words`.

    Args:
        words: what a line may hold.
        n_lines, n_tokens: each line counts as a token too.
        every: each word occurs; in lines of one length or less, else lines may be empty.
        rng: of all choices.
    """
    n_words = n_tokens - n_lines
    edges = np.sort(rng.integers(0, n_words + 1, n_lines - 1))
    edges = np.concatenate([[0], edges, [n_words]])
    # where each word stands that must occur
    places = np.sort(rng.choice(n_words, len(words), replace=False)) if every else np.empty(0, int)
    owners = rng.permutation(len(words))
    begin, line = 0, 0
    held: list[str] = []
    while line < n_lines:
        count = min(WORDS_AT_ONCE, n_words - begin)
        # Zipf's law with exponent 1
        ids = (len(words) ** rng.random(count)).astype(np.int64) - 1
        low, high = np.searchsorted(places, [begin, begin + count])
        ids[places[low:high] - begin] = owners[low:high]
        held += [words[i] for i in ids.tolist()]
        at = 0
        while line < n_lines and edges[line + 1] <= begin + count:
            size = int(edges[line + 1] - edges[line])
            yield held[at : at + size]
            at, line = at + size, line + 1
        held, begin = held[at:], begin + count


def text_of(lines: Iterator[list[str]]) -> Iterator[bytes]:
    """Lines as both word corpora write them: blanks at both ends."""
    batch: list[str] = []
    for line in lines:
        batch.append(f" {' '.join(line)} \n" if line else " \n")
        if len(batch) == 10_000:
            yield "".join(batch).encode()
            batch = []
    yield "".join(batch).encode()


def wikitext(name: str, folder: Path, shape: Shape, rng: np.random.Generator) -> Path:
    marks = ("<unk>", "the", ",", ".", "of", "@-@", "=", '"', "–", "@,@")
    # <eos> is no word of the text
    words = vocabulary(shape.symbols - 1, marks)
    path = folder / f"{name}-v1.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(f"{name}/", "")
        for i, split in enumerate(SPLITS):
            lines = word_lines(words, shape.lines[i], shape.tokens[i], i == 0, rng)
            with archive.open(f"{name}/wiki.{split}.tokens", "w", force_zip64=True) as file:
                for block in text_of(lines):
                    file.write(block)
    return path


def simple_examples(folder: Path, shapes: dict[str, Shape], rng: np.random.Generator) -> Path:
    """Both forms of Penn Treebank, and a member that nobody asks for."""
    path = folder / "simple-examples.tgz"
    marks = {"ptb": ("<unk>", "N", "the", "$", "'s"), "ptb-char": ("_", "<", ">", "$", "'", "N")}
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        add(archive, "./simple-examples/README", b"made up\n")
        for name, shape in sorted(shapes.items()):
            if name == "ptb":
                words = vocabulary(shape.symbols - 1, marks[name])
            else:
                signs = "etaoinshrdlucmfwypvbgkqjxz0123456789.&-#*/\\"
                words = [*marks[name], *signs][: shape.symbols - 1]
            form = "ptb.{}.txt" if name == "ptb" else "ptb.char.{}.txt"
            for i, split in enumerate(SPLITS):
                lines = word_lines(words, shape.lines[i], shape.tokens[i], i == 0, rng)
                data = b"".join(text_of(lines))
                add(archive, f"./simple-examples/data/{form.format(split)}", data)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


# characters and bytes


def flat(name: str, folder: Path, n: int, rng: np.random.Generator) -> Replica:
    """enwik8: 205 byte values, all in train. text8: one line that begins with a blank."""
    values = ENWIK8_VALUES if name == "enwik8" else np.frombuffer(TEXT8_VALUES, "u1")
    cuts = (0, n * 90 // 100, n * 95 // 100, n)
    path = folder / f"{name}.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as file,
    ):
        for begin in range(0, n, BYTES_AT_ONCE):
            ids = (len(values) ** rng.random(min(BYTES_AT_ONCE, n - begin))).astype(np.int64) - 1
            block = values[ids].astype("u1")
            if begin == 0:
                block[: len(values)] = values if name == "text8" else rng.permutation(values)
            file.write(block.tobytes())
    tokens = {s: b - a for s, a, b in zip(SPLITS, cuts, cuts[1:], strict=False)}
    return Replica([path], tokens, len(values))


# sentences


def lm1b(folder: Path, rng: np.random.Generator, n_shards: int = 99, n_lines: int = 12) -> Replica:
    """The two folders of shards, and the vocabulary file, which lacks some words of the text."""
    marks = ("<S>", "</S>", "<UNK>", "the", ",", ".")
    words = vocabulary(400, marks)
    listed = [word for i, word in enumerate(words) if i < 3 or i % 9]
    given = folder / "1b_word_vocab.txt"
    given.write_text("".join(f"{w} {10**6 // (i + 1)}\n" for i, w in enumerate(listed)), "utf-8")
    path = folder / f"{R13}.tar.gz"
    tokens = {"train": 1, "valid": 1, "test": 1}
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        add(archive, f"{R13}/README", b"made up\n")
        train = f"{R13}/training-monolingual.tokenized.shuffled/news.en-{{:05}}-of-00100"
        held = f"{R13}/heldout-monolingual.tokenized.shuffled/news.en.heldout-{{:05}}-of-00050"
        for form, numbers in ((train, range(1, n_shards + 1)), (held, range(50))):
            for number in numbers:
                lines = list(word_lines(words[3:], n_lines, n_lines * 15, False, rng))
                data = "".join(" ".join(line) + "\n" for line in lines)
                add(archive, form.format(number), data.encode())
                # its words, and the <S> that ends each sentence
                count = sum(map(len, lines)) + len(lines)
                if form == train:
                    tokens["train"] += count
                elif number == 0:
                    tokens["valid"] = tokens["test"] = 1 + count
    return Replica([path, given], tokens, len(listed))


def odd_text(rng: random.Random, words: list[str], n_lines: int = 12) -> bytes:
    """Lines as nobody should write them: odd blanks, ends of three kinds, empty, the last open."""
    blanks = [" ", "  ", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u2003", "\u2028", "\u3000"]
    text = ""
    for _ in range(n_lines):
        line = rng.choices(words, k=rng.choice([0, 0, 1, 3, 8]))
        for word in line:
            text += rng.choice(["", *blanks]) * (text[-1:] in ("", "\n", "\r")) + word
            text += rng.choice(blanks)
        text += rng.choice(["\n", "\n", "\r\n", "\r"])
    return text.removesuffix(rng.choice(["", "\n"])).encode()
