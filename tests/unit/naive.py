"""Each rule of the published corpora once more, in plain Python, whole texts at once.

Written from what is known of the authors' programs, not from the package: tests compare the two.
"""

from __future__ import annotations

import io
from collections import Counter

SPLITS = ("train", "valid", "test")
WORDS = ("wikitext-2", "wikitext-103", "ptb")
Found = tuple[list[str], dict[str, list[str]]]
"""symbols in order of their ids, tokens of each split"""


def lines_of(data: bytes) -> list[str]:
    """As a file opened for text gives them: three kinds of line ends become one."""
    return list(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def ended(data: bytes) -> list[str]:
    return [token for line in lines_of(data) for token in [*line.split(), "<eos>"]]


def prepared(name: str, data: bytes) -> dict[str, bytes]:
    """enwik8 and text8 as the authors' scripts write them: 90 %, 5 %, 5 %, symbols and blanks."""
    a, b = len(data) * 90 // 100, len(data) * 95 // 100
    parts = {"train": data[:a], "valid": data[a:b], "test": data[b:]}
    if name == "enwik8":
        return {
            split: " ".join("\n" if value == 10 else str(value) for value in part).encode()
            for split, part in parts.items()
        }
    return {
        split: " ".join("_" if sign == " " else sign for sign in part.decode().strip()).encode()
        for split, part in parts.items()
    }


def transformer_xl(name: str, texts: dict[str, bytes]) -> Found:
    sentences = {s: [line.strip().split() for line in lines_of(texts[s])] for s in SPLITS}
    counter: Counter[str] = Counter()
    for split in ["train"] if name == "wikitext-103" else SPLITS:
        for words in sentences[split]:
            counter.update(words)
    symbols = ["<eos>"] if name in WORDS else []
    for symbol, _ in counter.most_common():
        if symbol not in symbols:
            symbols.append(symbol)
    end = ["<eos>"] if name in WORDS else []
    tokens = {s: [t for words in sentences[s] for t in words + end] for s in SPLITS}
    return symbols, tokens


def adaptive_span(name: str, texts: dict[str, bytes]) -> Found:
    tokens = {
        s: [t for line in lines_of(texts[s]) for t in [*line.split(), "<eos>"]] for s in SPLITS
    }
    symbols: list[str] = []
    counts: dict[str, int] = {}
    for token in tokens["train"]:
        if token not in counts:
            symbols.append(token)
        counts[token] = counts.get(token, 0) + 1
    if name == "wikitext-103":
        symbols = sorted(symbols, key=lambda symbol: counts[symbol])[::-1]
    return symbols, tokens


def awd_lstm(name: str, texts: dict[str, bytes]) -> Found:
    tokens = {
        s: [t for line in lines_of(texts[s]) for t in [*line.split(), "<eos>"]] for s in SPLITS
    }
    symbols = list(dict.fromkeys(t for split in SPLITS for t in tokens[split]))
    return symbols, tokens


def plain(name: str, texts: dict[str, bytes]) -> Found:
    """Of prepared files: every symbol and line end, train alone counts, frequent ones first."""
    tokens: dict[str, list[str]] = {}
    for split in SPLITS:
        tokens[split] = []
        for line in lines_of(texts[split]):
            ends = name in WORDS or line.endswith("\n")
            tokens[split] += [*line.split(), "<eos>"] if ends else line.split()
    return by_count(tokens["train"], name in WORDS), tokens


def plain_raw(name: str, data: bytes) -> Found:
    """Of enwik8 and text8 themselves: nothing is left out or added."""
    a, b = len(data) * 90 // 100, len(data) * 95 // 100
    tokens = {
        split: [symbol(name, value) for value in part]
        for split, part in zip(SPLITS, (data[:a], data[a:b], data[b:]), strict=True)
    }
    return by_count(tokens["train"], False), tokens


def symbol(name: str, value: int) -> str:
    if name == "enwik8":
        return "<eos>" if value == 10 else str(value)
    return chr(value).replace(" ", "_")


def by_count(train: list[str], unknown: bool) -> list[str]:
    counts: dict[str, int] = {}
    for token in train:
        counts[token] = counts.get(token, 0) + 1
    symbols = sorted(counts, key=lambda symbol: -counts[symbol])
    return [*symbols, "<unk>"] if unknown and "<unk>" not in counts else symbols


RULES = {
    "transformer-xl": transformer_xl,
    "adaptive-span": adaptive_span,
    "awd-lstm": awd_lstm,
    "plain": plain,
}


def expected(
    rule: str, name: str, texts: dict[str, bytes]
) -> tuple[list[str], dict[str, list[int]]]:
    """Symbols in order of their ids, and the ids of each split.

    A symbol of valid or test that has no id is `<unk>`; where there is none, it comes last (the
    originals stop there).
    """
    return numbered(rule, *RULES[rule](name, texts))


def numbered(
    rule: str, symbols: list[str], tokens: dict[str, list[str]]
) -> tuple[list[str], dict[str, list[int]]]:
    if "<unk>" not in symbols or rule in ("adaptive-span", "awd-lstm"):
        symbols = list(dict.fromkeys([*symbols, *(t for s in SPLITS for t in tokens[s])]))
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    return symbols, {s: [ids.get(t, ids.get("<unk>", -1)) for t in tokens[s]] for s in SPLITS}


def sentences(data: bytes, known: list[str]) -> list[list[int]]:
    """One Billion Word: each line between `<S>` and `<S>`; what the vocabulary lacks is `<UNK>`."""
    ids = {word: i for i, word in enumerate(known)}
    wrapped = [["<S>", *line.strip().split(), "<S>"] for line in lines_of(data)]
    return [[ids.get(word, ids["<UNK>"]) for word in words] for words in wrapped]
