"""How far back attention looks: its mass by the distance between query and key.

Plain arrays of attention weights in, plain arrays out.
Shapes: T queries, S memory + segment, H heads, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
QUANTILES = (0.5, 0.9, 0.99)


def distances_TS(T: int, S: int) -> NDArray[np.int64]:
    """Tokens between query and key; the last T of the S keys are the queries' own positions."""
    return (np.arange(T) + S - T)[:, None] - np.arange(S)[None]


def mass_by_distance(probs_HTS: ArrayLike) -> Floats:
    """(H, S) share of each head's attention to the text that lies at distance 0, 1, 2, ...

    Rows sum to 1, or are 0 where a head attends to no text. What goes to persistent vectors, which
    have no distance, does not count.
    """
    probs = np.asarray(probs_HTS, dtype=np.float64)
    gap = distances_TS(*probs.shape[1:])
    seen = gap >= 0
    mass_HS = np.stack(
        [np.bincount(gap[seen], weights=p[seen], minlength=probs.shape[2]) for p in probs]
    )
    total_H1 = mass_HS.sum(1, keepdims=True)
    return np.divide(mass_HS, total_H1, out=np.zeros_like(mass_HS), where=total_H1 > 0)


def reaches(mass_HS: ArrayLike, quantiles: Sequence[float] = QUANTILES) -> NDArray[np.int64]:
    """(H, Q) within which distance so much of the attention lies, in tokens.

    The smallest distance d for which the mass at 0, 1, ..., d is at least the share q of all.
    """
    within = np.cumsum(np.asarray(mass_HS, dtype=np.float64), axis=1)
    # sums of single precision: the last entry may miss 1 by a rounding
    wanted = np.asarray(quantiles)[None, :, None] * within[:, None, -1:] - 1e-9
    return np.argmax(within[:, None] >= wanted, axis=2)


def mean_distances(mass_HS: ArrayLike) -> Floats:
    """(H,) how far back the attention of each head looks on average, in tokens."""
    mass = np.asarray(mass_HS, dtype=np.float64)
    return mass @ np.arange(mass.shape[1])
