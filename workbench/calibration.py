"""Calibration: whether a model that says 80 % is right in 80 % of the cases.

The *predicted token* is the likeliest one, its probability the *confidence*. Tokens are put into
bins by their confidence, and each bin's mean confidence is held against its accuracy.

Paper: arXiv:1706.04599 section 2 (reliability diagrams; expected calibration error, equation 3).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench import paired

Array = NDArray[np.float64]
Binning = Literal["width", "count"]


class Reliability(NamedTuple):
    """Confidence against accuracy. Bins without a token have NaN."""

    binning: str
    """how the tokens were put into bins, in words"""
    edges: Array
    """(bins + 1,) of confidence; a bin holds what lies above its lower and up to its upper edge"""
    tokens: NDArray[np.int64]
    """(bins,)"""
    confidence: Array
    """(bins,) mean of each"""
    accuracy: Array
    """(bins,) share of right predictions in each"""
    standard_error: Array
    """(bins,) of accuracy less confidence, neighbouring tokens not taken as independent"""
    ece: float
    """expected calibration error: the mean over tokens of their bin's |accuracy - confidence|"""
    chance: float
    """what ECE would be on average, by chance, if each confidence were exactly right and tokens
    were independent: a smaller one cannot be told from 0"""
    overconfidence: float
    """mean confidence less accuracy over all tokens: above 0 the model says more than it holds"""


def edges(confidence: ArrayLike, bins: int, binning: Binning = "width") -> Array:
    """(bins + 1,) borders of the bins from 0 to 1, or fewer where tokens tie.

    Args:
        confidence: (n,) of each token.
        bins: how many.
        binning: `width`: all equally wide. `count`: equally many tokens in each, where tokens of
            the same confidence stay together.
    """
    if binning == "width":
        return np.linspace(0, 1, bins + 1)
    ranked = np.sort(np.asarray(confidence, dtype=np.float64))
    last = np.ceil(len(ranked) * np.arange(1, bins) / bins).astype(int) - 1
    return np.unique(np.concatenate([[0.0], ranked[np.maximum(last, 0)], [1.0]]))


def reliability(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, binning: Binning = "width"
) -> Reliability:
    """The reliability diagram of predictions, and the expected calibration error.

    All tokens are put into bins at once, so that neither their order nor the batches in which they
    were scored change anything but the standard errors, which look at neighbours.

    Args:
        confidence: (n,) probability of the predicted token, in the order of the text.
        correct: (n,) 1 where it was right, 0 where not, or a share where several tokens were
            equally likely; see `detail.Detail`.
        bins: how many.
        binning: as for `edges`.

    Raises:
        ValueError: no token, no bin, or arrays of different lengths.
    """
    sure, right = (np.asarray(x, dtype=np.float64) for x in (confidence, correct))
    if sure.ndim != 1 or sure.shape != right.shape or not len(sure) or bins < 1:
        raise ValueError(
            f"expected two rows of equally many tokens and at least one bin, got {sure.shape}, "
            f"{right.shape} and {bins} bins"
        )
    border = edges(sure, bins, binning)
    found = len(border) - 1
    index = np.searchsorted(border[1:-1], sure, side="left")
    tokens = np.bincount(index, minlength=found)
    sums = (
        np.bincount(index, weights=x, minlength=found) for x in (sure, right, sure * (1 - sure))
    )
    with np.errstate(invalid="ignore"):
        mean_sure, mean_right, variance = (total / tokens for total in sums)
    share, gap = tokens / len(sure), mean_right - mean_sure
    # the mean of |normal| is sqrt(2 / pi) of its standard deviation
    by_chance = np.sqrt(2 / np.pi * variance / np.maximum(tokens, 1))
    kind = "equal width" if binning == "width" else "equally many tokens, ties together"
    return Reliability(
        binning=f"{found} bins of {kind}, each without its lower edge",
        edges=border,
        tokens=tokens,
        confidence=mean_sure,
        accuracy=mean_right,
        standard_error=_errors(right - sure, gap, index, tokens),
        ece=float(np.nansum(share * np.abs(gap))),
        chance=float(np.nansum(share * by_chance)),
        overconfidence=float(sure.mean() - right.mean()),
    )


def _errors(over: Array, gap: Array, index: NDArray[np.intp], tokens: NDArray[np.int64]) -> Array:
    """Standard error of each bin's gap: that of a ratio of two means along the text."""
    errors = np.full(len(tokens), np.nan)
    for i in np.flatnonzero(tokens > 1):
        inside = np.where(index == i, over - gap[i], 0.0)
        errors[i] = paired.standard_error(inside) * len(over) / tokens[i]
    return errors
