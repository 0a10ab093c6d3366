"""Which symbols a published corpus has, and in which order they are numbered: one rule for each
code base, and `plain`.

| rule | `<eos>` | counted | ids |
|---|---|---|---|
| plain | ends a line of the text | train | falling count, first seen first |
| transformer-xl | ends a line of words, has id 0 | all splits | falling count, first seen first |
| adaptive-span | ends every line, is counted too | train | first seen first |
| awd-lstm | ends every line, is counted too | all splits | first seen first |

`plain` takes every symbol of the text and nothing else: the newlines of enwik8 are tokens, a last
line that has no end gets none at byte and character level, and a symbol that train lacks is
`<unk>`. In transformer-xl, lines of enwik8 and text8 have no end, and wikitext-103 is counted in
train alone; in adaptive-span, wikitext-103 (used with adaptive input and output) is by falling
count, last seen first.

A line ends at `\\n`, `\\r\\n` or `\\r`; words are parted by what Unicode calls white space.
Deviates: the option of the Transformer-XL code to lower the case of letters is left out.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from workbench.data.pieces import SPLITS
from workbench.data.tables import Counts
from workbench.data.vocabulary import END_OF_LINE, UNKNOWN, Level

Name = Literal["enwik8", "text8", "wikitext-2", "wikitext-103", "ptb", "ptb-char", "lm1b"]
Rule = Literal["plain", "transformer-xl", "adaptive-span", "awd-lstm"]


def order(name: str, level: Level, rule: str, counts: Counts) -> list[str]:
    """The symbols in order of their ids.

    Args:
        name, level, rule: as in `Published`.
        counts: of each split.
    """
    return plain(level, counts) if rule == "plain" else original(name, level, rule, counts)


def plain(level: Level, counts: Counts) -> list[str]:
    """Symbols of train by falling count, ties by first appearance, and `<unk>` where one is needed.

    Words always need it; characters if valid or test has one that train lacks. Bytes have none:
    those that train lacks come last.
    """
    train = counts["train"]
    known = [symbol for symbol, _ in train.most_common()]
    new = [s for split in SPLITS[1:] for s in counts[split] if s not in train]
    if level == "byte":
        return list(dict.fromkeys([*known, *new]))
    needed = level == "word" or bool(new)
    return [*known, UNKNOWN] if needed and UNKNOWN not in train else known


def original(name: str, level: Level, rule: str, counts: Counts) -> list[str]:
    """The symbols as the code base numbers them.

    Deviates: symbols of valid and test that train lacks come last, where the original stops with
    an error because it has neither an id for them nor `<unk>`.
    """
    total: Counter[str] = Counter()
    train_only = rule == "adaptive-span" or (rule, name) == ("transformer-xl", "wikitext-103")
    for split in SPLITS[:1] if train_only else SPLITS:
        total.update(counts[split])
    if rule == "transformer-xl":
        special = [END_OF_LINE] if level == "word" else []
        known = special + [symbol for symbol, _ in total.most_common() if symbol != END_OF_LINE]
        if UNKNOWN in known or not special:
            return known
    elif (rule, name) == ("adaptive-span", "wikitext-103"):
        known = sorted(total, key=total.__getitem__)[::-1]
    else:
        known = list(total)
    return list(dict.fromkeys([*known, *counts["valid"], *counts["test"]]))
