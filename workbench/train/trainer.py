"""The trainer: one update after another, and everything that must be remembered between them.

Here, and nowhere else, the carried state is cut from its gradient (truncated back-propagation
through time, arXiv:1901.02860 section 3.2). Values stay on the device until a record is due.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from workbench import carry as carries
from workbench import kernels
from workbench.carry import Carry
from workbench.data.batches import Batch, Batches
from workbench.errors import ConfigError, NonFiniteLoss
from workbench.models.base import Model
from workbench.models.mixers.base import Limits
from workbench.train.averaging import AveragedSGD, non_monotone
from workbench.train.compiling import Compiled
from workbench.train.config import TrainConfig
from workbench.train.objective import objective, total
from workbench.train.optim import take_over
from workbench.train.precision import check_precision, computing
from workbench.train.records import TrainRecord

log = logging.getLogger("workbench")


@dataclass
class Meters:
    """Sums since the last training record; the tensors live on the device."""

    loss: Tensor
    """Nats over all targets."""
    bad_step: Tensor
    """First update with a loss or a gradient that is not finite; 0 while there is none."""
    penalties: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
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


class Trainer:
    """A model in training.

    Args:
        model: on the device where it is to be trained.
        segments: where batches come from, on the same device.
        config: how to train.
        name: the recipe's name, for messages.
    """

    def __init__(self, model: Model, segments: Batches, config: TrainConfig, name: str) -> None:
        self.model, self.segments, self.config, self.name = model, segments, config, name
        self.device = model.device
        self.optimizer = config.optimizer.build(model, config.clip_norm)
        self.random = OwnRandom(config.seed, self.device)
        self.step = 0
        self.tokens = 0
        self.carry: Carry | None = None
        self.meters = Meters.fresh(self.device)
        self.lr = 0.0
        self.validations: list[float] = []
        """Nats per token, oldest first."""
        self.averaged_from = 0 if self._averages else None
        """Updates done when the averaging of weights began; None while there is none."""
        self.grad_norm = torch.zeros((), device=self.device)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        check_precision(config.precision, self.device)
        self._losses = Compiled(model.losses) if config.compile else model.losses

    def update(self) -> None:
        """One step of the optimizer on the next segment. Nothing is waited for."""
        begin = time.perf_counter()
        self.model.train()
        batch = self.segments.next()
        start = self._start_carry(batch)
        with computing(self.config.precision, self.device):
            nll_BT, penalties, carry = self._losses(batch.tokens_BT, batch.targets_BT, start)
        terms = objective(nll_BT, penalties)
        self.optimizer.zero_grad(set_to_none=True)
        total(terms).backward()
        self.grad_norm = self._clip()
        self._set_lr(batch)
        self.optimizer.step()
        if isinstance(self.optimizer, AveragedSGD):
            self.lr = self.optimizer.rate
        self.model.after_step()
        self.carry = carries.detach(carry)
        self.step += 1
        self.tokens += nll_BT.numel()
        self.meters.add(terms, nll_BT.numel(), self.grad_norm, self.step)
        self.meters.seconds += time.perf_counter() - begin

    def _start_carry(self, batch: Batch) -> Carry:
        if self.config.carry == "reset":
            return self.model.initial_carry(len(batch.tokens_BT))
        if self.carry is None or batch.fresh:
            limits = Limits(ext_len=self.segments.ext_len)
            return self.model.initial_carry(len(batch.tokens_BT), limits)
        return self.carry

    def _clip(self) -> Tensor:
        """Norm of the gradient before clipping."""
        if self.config.clip_norm is not None and self.config.optimizer.clips == "global":
            return torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        return torch.nn.utils.get_total_norm(
            [p.grad for p in self._parameters if p.grad is not None]
        )

    def _set_lr(self, batch: Batch) -> None:
        config = self.config
        rate = config.schedule.lr(self.step, config.optimizer.lr, config.steps)
        self.lr = config.schedule.lowered(rate, self.validations) * batch.lr_scale
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    @property
    def _averages(self) -> bool:
        return isinstance(self.optimizer, AveragedSGD) and self.optimizer.averaging

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights, where there are any: for validation and
        for checkpoints. The optimizer keeps the others meanwhile."""
        if not self._averages:
            yield
            return
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the weights in training with their averages, where there are any."""
        if self._averages:
            cast(AveragedSGD, self.optimizer).swap()

    def validated(self, nats: float) -> None:
        """Remember a validation; averaging begins if it is the sign that was waited for."""
        config, optimizer = self.config.optimizer, self.optimizer
        waits = isinstance(optimizer, AveragedSGD) and not optimizer.averaging
        if waits and non_monotone(self.validations, nats, config.nonmono):
            optimizer.begin()
            self.averaged_from = self.step
            log.info(
                "averaging begins after update %d: validation at %.4f nats is worse than %d before",
                self.step, nats, config.nonmono,
            )  # fmt: skip
        self.validations.append(nats)

    def check_finite(self) -> None:
        """Wait for the device and refuse to go on with a broken model.

        Raises:
            NonFiniteLoss: a loss or a gradient since the last record was not finite.
        """
        begin = time.perf_counter()
        bad_step = int(self.meters.bad_step)
        self.meters.seconds += time.perf_counter() - begin
        if bad_step:
            raise NonFiniteLoss(
                f"the loss or its gradient became NaN or infinite in update {bad_step} of recipe "
                f"'{self.name}' (learning rate {self.lr:.3g}). To mend: a smaller "
                "train.optimizer.lr, more schedule.warmup_steps, or a smaller train.clip_norm"
            )

    def record(self, elapsed_s: float) -> TrainRecord:
        """What happened since the last record; waits for the device.

        Raises:
            NonFiniteLoss: the model is broken.
        """
        self.check_finite()
        meters, self.meters = self.meters, Meters.fresh(self.device)
        begin = time.perf_counter()
        names = list(meters.penalties)
        sums = [meters.loss, self.grad_norm.double(), *(meters.penalties[n] for n in names)]
        loss, grad_norm, *penalties = torch.stack(sums).tolist()
        meters.seconds += time.perf_counter() - begin
        return TrainRecord(
            step=self.step,
            tokens=self.tokens,
            loss_nats=loss / meters.tokens,
            penalties={n: x / meters.updates for n, x in zip(names, penalties, strict=True)},
            lr=self.lr,
            grad_norm=grad_norm,
            tokens_per_s=meters.tokens / max(meters.seconds, 1e-9),
            elapsed_s=elapsed_s,
            memory_bytes=carries.nbytes(self.carry or ()),
            readings=self.model.readings(),
            backends=kernels.ran(),
            precision=self.config.precision,
            compiled=isinstance(self._losses, Compiled) and self._losses.active,
        )

    def state(self) -> dict[str, Any]:
        """All but the weights, as tensors and plain values for a checkpoint."""
        meters = self.meters
        return {
            "step": self.step,
            "tokens": self.tokens,
            "optimizer": self.optimizer.state_dict(),
            "carry": None if self.carry is None else carries.flatten(_compact(self.carry)),
            "segments": self.segments.state(),
            "random": dict(self.random.state),
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "validations": list(self.validations),
            "averaged_from": self.averaged_from,
            "meters": {
                "loss": meters.loss,
                "penalties": dict(meters.penalties),
                "tokens": meters.tokens,
                "updates": meters.updates,
                "seconds": meters.seconds,
            },
        }

    def adopt(self, state: dict[str, Any]) -> None:
        """Take over the statistics of another run's optimizer; rates and settings are our own.

        Raises:
            ConfigError: that run holds none.
        """
        theirs = state.get("optimizer", {}).get("state")
        if not theirs:
            raise ConfigError(
                "train.start_optimizer is continued, but the run of train.start_from holds no "
                "statistics of an optimizer; write start_optimizer: fresh"
            )
        take_over(self.optimizer, {**self.optimizer.state_dict(), "state": theirs})

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave; the weights are the caller's affair."""
        self.step, self.tokens, self.lr = state["step"], state["tokens"], state["lr"]
        take_over(self.optimizer, state["optimizer"])
        if isinstance(self.optimizer, AveragedSGD) and self.optimizer.swapped:
            # the checkpoint's weights are the averages
            self.optimizer.swap()
        self.validations = list(state.get("validations", ()))
        self.averaged_from = state.get("averaged_from")
        self.segments.restore(state["segments"])
        self.random.state = state["random"]
        self.grad_norm = state["grad_norm"].to(self.device)
        self.carry = None
        if state["carry"] is not None:
            like = self.model.initial_carry(1)
            self.carry = carries.to(carries.unflatten(state["carry"], like), self.device)
        meters = state["meters"]
        self.meters = Meters.fresh(self.device)
        self.meters.loss += meters["loss"].to(self.device)
        self.meters.penalties = {n: x.to(self.device) for n, x in meters["penalties"].items()}
        self.meters.tokens, self.meters.updates = meters["tokens"], meters["updates"]
        self.meters.seconds = meters["seconds"]


def _compact(carry: Carry) -> Carry:
    """Copies without the storage that a view of a longer tensor would drag along."""
    return carries.map_tensors(lambda x: x.clone(memory_format=torch.contiguous_format), carry)
