"""Averaged SGD: evaluate with the mean of the weights that plain steps have passed through.

Paper: arXiv:1708.02182 section 3 (NT-ASGD: averaging begins when validation stops improving).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workbench.train.optim import OptimizerConfig

CRITERION = "vocabulary.clusters."
"""What the AWD-LSTM code keeps in its criterion, apart from its model."""


def non_monotone(before: Sequence[float], now: float, n: int) -> bool:
    """Whether a validation loss is worse than one from more than `n` validations ago.

    Args:
        before: the losses of earlier validations, oldest first.
        now: the newest one.
        n: how many validations may pass without an improvement, at least 1.
    """
    return len(before) > n and now > min(before[:-n])


class AveragedSGDConfig(OptimizerConfig):
    """SGD with averaged weights, from the first update or from when the trigger says so."""

    kind: Literal["asgd"] = "asgd"
    weight_decay: float = Field(default=0.0, ge=0)
    """L2: this share of a weight is added to its gradient after clipping."""
    nonmono: int | None = Field(default=None, gt=0)
    """NT-ASGD: averaging begins after a validation that is worse than one from more than so many
    validations ago; before, this is plain SGD. null: it begins with the first update."""
    convention: Literal["standard", "awd"] = "standard"
    """`awd`: as the AWD-LSTM code with PyTorch's ASGD. While averaging, a factor of the learning
    rate acts one update late, the mean leaves out the first update's weights, and a split softmax
    no longer trains its rows for the tails."""

    def build(self, model: nn.Module, clip_norm: float | None) -> torch.optim.Optimizer:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        awd = self.convention == "awd"
        criterion = [p for name, p in named if awd and name.startswith(CRITERION)]
        rest = [p for name, p in named if not (awd and name.startswith(CRITERION))]
        groups: list[dict[str, Any]] = [{"params": rest}]
        if criterion:
            groups.append({"params": criterion, "averages": False})
        return AveragedSGD(
            groups,
            lr=self.lr,
            weight_decay=self.weight_decay,
            lags=awd,
            n_averaged=None if self.nonmono else 0,
        )


class AveragedSGD(torch.optim.Optimizer):
    """`p -= lr (g + decay p)`, and once it averages the mean of p over the updates since.

    Args:
        groups: a group with `averages: False` stops training when averaging begins.
        lr: learning rate.
        weight_decay: L2.
        lags: see `AveragedSGDConfig.convention`.
        n_averaged: updates in the mean; None while nothing is averaged.

    Everything that a continuation needs is in `state_dict()`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        lags: bool = False,
        n_averaged: int | None = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "averages": True,
            "lags": lags,
            "n_averaged": n_averaged,
            "next_rate": None,
            "swapped": False,
        }
        super().__init__(groups, defaults)
        self.rate = lr
        """Of the last update."""

    @property
    def averaging(self) -> bool:
        return self.param_groups[0]["n_averaged"] is not None

    def begin(self) -> None:
        """Average from the next update on."""
        for group in self.param_groups:
            group["n_averaged"] = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; no value leaves the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if self.averaging and not group["averages"]:
                continue
            rate = self._rate(group)
            for p in group["params"]:
                if p.grad is None:
                    continue
                # no sum of both: fresh memory takes longer than a second pass. And no factor of
                # 1 - rate * decay, which float32 cannot tell from 1 well enough
                if group["weight_decay"]:
                    p.add_(p, alpha=-rate * group["weight_decay"])
                p.add_(p.grad, alpha=-rate)
            if self.averaging:
                self._average(group)
        return loss

    def _rate(self, group: dict[str, Any]) -> float:
        late = self.averaging and group["lags"] and group["next_rate"] is not None
        self.rate = group["next_rate"] if late else group["lr"]
        group["next_rate"] = group["lr"] if self.averaging else None
        return self.rate

    def _average(self, group: dict[str, Any]) -> None:
        group["n_averaged"] += 1
        share = 1 / max(1, group["n_averaged"] - group["lags"])
        for p in group["params"]:
            if p.grad is None:
                continue
            if "average" not in self.state[p]:
                self.state[p]["average"] = torch.zeros_like(p)
            average: Tensor = self.state[p]["average"]
            # a share of 1 replaces the old value exactly
            average.lerp_(p, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and means, there and back; weights without a mean stay."""
        for group in self.param_groups:
            group["swapped"] = not group["swapped"]
            for p in group["params"]:
                if "average" in self.state[p]:
                    weight = p.clone()
                    p.copy_(self.state[p]["average"])
                    self.state[p]["average"].copy_(weight)

    @property
    def swapped(self) -> bool:
        """Whether the model holds the means now."""
        return bool(self.param_groups[0]["swapped"])
