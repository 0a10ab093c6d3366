"""What is summed between two training records, on the device: nothing is waited for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.train.objective import total


@dataclass
class Meters:
    """Sums since the last training record; the tensors live on the device."""

    loss: Tensor
    """Nats over all targets."""
    bad_step: Tensor
    """First update with a loss or a gradient that is not finite; 0 while there is none."""
    penalties: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    """Targets of this process."""
    updates: int = 0
    seconds: float = 0.0

    @classmethod
    def fresh(cls, device: torch.device) -> Meters:
        return cls(
            loss=torch.zeros((), dtype=torch.float64, device=device),
            bad_step=torch.zeros((), dtype=torch.int64, device=device),
        )

    def add(self, terms: dict[str, Tensor], n_targets: int, grad_norm: Tensor, step: int) -> None:
        """Count one update."""
        self.loss += terms["nll"].detach().double() * n_targets
        for name, value in terms.items():
            if name != "nll":
                before = self.penalties.get(name, torch.zeros_like(self.loss))
                self.penalties[name] = before + value.detach().double()
        finite = total(terms).detach().isfinite() & grad_norm.isfinite()
        first = (self.bad_step == 0) & ~finite
        self.bad_step = torch.where(first, step, self.bad_step)
        self.tokens += n_targets
        self.updates += 1
