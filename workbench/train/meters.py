"""What is summed between two training records, on the device: nothing is waited for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Meters:
    """Sums since the last training record; the tensors live on the device."""

    loss: Tensor
    """Nats over all targets."""
    bad_step: Tensor
    """First update with a loss or a gradient that is not finite; 0 while there is none."""
    skipped: Tensor
    """Updates that were left out."""
    penalties: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    """Targets of this process."""
    updates: int = 0
    """Those that the losses are of."""
    seconds: float = 0.0

    @classmethod
    def fresh(cls, device: torch.device) -> Meters:
        return cls(
            loss=torch.zeros((), dtype=torch.float64, device=device),
            bad_step=torch.zeros((), dtype=torch.int64, device=device),
            skipped=torch.zeros((), dtype=torch.int64, device=device),
        )

    def add(self, terms: dict[str, Tensor], n_targets: int, bad: Tensor, step: int) -> None:
        """Count one update.

        Args:
            terms: of its loss.
            n_targets: of this process.
            bad: whether something was not finite, a boolean on the device.
            step: its number, from 1.
        """
        self.loss += terms["nll"].detach().double() * n_targets
        for name, value in terms.items():
            if name != "nll":
                before = self.penalties.get(name, torch.zeros_like(self.loss))
                self.penalties[name] = before + value.detach().double()
        first = (self.bad_step == 0) & bad
        self.bad_step = torch.where(first, step, self.bad_step)
        self.tokens += n_targets
        self.updates += 1
