"""A run's own random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class OwnRandom:
    """The run's own random numbers: neither disturbed by its surroundings nor disturbing them."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        with self._borrowed():
            torch.manual_seed(seed)
            self.state = self._read()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, PyTorch's global generators are this run's."""
        with self._borrowed():
            self._write(self.state)
            try:
                yield
            finally:
                self.state = self._read()

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        theirs = self._read()
        try:
            yield
        finally:
            self._write(theirs)

    def _read(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _write(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"].cpu())
        # a run continued on another kind of device keeps the part that it has
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)
