"""How often each symbol occurs: a table on disk for each part of a text, merged within bounds.

The symbols of a table lie in 256 buckets by their hash, and the merge goes through all tables
bucket by bucket. So it holds the symbols of a few buckets and those that are kept, never a list of
every table. All tables of a preparation are written under the same seed of `hash`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workbench.data.pieces import SPLITS

N_BUCKETS = 256
GROUP_SYMBOLS = 2_000_000
"""symbols of all tables, repeated ones too, that are merged at once"""
NEVER = np.iinfo(np.int64).max

Counts = Mapping[str, Counter[str]]
"""how often each symbol occurs in each split, in order of first appearance there"""


class Numbering(dict[str, int]):
    """Numbers symbols as they appear: `numbering[symbol]`."""

    __slots__ = ()

    def __missing__(self, symbol: str) -> int:
        number = self[symbol] = len(self)
        return number


class Keep(NamedTuple):
    """Which symbols a vocabulary can have at most, so that the others need not be remembered."""

    splits: tuple[str, ...] = ("train",)
    """whose counts decide"""
    min_count: int = 1
    """occurrences at least"""
    max_size: int | None = None
    """the most frequent ones at most (ties: first seen first), `<eos>` among them"""


class Table(NamedTuple):
    """Symbols of one part of a text, or of some buckets of it; the arrays are parallel to them."""

    symbols: list[str]
    ids: np.ndarray
    """how the part numbers them"""
    firsts: np.ndarray
    """places that sort them by first appearance"""
    counts: np.ndarray


def save(stem: str, table: Table) -> None:
    """Write a table as `stem.txt`, `stem.npy` and `stem.edges.npy`."""
    n = len(table.symbols)
    buckets = np.fromiter(map(hash, table.symbols), np.int64, n) % N_BUCKETS
    order = np.argsort(buckets, kind="stable")
    edges = np.searchsorted(buckets[order], np.arange(N_BUCKETS + 1))
    sorted_symbols = [table.symbols[i] for i in order.tolist()]
    offsets = [0]
    with Path(f"{stem}.txt").open("wb") as file:
        for start, stop in pairwise(edges):
            # a symbol is never empty, so a newline alone stands for itself
            lines = (s.replace("\n", "") + "\n" for s in sorted_symbols[start:stop])
            file.write("".join(lines).encode())
            offsets.append(file.tell())
    _write(f"{stem}.edges.npy", np.stack([edges, offsets]))
    # a part has less than 2**31 bytes
    columns = np.stack([table.ids, table.firsts, table.counts]).astype(np.int32)
    _write(f"{stem}.npy", columns[:, order])


def _write(path: str, array: np.ndarray) -> None:
    # straight to a file numpy would not say why a write failed
    buffer = BytesIO()
    np.save(buffer, array)
    Path(path).write_bytes(buffer.getbuffer())


def load(stem: str, first: int = 0, last: int = N_BUCKETS) -> Table:
    """Buckets `first` to `last` (exclusive) of a table."""
    (start, stop), (begin, end) = np.load(f"{stem}.edges.npy")[:, [first, last]].tolist()
    with Path(f"{stem}.txt").open("rb") as file:
        file.seek(begin)
        symbols = file.read(end - begin).decode().split("\n")[:-1]
    if "" in symbols:
        symbols[symbols.index("")] = "\n"
    return Table(symbols, *np.load(f"{stem}.npy", mmap_mode="r")[:, start:stop].astype(np.int64))


def merge(stems: Mapping[str, Sequence[str]], keep: Keep | None = None) -> Counts:
    """Add up the tables of each split.

    Args:
        stems: the tables of each split, in the order of the text.
        keep: which symbols are wanted; None for all.
    """
    kept = _Sums.empty()
    for first, last in _groups([s for split in SPLITS for s in stems[split]]):
        kept = kept.join(_add(stems, first, last))
        if keep is not None:
            kept = kept.only(keep)
    return {split: kept.counted(i) for i, split in enumerate(SPLITS)}


def _groups(stems: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Runs of buckets with few enough symbols to be merged at once."""
    sizes = np.zeros(N_BUCKETS, np.int64)
    for stem in stems:
        sizes += np.diff(np.load(f"{stem}.edges.npy")[0])
    first = 0
    for last in range(1, N_BUCKETS + 1):
        if last == N_BUCKETS or sizes[first : last + 1].sum() > GROUP_SYMBOLS:
            yield first, last
            first = last


class _Sums(NamedTuple):
    """Symbols with their counts and places of first appearance, a row for each split."""

    symbols: list[str]
    counts: np.ndarray
    firsts: np.ndarray

    @classmethod
    def empty(cls) -> _Sums:
        return cls([], np.zeros((3, 0), np.int64), np.zeros((3, 0), np.int64))

    def join(self, other: _Sums) -> _Sums:
        counts = np.concatenate([self.counts, other.counts], axis=1)
        firsts = np.concatenate([self.firsts, other.firsts], axis=1)
        return _Sums(self.symbols + other.symbols, counts, firsts)

    def only(self, keep: Keep) -> _Sums:
        """Those that can be in the vocabulary."""
        rows = [SPLITS.index(split) for split in keep.splits]
        totals, firsts = self.counts[rows].sum(axis=0), self.firsts[rows].min(axis=0)
        chosen = np.flatnonzero(totals >= max(1, keep.min_count))
        if keep.max_size is not None and len(chosen) > keep.max_size:
            ranked = np.lexsort((firsts[chosen], -totals[chosen]))
            chosen = np.sort(chosen[ranked[: keep.max_size]])
        symbols = [self.symbols[i] for i in chosen.tolist()]
        return _Sums(symbols, self.counts[:, chosen], self.firsts[:, chosen])

    def counted(self, row: int) -> Counter[str]:
        """The symbols of one split in order of first appearance, with their counts."""
        order = np.argsort(self.firsts[row], kind="stable")
        order = order[: np.count_nonzero(self.counts[row])]
        counts = self.counts[row, order].tolist()
        return Counter({self.symbols[i]: n for i, n in zip(order.tolist(), counts, strict=True)})


def _add(stems: Mapping[str, Sequence[str]], first: int, last: int) -> _Sums:
    """The sums of some buckets."""
    numbering = Numbering()
    counts, firsts = np.zeros((3, 0), np.int64), np.full((3, 0), NEVER)
    tables = ((row, stem) for row, split in enumerate(SPLITS) for stem in stems[split])
    for rank, (row, stem) in enumerate(tables):
        table = load(stem, first, last)
        at = np.fromiter(map(numbering.__getitem__, table.symbols), np.int64, len(table.symbols))
        if (grown := len(numbering) - counts.shape[1]) > 0:
            # by half at least, so that many tables do not copy the sums each time
            room = ((0, 0), (0, max(grown, counts.shape[1] // 2)))
            counts = np.pad(counts, room)
            firsts = np.pad(firsts, room, constant_values=NEVER)
        counts[row, at] += table.counts
        firsts[row, at] = np.minimum(firsts[row, at], (rank << 32) + table.firsts)
    n = len(numbering)
    return _Sums(list(numbering), counts[:, :n], firsts[:, :n])
