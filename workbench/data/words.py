"""Words numbered as they appear: what `str.split` and a dictionary give, at the speed of arrays.

A dictionary of a large vocabulary waits for the machine's memory at every word. So a block of text
is split by NumPy, words of up to 16 bytes become two integers each, and those that were met lately
are recognised by these; only the other words go through the dictionary.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from workbench.data.tables import Numbering

SLOT_BITS = 20
"""of the table of words met lately: 20 MB; with a quarter of it frequent words miss too often"""
SHORT = 16
"""bytes of a word that two integers hold"""
BLANK = np.zeros(256, bool)
BLANK[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
"""the bytes at which `str.split` parts words"""
WIDE_BLANKS = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
"""and the characters of more than one byte"""
FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
"""odd numbers with bits all over: they spread the words over the slots"""

Positions = NDArray[np.int64]
Keys = NDArray[np.uint64]


class Words:
    """Numbers words, block after block.

    Attributes:
        numbering: the words so far, in order of first appearance.
    """

    def __init__(self) -> None:
        self.numbering = Numbering()
        # a slot holds one word: the last of those that belong there; empty ones are zero
        self._low, self._high = np.zeros((2, 1 << SLOT_BITS), np.uint64)
        self._ids = np.zeros(1 << SLOT_BITS, np.int32)

    def ids(self, text: str) -> NDArray[np.int32]:
        """The numbers of `text.split()`."""
        # a NUL at a word's end would be lost in the integers
        if "\0" in text or (not text.isascii() and WIDE_BLANKS.search(text)):
            return self._look_up(text.split())
        # blanks for the edges, and for the bytes behind the last word
        data = b" " + text.encode() + b" " * (SHORT + 1)
        blank = BLANK[np.frombuffer(data, np.uint8)]
        edges = np.flatnonzero(blank[1:] != blank[:-1]) + 1
        starts, stops = edges[0::2], edges[1::2]
        sizes = stops - starts
        low, high = _keys(data, starts, sizes)
        slots = _slots(low, high)
        ids = self._ids[slots]
        known = (self._low[slots] == low) & (self._high[slots] == high) & (sizes <= SHORT)
        others = np.flatnonzero(~known)
        places = zip(starts[others].tolist(), stops[others].tolist(), strict=True)
        ids[others] = self._look_up([data[start:stop].decode() for start, stop in places])
        short = others[sizes[others] <= SHORT]
        for table, new in ((self._low, low), (self._high, high), (self._ids, ids)):
            table[slots[short]] = new[short]
        return ids

    def _look_up(self, words: list[str]) -> NDArray[np.int32]:
        return np.fromiter(map(self.numbering.__getitem__, words), np.int32, len(words))


def _keys(data: bytes, starts: Positions, sizes: Positions) -> tuple[Keys, Keys]:
    """The first eight bytes of each word, and the next eight, as integers."""
    eights = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    low = eights[starts] & FIRST_BYTES[np.minimum(sizes, 8)]
    return low, eights[starts + 8] & FIRST_BYTES[np.clip(sizes - 8, 0, 8)]


def _slots(low: Keys, high: Keys) -> Positions:
    mixed = ((low * FACTORS[0]) ^ (high * FACTORS[1])) * FACTORS[0]
    return (mixed >> np.uint64(64 - SLOT_BITS)).astype(np.int64)
