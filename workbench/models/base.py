"""What the trainer asks of a model: losses of targets, and whatever its parts add to that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from workbench.carry import Carry
from workbench.models.mixers.base import CONFIGURED, Limits


class Model(nn.Module, ABC):
    """Anything that can be trained here. What is not overridden below adds nothing."""

    vocab_size: int
    """symbols that its tokens are ids of"""
    recompute: bool = False
    """whether parts of it keep only their inputs for the backward pass, and compute again what they
    need beside them; a model without such parts takes no notice"""

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def n_parameters(self) -> int:
        """Trainable numbers, each shared tensor counted once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @abstractmethod
    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Negative log-likelihood of each target, shaped as the targets, in nats; new carry."""

    def losses(
        self, tokens_BT: Tensor, targets_BT: Tensor, carry: Carry
    ) -> tuple[Tensor, dict[str, Tensor], Carry]:
        """What training minimises: as `nll`, with all named penalties in nats per target."""
        nll, carry = self.nll(tokens_BT, targets_BT, carry)
        return nll, self.penalties(), carry

    def initial_carry(self, batch_size: int, limits: Limits = CONFIGURED) -> Carry:
        """The carry before the first token."""
        return ()

    def penalties(self) -> dict[str, Tensor]:
        """Named penalties in nats per target."""
        return {}

    def readings(self) -> dict[str, list[list[float]]]:
        """Named quantities per layer and head."""
        return {}

    def after_step(self) -> None:
        """Called after each optimizer step."""


@contextmanager
def evaluating(model: Model, modules: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Inside, the model is in eval mode and no gradients are kept; it is left as it was.

    Args:
        model: any model.
        modules: all of its modules, for those who come here for every token: finding them takes as
            long as a layer of a small model.
    """
    training = [m for m in (model.modules() if modules is None else modules) if m.training]
    _set_training(training, False)
    try:
        with torch.no_grad():
            yield
    finally:
        _set_training(training, True)


def _set_training(modules: Sequence[nn.Module], mode: bool) -> None:
    for module in modules:
        # a module's own way first asks whether the value is a parameter, a module or a buffer
        object.__setattr__(module, "training", mode)


M = TypeVar("M", bound=Model, covariant=True)


class Builds(Protocol[M]):
    """A config that makes a model for so many symbols."""

    def build(self, vocab_size: int) -> M: ...
