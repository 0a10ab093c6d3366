"""Losses and gradients that are not finite: what becomes of the update, and of its batch.

What `train.on_nonfinite` says is done here. Batches are saved in `nonfinite/` of the run folder,
`step-0000123.safetensors`: `tokens_BT` and `targets_BT` of all processes, the tensors of the carry
(`carry.<layer>.<leaf>`) where they are still known, and in its metadata the update.
`workbench.train.nonfinite.replay` computes it again and finds where it breaks.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from workbench.carry import Carry
from workbench.data.batches import Batch
from workbench.errors import NonFiniteLoss
from workbench.train import storage
from workbench.train.config import TrainConfig
from workbench.train.distributed import World
from workbench.train.objective import total
from workbench.train.precision import LossScale

if TYPE_CHECKING:
    from workbench.train.folder import RunFolder

log = logging.getLogger("workbench")

MOST_IN_A_ROW = 10
"""updates left out one after another, after which the run ends"""
RECOVERS_AFTER = 200
"""finite updates after which `back_off` doubles the learning rate, until it is as before"""
REMEMBERED = 500
"""batches kept in memory, at most, until it is known whether they were finite"""
SAVED = 10
"""files kept in `nonfinite/`, the newest"""


class BadBatch(NamedTuple):
    """A batch whose loss or gradient was not finite, with the rows of all processes."""

    step: int
    """the update it was for, counted from 1"""
    tokens_BT: Tensor
    targets_BT: Tensor
    carry: Carry | None = None
    """what the update began with; None where it is no longer known"""


class Guard:
    """Decides on each update, the same in all processes.

    Args:
        config: `on_nonfinite` above all.
        world: the processes that share the batch.
        scale: of the loss.
        device: where the model is.
    """

    def __init__(
        self, config: TrainConfig, world: World, scale: LossScale, device: torch.device
    ) -> None:
        self.policy, self.world, self.scale = config.on_nonfinite, world, scale
        self.found: list[BadBatch] = []
        """Bad batches that nobody has saved yet."""
        self.factor = 1.0
        """Of the learning rate, under `back_off`."""
        self._finite = 0
        self._left_out = 0
        self._overflows = torch.zeros((), dtype=torch.int64, device=device)
        self._recent: deque[tuple[int, Batch]] = deque(maxlen=REMEMBERED)

    @property
    def waits(self) -> bool:
        """Whether each update is looked at before it is made."""
        return self.policy != "stop"

    def judge(self, terms: dict[str, Tensor], grad_norm: Tensor) -> tuple[Tensor, Tensor]:
        """Of an update: whether it is bad, and whether a gradient overflowed.

        Both are booleans that stay on the device. Under fp16 a gradient may overflow, as long as
        a smaller scale can mend it: then the update is left out, and nothing is bad.
        """
        overflow = ~grad_norm.isfinite()
        bad = ~total(terms).detach().isfinite()
        if not self.scale.used:
            return bad | overflow, overflow
        self._overflows = torch.where(overflow, self._overflows + 1, 0)
        hopeless = self.scale.factor <= 1
        if not self.scale.dynamic:
            hopeless = hopeless | (self._overflows > MOST_IN_A_ROW)
        return bad | (overflow & hopeless), overflow

    def remember(self, step: int, batch: Batch) -> None:
        """Keep a batch until `forget`; nothing is copied."""
        self._recent.append((step, batch))

    def forget(self) -> None:
        """All updates so far were finite."""
        self._recent.clear()

    def collect(self, step: int) -> None:
        """Bring together, from all processes, the batch that was bad; its carry has gone on."""
        for kept, batch in self._recent:
            if kept == step:
                self._found(step, batch, None)

    def leaves_out(self, step: int, batch: Batch, start: Carry, bad: Tensor, rate: float) -> bool:
        """Whether the update must not be made; waits for the device, and for all processes.

        Args:
            step: the number of this update, from 1.
            batch, start: what it read.
            bad: what `judge` said here.
            rate: learning rate, for the message.

        Raises:
            NonFiniteLoss: there were too many in a row.
        """
        if not self.world.highest(float(bad))[0]:
            self._left_out = 0
            self._finite += 1
            if self.factor < 1 and self._finite >= RECOVERS_AFTER:
                self.factor, self._finite = min(1.0, 2 * self.factor), 0
            return False
        self._finite = 0
        self._left_out += 1
        self._found(step, batch, start)
        if self._left_out > MOST_IN_A_ROW:
            raise NonFiniteLoss(
                f"{self._left_out} updates in a row were left out, the last one {step}, because "
                f"their losses or gradients were NaN or infinite (learning rate {rate:.3g}). To "
                "mend: a smaller train.optimizer.lr, or more schedule.warmup_steps"
            )
        if self.policy == "back_off":
            self.factor /= 2
        log.warning(
            "update %d is left out: its loss or gradient is NaN or infinite%s",
            step,
            f"; the learning rate is multiplied by {self.factor:g}" if self.factor < 1 else "",
        )
        return True

    def _found(self, step: int, batch: Batch, carry: Carry | None) -> None:
        tokens, targets = (self.world.gather(x) for x in (batch.tokens_BT, batch.targets_BT))
        carry = None if carry is None else self.world.join(carry)
        if self.world.leads:
            self.found.append(BadBatch(step, torch.cat(tokens), torch.cat(targets), carry))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "factor": self.factor,
            "finite": self._finite,
            "left_out": self._left_out,
            "overflows": self._overflows,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave, or from nothing: from before there was a guard."""
        self.factor = state.get("factor", 1.0) if self.policy == "back_off" else 1.0
        self._finite, self._left_out = state.get("finite", 0), state.get("left_out", 0)
        if "overflows" in state:
            self._overflows = state["overflows"].to(self._overflows.device)


def save(folder: RunFolder, found: list[BadBatch]) -> list[Path]:
    """Write batches into a run folder, and take them off the list.

    A disk that is full is told, and stops nothing: what broke is worth more than its batch.
    """
    written = []
    while found:
        it = found.pop(0)
        tensors = {"tokens_BT": it.tokens_BT, "targets_BT": it.targets_BT}
        for layer, state in enumerate(it.carry or ()):
            leaves = ((i, x) for i, x in enumerate(state) if isinstance(x, Tensor))
            tensors |= {f"carry.{layer}.{i}": x.cpu() for i, x in leaves}
        tensors = {name: x.contiguous().clone() for name, x in tensors.items()}
        try:
            path = folder.artefact(f"nonfinite/step-{it.step:07d}.safetensors")
            storage.replace(path, safetensors.torch.save(tensors, {"step": str(it.step)}))
        except OSError as error:
            log.warning("the batch of update %d could not be saved: %s", it.step, error)
            continue
        written.append(path)
        for old in sorted(path.parent.glob("step-*"))[:-SAVED]:
            old.unlink()
    return written


def evidence(folder: RunFolder, found: list[BadBatch]) -> str:
    """What there is to look at after a loss that was not finite; saves its batch."""
    lines = [
        f'Its batch is {path}. To see where it breaks: python -c "from workbench.train.nonfinite '
        f'import replay; print(replay({str(folder.path)!r}))"'
        for path in save(folder, found)
    ]
    lines.append("The last checkpoint is untouched. Last records:")
    rows = [json.dumps(row) for row in folder.records()[-5:]]
    return "\n  ".join(["\n".join(lines), *(rows or ["none yet"])])
