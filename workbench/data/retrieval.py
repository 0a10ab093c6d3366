"""Synthetic associative retrieval: write pairs of key and value, then ask for a key's last value.

    k3 v7  k1 v2  k3 v5  ...  | k3 ?        -> v5

With n pairs, ids 0 to n-1 are keys and n to 2n-1 are values. Capacity: n pairs, every key and every
value once. Update (`replace`): 2n pairs drawn with replacement, so that values must be replaced;
evaluation has n of them.
Paper: arXiv:2102.11174 section 6.1. Shapes: B sequences, T tokens, Q queries of one sequence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from workbench.config import Config
from workbench.data.batches import ALONE, Batch, Reader, generator_state, set_generator

Ids = NDArray[np.int64]


class RetrievalConfig(Config):
    """Pairs of random symbols instead of a text."""

    kind: Literal["retrieval"] = "retrieval"
    n_pairs: Annotated[int, Field(ge=2)]
    """Keys, and values; what the paper's curves are drawn over."""
    replace: bool
    """false: capacity, each key and value once. true: update, 2 n_pairs drawn with replacement."""
    batch_size: Annotated[int, Field(ge=1)]
    """Sequences of one update."""

    @property
    def dataset(self) -> str:
        """The setting's name."""
        return f"retrieval ({'update' if self.replace else 'capacity'})"

    @property
    def n_symbols(self) -> int:
        return 2 * self.n_pairs

    def sequences(self, *seed: int) -> Sequences:
        """Random sequences as training sees them."""
        n_written = 2 * self.n_pairs if self.replace else self.n_pairs
        return Sequences(self.n_pairs, n_written, self.replace, seed)


class Sequences:
    """An endless source of sequences from its own generator, in the order of the authors' code.

    Args:
        n_keys: keys, and values.
        n_written: pairs of a sequence; at most n_keys unless they are drawn with replacement.
        replace: draw keys and values with replacement.
        seed: of numpy's `RandomState`, whose numbers never change with numpy's version.
    """

    def __init__(self, n_keys: int, n_written: int, replace: bool, seed: tuple[int, ...] | int):
        self.n_keys, self.n_written, self.replace = n_keys, n_written, replace
        self.random = np.random.RandomState(seed)

    def pairs(self, count: int) -> tuple[Ids, Ids]:
        """Keys and values of one sequence of `count` pairs."""
        keys = self.random.choice(self.n_keys, count, replace=self.replace)
        values = self.random.choice(self.n_keys, count, replace=self.replace) + self.n_keys
        return keys, values

    def sample(self) -> tuple[Ids, Ids, int]:
        """Keys, values and one key to ask for: that of a random position."""
        keys, values = self.pairs(self.n_written)
        return keys, values, int(self.random.choice(keys))

    def all_queries(self) -> tuple[Ids, Ids, Ids]:
        """Keys and values of a sequence of n_keys pairs, and every distinct key in it, sorted."""
        keys, values = self.pairs(self.n_keys)
        return keys, values, np.unique(keys)


def last_values(keys: Ids, values: Ids, queries: Ids) -> Ids:
    """What each query's key was last written with."""
    latest = dict(zip(keys.tolist(), values.tolist(), strict=True))
    return np.array([latest[q] for q in queries.tolist()], dtype=np.int64)


def questions(samples: list[tuple[Ids, Ids, Ids]]) -> tuple[Tensor, Tensor]:
    """Lay (keys, values, queries) of sequences of one shape side by side, as a model reads them.

    Returns:
        tokens (B, T): key, value, key, value, ..., then the queries' keys; and targets (B, Q).
    """
    tokens, targets = [], []
    for keys, values, queries in samples:
        tokens.append(np.concatenate([np.stack([keys, values], axis=1).reshape(-1), queries]))
        targets.append(last_values(keys, values, queries))
    return torch.from_numpy(np.stack(tokens)), torch.from_numpy(np.stack(targets))


class RetrievalBatches:
    """Sequences with one query each, for the trainer; see `workbench.data.batches.Batches`."""

    ext_len = 0

    def __init__(self, config: RetrievalConfig, seed: int, reader: Reader = ALONE):
        self.sequences, self.batch_size = config.sequences(seed), config.batch_size
        self.device, self._rows = torch.device(reader.device), reader.rows(config.batch_size)

    def next(self) -> Batch:
        """A batch of new sequences; nothing is carried from one to the next."""
        # all are drawn in every process: the position is that of all
        samples = [self.sequences.sample() for _ in range(self.batch_size)][self._rows]
        asked = [(keys, values, np.array([query])) for keys, values, query in samples]
        tokens_BT, targets_BQ = (x.to(self.device) for x in questions(asked))
        return Batch(tokens_BT, targets_BQ, True, 1.0)

    def state(self) -> dict[str, Any]:
        """The generator's, as a tensor and numbers for a checkpoint."""
        return generator_state(self.sequences.random)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        set_generator(self.sequences.random, state)
