"""Learning rate over training: pure functions of the step, with no state of their own.

Step 0 is the first update. A schedule is asked before each update, so that a resumed run needs
nothing but its step. The originals set the rate at other moments; `convention: txl` repeats the
Transformer-XL and fast-weight code (arXiv:1901.02860, arXiv:2102.11174) to the letter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import Field

from workbench.config import Choice

Convention = Literal["standard", "txl"]


class ScheduleConfig(Choice):
    """The slot `train.schedule`: how the learning rate changes from update to update."""

    warmup_steps: int = Field(default=0, ge=0)
    """Updates during which the rate rises linearly from 0. Update number n (from 1) runs at
    `lr * n / warmup_steps`, so the last of them at the full rate. The adaptive-span code
    (arXiv:1905.07799) does the same."""

    convention: Convention = "standard"
    """`standard`: as described. `txl`: as the Transformer-XL code, where the rate is set after
    each update: update number n runs at the value of step n - 1, the very first update at the
    full rate (for inverse_sqrt with warm-up: at rate 0)."""

    def lr(self, step: int, base_lr: float, total_steps: int) -> float:
        """The learning rate of one update.

        Args:
            step: updates done before this one; 0 for the first.
            base_lr: the optimizer's `lr`.
            total_steps: updates of the whole run.
        """
        raise TypeError(f"{type(self).__name__} does not define lr(step, base_lr, total_steps)")

    def lowered(self, lr: float, validations: Sequence[float]) -> float:
        """That rate after what validations have shown so far: their losses, oldest first."""
        return lr

    def check(self, base_lr: float, total_steps: int) -> None:
        """Refuse what cannot be trained with.

        Raises:
            ValueError: the warm-up does not fit into the run.
        """
        if self.warmup_steps > total_steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.warmup_steps}, but the run has only {total_steps} "
                f"steps; write at most {total_steps}, or raise train.steps"
            )

    def _warming(self, step: int) -> float | None:
        """The warm-up's share of the full rate at this step; None when it is over."""
        if self.convention == "txl":
            if 0 < step < self.warmup_steps:
                return step / self.warmup_steps
            return None
        return (step + 1) / self.warmup_steps if step < self.warmup_steps else None


class Constant(ScheduleConfig):
    """The same rate throughout, after the warm-up."""

    kind: Literal["constant"] = "constant"

    def lr(self, step: int, base_lr: float, total_steps: int) -> float:
        share = self._warming(step)
        if share is None and self.convention == "txl" and 0 < self.warmup_steps <= step:
            # their loop never writes the full rate back once the warm-up has ended
            share = max(self.warmup_steps - 1, 1) / self.warmup_steps
        return base_lr if share is None else base_lr * share


class Plateau(Constant):
    """As `constant`, lowered whenever validations stop improving (Transformer-XL's `dev_perf`)."""

    kind: Literal["plateau"] = "plateau"  # type: ignore[assignment]
    factor: float = Field(default=0.5, gt=0, lt=1)
    """What the rate is multiplied with."""
    patience: int = Field(default=0, ge=0)
    """Validations in a row without an improvement (by a share of 1e-4) that are put up with."""
    min_lr: float = Field(default=0.0, ge=0)
    """The rate is not lowered beyond it."""

    def lowered(self, lr: float, validations: Sequence[float]) -> float:
        best, since_best = math.inf, 0
        for nats in validations:
            if nats < best * (1 - 1e-4):
                best, since_best = nats, 0
                continue
            since_best += 1
            if since_best > self.patience:
                lr, since_best = max(lr * self.factor, min(lr, self.min_lr)), 0
        return lr


class Cosine(ScheduleConfig):
    """Half a cosine wave down to `min_lr`.

    `standard`: it starts where the warm-up ends and would reach `min_lr` at the update after the
    last, so that none is spent at zero. `txl`: it starts at step 0, hidden by the warm-up, so the
    rate drops a little where the warm-up ends.
    """

    kind: Literal["cosine"] = "cosine"
    min_lr: float = Field(default=0.0, ge=0)
    """The rate at the end."""

    def lr(self, step: int, base_lr: float, total_steps: int) -> float:
        share = self._warming(step)
        if share is not None:
            return base_lr * share
        start = 0 if self.convention == "txl" else self.warmup_steps
        done = min(1.0, (step - start) / max(1, total_steps - start))
        return self.min_lr + (base_lr - self.min_lr) * (1 + math.cos(math.pi * done)) / 2

    def check(self, base_lr: float, total_steps: int) -> None:
        super().check(base_lr, total_steps)
        if self.min_lr > base_lr:
            raise ValueError(
                f"schedule.min_lr is {self.min_lr}, above optimizer.lr {base_lr}; "
                "a cosine only goes down"
            )


class StepDecay(ScheduleConfig):
    """Divided at given updates: AWD-LSTM with Adam (`--when`, which counts epochs)."""

    kind: Literal["step_decay"] = "step_decay"
    after: tuple[int, ...] = Field(min_length=1)
    """Updates after which the rate is divided, ascending."""
    divide_by: float = Field(default=10.0, gt=0)
    """By how much, each time."""

    def lr(self, step: int, base_lr: float, total_steps: int) -> float:
        share = self._warming(step)
        if share is not None:
            return base_lr * share
        return base_lr / self.divide_by ** sum(step >= at for at in self.after)

    def check(self, base_lr: float, total_steps: int) -> None:
        super().check(base_lr, total_steps)
        # a shortened run may end before the rate is ever divided
        if any(low >= high for low, high in pairwise((self.warmup_steps, *self.after))):
            raise ValueError(
                f"schedule.after is {list(self.after)}; write updates that ascend from above "
                f"warmup_steps {self.warmup_steps}"
            )


class InverseSqrt(ScheduleConfig):
    """Falls with the square root of the update number.

    `standard`: update number n after the warm-up runs at `lr * sqrt(warmup_steps / n)`, so that
    `lr` is the peak. `txl`: the multiplier is `n ** -0.5`, whatever the warm-up, and the peak is
    `lr / sqrt(warmup_steps)`.
    """

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"

    def lr(self, step: int, base_lr: float, total_steps: int) -> float:
        if self.convention == "txl":
            if step == 0 and self.warmup_steps == 0:
                return base_lr
            warming = step <= self.warmup_steps
            return base_lr * (step / self.warmup_steps**1.5 if warming else step**-0.5)
        share = self._warming(step)
        if share is not None:
            return base_lr * share
        return base_lr * math.sqrt(max(1, self.warmup_steps) / (step + 1))
