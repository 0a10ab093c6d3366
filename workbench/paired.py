"""Two models on the same text, token by token: which is better, and how sure that is.

Losses of neighbouring tokens are alike, and so are their differences: n tokens say less than n
independent ones. The standard error here counts that in.

Papers: Newey and West 1987 (doi:10.2307/1913610), the long-run variance; Lazarus, Lewis, Stock and
Watson 2018 (doi:10.1080/07350015.2018.1506926), its bandwidth; Kiefer and Vogelsang 2005
(doi:10.1017/S0266466605050565), critical values that count in the bandwidth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
"""of the interval; the critical values below are those of this level"""


class Mean(NamedTuple):
    """A mean over tokens in the order of a text, and its interval."""

    mean: float
    standard_error: float
    low: float
    high: float
    bandwidth: int
    """how many neighbours' products count, with falling weights"""

    @property
    def method(self) -> str:
        """What the interval is, in words."""
        return (
            f"{LEVEL:.0%} interval by Newey-West over {self.bandwidth:,} tokens, "
            "fixed-b critical value"
        )


def bandwidth(n: int) -> int:
    """1.3 sqrt(n): neighbours whose products count, by Lazarus and others' rule."""
    return min(n, math.ceil(1.3 * math.sqrt(n)))


def standard_error(values: ArrayLike, width: int | None = None) -> float:
    """Of the mean of numbers that depend on their neighbours.

    The square root of (gamma_0 + 2 sum_{j < width} (1 - j / width) gamma_j) / n, where gamma_j is
    the sample's autocovariance at lag j over n. The sum equals the mean square of all sums of
    `width` neighbours (zeros outside the text), which needs no more than n steps.

    Dependence over more than `width` tokens is not seen: texts of few long topics are less sure
    than this says.

    Args:
        values: (n,) in the order of the text.
        width: neighbours that count; None: `bandwidth(n)`.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    width = bandwidth(n) if width is None else width
    sums = np.concatenate([[0.0], (x - x.mean()).cumsum()])
    ends = np.arange(1, n + width)
    runs = sums[np.minimum(ends, n)] - sums[np.maximum(ends - width, 0)]
    return math.sqrt(float((runs**2).mean()) * len(runs) / width) / n


def critical_value(share: float) -> float:
    """How many standard errors the interval is wide to each side.

    Args:
        share: bandwidth over n. At 0 it is the normal distribution's 1.96; the polynomial is that
            of Kiefer and Vogelsang's table for Bartlett weights, 97.5 %.
    """
    return 1.96 + 2.9694 * share + 0.4160 * share**2 - 0.5324 * share**3


def mean(values: ArrayLike) -> Mean:
    """The mean of numbers along a text, with an interval that respects their dependence.

    Args:
        values: (n,) in the order of the text, at least 2.

    Raises:
        ValueError: fewer.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"expected a row of at least 2 numbers, got shape {x.shape}")
    middle, error, width = float(x.mean()), standard_error(x), bandwidth(len(x))
    reach = critical_value(width / len(x)) * error
    return Mean(middle, error, middle - reach, middle + reach, width)


class Comparison(NamedTuple):
    """Model A and model B on the same tokens; `saved` is what B does better: A's loss less B's."""

    saved: NDArray[np.float64]
    """(n,) of each token, in the unit of the losses"""
    mean: Mean
    """of `saved`; B is better where the interval lies above 0, A where below"""
    better: float
    """share of tokens that cost less under B"""
    worse: float
    """share of tokens that cost more under B"""
    won: float
    """what B saves where it is better, per token of the whole text"""
    lost: float
    """what B loses where it is worse, per token of the whole text; mean = won - lost"""

    @property
    def verdict(self) -> str:
        """Which is better, as far as the interval tells."""
        if self.mean.low > 0:
            return "B is better"
        return "A is better" if self.mean.high < 0 else "no difference is proven"


def compare(a: ArrayLike, b: ArrayLike) -> Comparison:
    """Compare two models by their losses on the same tokens.

    Args:
        a, b: (n,) loss of each token in the order of the text, in the same unit.

    Raises:
        ValueError: of different lengths, or too short.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected losses of the same tokens, got {first.shape}, {second.shape}")
    saved = first - second
    return Comparison(
        saved=saved,
        mean=mean(saved),
        better=float((saved > 0).mean()),
        worse=float((saved < 0).mean()),
        won=float(np.maximum(saved, 0).mean()),
        lost=float(np.maximum(-saved, 0).mean()),
    )
