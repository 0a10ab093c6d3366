"""What training reads: a batch, a source of batches, and what all orders of batches share.

An order says how a text becomes batches. Whatever it is, the batch of step n is the same on any
number of processes: each reads its own rows of it, and a position is that of all.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from workbench.config import Choice
from workbench.errors import ConfigError, DataError

if TYPE_CHECKING:
    from workbench.data.corpus import Corpus
    from workbench.data.segments import DataConfig


class Batch(NamedTuple):
    """One segment of every stream."""

    tokens_BT: Tensor
    """What the model reads, int64; up to `ext_len` tokens of context come before the segment."""
    targets_BT: Tensor
    """The token after each of the segment, int64."""
    fresh: bool
    """True where the streams begin (again): start from a new carry."""
    lr_scale: float
    """Factor of the learning rate for this step (1 for segments of constant length)."""


class Batches(Protocol):
    """An endless source of batches; its position saves and restores exactly."""

    @property
    def ext_len(self) -> int:
        """Tokens of context before each segment that are read again."""

    def next(self) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Reader(NamedTuple):
    """Who reads: which of the processes that share every batch, and where its rows go."""

    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1

    def rows(self, batch_size: int) -> slice:
        """The rows of the whole batch that this process reads.

        Raises:
            ConfigError: there is no such process, or the rows cannot be shared evenly.
        """
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"got rank {self.rank} of {self.world_size} processes, expected 0 to "
                f"{self.world_size - 1}: number the processes from 0"
            )
        each, left = divmod(batch_size, self.world_size)
        if left:
            sizes = [str(n * self.world_size) for n in (each, each + 1) if n]
            raise ConfigError(
                f"data.batch_size is {batch_size}, which {self.world_size} processes cannot share "
                f"evenly; set data.batch_size to {' or '.join(sizes)}, or start another number of "
                "processes"
            )
        return slice(self.rank * each, (self.rank + 1) * each)


ALONE = Reader()


class Order(Choice):
    """The slot `data.order`: in which order training reads the text."""

    @abstractmethod
    def batches(
        self, corpus: Corpus, data: DataConfig, seed: int, reader: Reader = ALONE
    ) -> Batches:
        """The training split of a corpus, batch by batch.

        Args:
            corpus, data, seed: the text, the recipe's `data`, and the seed of all draws.
            reader: who reads, and where to.

        Raises:
            DataError: the text is too short, or not one for this order.
            ConfigError: the rows cannot be shared evenly.
        """


def check_position(state: dict[str, Any], now: dict[str, int]) -> None:
    """Refuse a position that was taken where these numbers were others.

    Raises:
        DataError: names the first that differs.
    """
    for field, expected in now.items():
        if state.get(field) != expected:
            raise DataError(
                f"data position: got one with {field} {state.get(field)}, expected {expected}. "
                "Continue with the same corpus and data.batch_size as the checkpoint, or start a "
                "new run."
            )


def upload(ids: Tensor, device: torch.device) -> Tensor:
    """A copy in int64 on the device. The small type travels, and is widened there.

    To a GPU the ids go from pinned memory, so that the copy waits for nothing and nobody for it.
    """
    if device.type == "cuda":
        ids = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True).copy_(ids)
    return ids.to(device, non_blocking=True).to(torch.int64, copy=True)


def generator(seed: int) -> np.random.RandomState:
    """NumPy's frozen generator, as `np.random.seed(seed)` leaves the global one.

    The codes of the papers draw from that one. Its numbers never change with NumPy's version.
    """
    return np.random.RandomState(seed if seed < 2**32 else [seed % 2**32, seed >> 32])


def generator_state(random: np.random.RandomState) -> dict[str, Any]:
    """Where a generator stands, as a tensor and numbers for a checkpoint."""
    state = random.get_state(legacy=False)
    words = torch.from_numpy(state["state"]["key"].astype(np.int64))
    # normal numbers come in pairs, of which one may be left
    left = float(state["gauss"]) if state["has_gauss"] else None
    return {"words": words, "position": int(state["state"]["pos"]), "normal": left}


def set_generator(random: np.random.RandomState, state: dict[str, Any]) -> None:
    """Put a generator where `generator_state` found one."""
    words = {"key": state["words"].numpy().astype(np.uint32), "pos": state["position"]}
    left = state.get("normal")
    random.set_state(
        {
            "bit_generator": "MT19937",
            "state": words,
            "has_gauss": int(left is not None),
            "gauss": left or 0.0,
        }
    )
