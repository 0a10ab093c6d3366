"""Measures of a fast-weight memory: how full, how mixed up, what a key would read now.

Plain arrays in and out. Papers: arXiv:2102.11174 sections 4.1 (capacity) and 4.2 (delta rule).
Shapes: T tokens, F features of a key, V value width, A moments at which something is measured.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
ALIKE = 0.999
"""cosine from which two keys, or two values, count as the same"""


class Head(NamedTuple):
    """One head's writes over a stretch, and the matrix after each."""

    W_TFV: Array
    start_FV: Array
    """the matrix before the first of them"""
    keys_TF: Array
    """as they are written: after the feature map"""
    values_TV: Array
    strength_T: Array
    """write strength; 1 under the sum rule"""
    update_norm_T: Array
    """Frobenius norm of each write"""
    rule: str

    @property
    def limit(self) -> int:
        """How many pairs could be kept apart at most: as many as keys can be orthogonal."""
        return self.keys_TF.shape[1]


def gram(keys_TF: ArrayLike) -> Array:
    """(T, T) cosines between keys: how much reading one also reads the others."""
    keys = np.asarray(keys_TF, dtype=np.float64)
    unit = keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-30)
    return unit @ unit.T


class Interference(NamedTuple):
    """How keys lie to one another."""

    overlap: float
    """mean magnitude of the cosine between two different tokens' keys: 0 for orthogonal keys"""
    directions: float
    """participation ratio of the Gram matrix's eigenvalues, `(sum)^2 / sum of squares`: how many
    directions the keys fill; F where they fill all evenly, 1 where all are alike"""


def interference(gram_TT: ArrayLike) -> Interference:
    """Measure a Gram matrix of cosines."""
    cosines = np.asarray(gram_TT, dtype=np.float64)
    T = len(cosines)
    apart = np.abs(cosines)[~np.eye(T, dtype=bool)]
    # trace squared over trace of the square
    directions = np.trace(cosines) ** 2 / np.square(cosines).sum()
    return Interference(float(apart.mean()) if T > 1 else 0.0, float(directions))


def effective_rank(matrices: ArrayLike) -> Array:
    """`exp(entropy of the normalised singular values)` (Roy and Vetterli 2007) of many matrices.

    Args:
        matrices: (..., F, V).

    Returns:
        (...): from 1 to min(F, V), 0 where a matrix is zero.
    """
    values = np.linalg.svd(np.asarray(matrices, dtype=np.float64), compute_uv=False)
    total = values.sum(-1, keepdims=True)
    share = values / np.where(total > 0, total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0)


def first_of_their_kind(keys_TF: ArrayLike, values_TV: ArrayLike) -> NDArray[np.bool_]:
    """Which writes bring a pair that no earlier token has written: key or value differ."""
    same = (gram(keys_TF) > ALIKE) & (gram(values_TV) > ALIKE)
    return np.asarray(~np.tril(same, -1).any(axis=1))


class Capacity(NamedTuple):
    """How full a memory is, at some moments."""

    after_A: NDArray[np.int64]
    """tokens written"""
    rank_A: Array
    """effective rank of the matrix"""
    written_A: NDArray[np.int64]
    """different pairs of key and value written in this stretch so far"""
    recalled_A: NDArray[np.int64]
    """of those, how many keys read a value that is nearest to their own of all written"""
    directions: float
    """that the keys fill, by `Interference`"""


def capacity(life: Head, count: int = 48) -> Capacity:
    """Measure a memory at up to `count` moments, evenly spread.

    A pair is recalled if no value written so far has a greater cosine with what its key reads; a
    value counts as its own if it is the same up to `ALIKE`.
    """
    when = np.unique(np.linspace(0, len(life.W_TFV) - 1, count).round().astype(int))
    first = first_of_their_kind(life.keys_TF, life.values_TV)
    own = gram(life.values_TV) > ALIKE
    recalled = []
    for t in when:
        asked = np.flatnonzero(first[: t + 1])
        found_QV = life.keys_TF[asked] @ life.W_TFV[t]
        cosines = cosine(found_QV, life.values_TV[: t + 1])
        nearest = cosines.argmax(1)
        recalled.append(int(own[asked, nearest].sum()))
    return Capacity(
        when + 1,
        effective_rank(life.W_TFV[when]),
        first.cumsum()[when],
        np.asarray(recalled),
        interference(gram(life.keys_TF)).directions,
    )


def cosine(a: Array, b: Array) -> Array:
    """(..., n, m) cosines between the rows of two matrices; 0 with a zero row."""
    lengths = np.linalg.norm(a, axis=-1)[..., None] * np.linalg.norm(b, axis=-1)[..., None, :]
    return np.asarray((a @ np.swapaxes(b, -1, -2)) / np.where(lengths > 0, lengths, np.inf))


class Answer(NamedTuple):
    """What the key of one token would read after each token."""

    token: int
    """from 0: whose key"""
    own_T: Array
    """cosine with the value that this token wrote, also before it did"""

    likeness_TT: Array
    """[t, s]: cosine of what it reads after token t and the value that token s wrote; NaN before
    s has written"""
    share_TT: Array
    """[t, s]: how much of what it reads after token t comes from the write of token s; NaN before
    s has written. With `share_before_T` it adds up to 1: what is read is a sum over writes, each
    projected on the direction of the whole"""
    share_before_T: Array
    """from what was in the memory before the first token"""


def ask(life: Head, token: int) -> Answer:
    """Put the key of a token, from 0, to a memory after every token."""
    key = life.keys_TF[token]
    read_TV = np.einsum("f,tfv->tv", key, life.W_TFV)
    past = np.tri(len(read_TV), dtype=bool)
    likeness = np.where(past, cosine(read_TV, life.values_TV), np.nan)
    size_T = np.square(read_TV).sum(1)
    size_T = np.where(size_T > 0, size_T, np.inf)
    # each write is the outer product of its key and what it changes
    part_SV = (life.keys_TF @ key)[:, None] * _changes(life)
    share = np.where(past, read_TV @ part_SV.T / size_T[:, None], np.nan)
    own = cosine(read_TV, life.values_TV[token : token + 1])[:, 0]
    return Answer(token, own, likeness, share, read_TV @ (key @ life.start_FV) / size_T)


def _changes(life: Head) -> Array:
    """(T, V) what each write adds along its key."""
    if life.rule == "sum":
        return life.values_TV
    before = np.concatenate([life.start_FV[None], life.W_TFV[:-1]])
    held_TV = np.einsum("tf,tfv->tv", life.keys_TF, before)
    return life.strength_T[:, None] * (life.values_TV - held_TV)
