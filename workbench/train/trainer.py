"""The trainer: one update after another, and everything that must be remembered between them.

Here, and nowhere else, the carried state is cut from its gradient (truncated back-propagation
through time, arXiv:1901.02860 section 3.2). Values stay on the device until a record is due.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from workbench.train.checkpoint import Storable
from workbench.train.config import TrainConfig
from workbench.train.deterministic import check_deterministic, deterministic
from workbench.train.distributed import ALONE, World, own_seed, state_of, states_of_all
from workbench.train.gradients import Gradients
from workbench.train.guard import Guard
from workbench.train.memory import peak_bytes
from workbench.train.meters import Meters
from workbench.train.optim import take_over
from workbench.train.own_random import OwnRandom
from workbench.train.records import TrainRecord
from workbench.train.shards import Shards

log = logging.getLogger("workbench")


class Trainer:
    """A model in training.

    Args:
        model: on the device where it is to be trained.
        segments: where batches come from, on the same device: this process's rows.
        config: how to train.
        name: the recipe's name, for messages.
        world: the processes that train together; all of them call every method together.
    """

    def __init__(
        self,
        model: Model,
        segments: Batches,
        config: TrainConfig,
        name: str,
        world: World = ALONE,
    ) -> None:
        self.model, self.segments, self.config, self.name = model, segments, config, name
        self.world = world
        self.device = model.device
        if config.deterministic:
            check_deterministic(self.device)
        self.shards = Shards(model, world) if config.shard and world.size > 1 else None
        self.stored: Storable | None = None
        """What `state` has put together of weights that are spread, in process 0."""
        trained = self.shards.own if self.shards else model
        self.optimizer = config.optimizer.build(trained, config.clip_norm)
        self.random = OwnRandom(own_seed(config.seed, world.rank), self.device)
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
        self._ran_before: dict[str, str] = {}
        self._parameters = [p for p in trained.parameters() if p.requires_grad]
        self._gradients = Gradients(model, config, world, self.shards)
        self.scale = self._gradients.scale
        self.guard = Guard(config, world, self.scale, self.device)

    def update(self) -> None:
        """One step of the optimizer on the next segment. Nothing is waited for, but under
        `on_nonfinite: skip` and `back_off` and under fp16, see `Guard` and `LossScale`.

        Raises:
            NonFiniteLoss: too many updates in a row were left out.
        """
        begin = time.perf_counter()
        self.model.train()
        batch = self.segments.next()
        self.optimizer.zero_grad(set_to_none=True)
        start = self.start_carry(batch)
        with deterministic(self.config.deterministic):
            terms, carry = self._gradients.add(batch, start, self.step)
            self.scale.unscale(self.optimizer)
            grad_norm = self._clip()
            self._set_lr(batch)
            bad, overflow = self.guard.judge(terms, grad_norm)
            self.step += 1
            n_targets = batch.targets_BT.numel()
            self.tokens += n_targets * self.world.size
            if self.guard.waits and self.guard.leaves_out(self.step, batch, start, bad, self.lr):
                self.scale.skip()
                self.carry = start
                self.meters.skipped += 1
            else:
                self.carry = carry
                self._step(grad_norm, overflow)
                self.guard.remember(self.step, batch)
                self.meters.add(terms, n_targets, bad, self.step)
        self.meters.seconds += time.perf_counter() - begin

    def _step(self, grad_norm: Tensor, overflow: Tensor) -> None:
        self.scale.step(self.optimizer)
        if isinstance(self.optimizer, AveragedSGD):
            self.lr = self.optimizer.rate
        self.model.after_step()
        if self.scale.used:
            self.meters.skipped += overflow
            grad_norm = torch.where(overflow, self.grad_norm, grad_norm)
        self.grad_norm = grad_norm

    def start_carry(self, batch: Batch) -> Carry:
        """What a batch is read from."""
        if self.config.carry == "reset":
            return self.model.initial_carry(len(batch.tokens_BT))
        if self.carry is None or batch.fresh:
            limits = Limits(ext_len=self.segments.ext_len)
            return self.model.initial_carry(len(batch.tokens_BT), limits)
        return self.carry

    def _clip(self) -> Tensor:
        """Norm of the gradient before clipping."""
        if self.shards is not None:
            norm = self.shards.norm(gradients=True)
            if self.config.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, self.config.clip_norm, norm)
            return norm
        if self.config.clip_norm is not None and self.config.optimizer.clips == "global":
            return torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        return torch.nn.utils.get_total_norm(
            [p.grad for p in self._parameters if p.grad is not None]
        )

    def _set_lr(self, batch: Batch) -> None:
        config = self.config
        rate = config.schedule.lr(self.step, config.optimizer.lr, config.steps)
        rate = config.schedule.lowered(rate, self.validations) * batch.lr_scale
        self.lr = rate * self.guard.factor
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    @property
    def _averages(self) -> bool:
        return isinstance(self.optimizer, AveragedSGD) and self.optimizer.averaging

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights, where there are any: for validation and
        for checkpoints. The optimizer keeps the others meanwhile."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
            if self.shards is not None:
                self.shards.reshard()

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
        bad_step = int(self.world.highest(int(self.meters.bad_step))[0])
        self.meters.seconds += time.perf_counter() - begin
        if bad_step:
            self.guard.collect(bad_step)
            raise NonFiniteLoss(
                f"the loss or its gradient became NaN or infinite in update {bad_step} of recipe "
                f"'{self.name}' (learning rate {self.lr:.3g}). To mend: a smaller "
                "train.optimizer.lr, more schedule.warmup_steps, a smaller train.clip_norm, or "
                "train.on_nonfinite: skip"
            )
        self.guard.forget()

    def record(self, elapsed_s: float) -> TrainRecord:
        """What happened since the last record; waits for the device.

        Raises:
            NonFiniteLoss: the model is broken.
        """
        self.check_finite()
        meters, self.meters = self.meters, Meters.fresh(self.device)
        begin = time.perf_counter()
        names = list(meters.penalties)
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm
            param_norm = self.shards.norm(False) if self.shards else norm(self._parameters)
        # these are the same in all processes
        common = [self.grad_norm, param_norm, meters.skipped]
        sums = [meters.loss, *common, *(meters.penalties[n] for n in names)]
        summed = self.world.total(torch.stack([x.double() for x in sums])) / self.world.size
        loss, grad_norm, param_norm, skipped, *penalties = summed.tolist()
        meters.seconds += time.perf_counter() - begin
        return TrainRecord(
            step=self.step,
            tokens=self.tokens,
            loss_nats=loss / meters.tokens,
            penalties={n: x / meters.updates for n, x in zip(names, penalties, strict=True)},
            lr=self.lr,
            grad_norm=grad_norm,
            param_norm=param_norm,
            tokens_per_s=meters.tokens * self.world.size / max(meters.seconds, 1e-9),
            elapsed_s=elapsed_s,
            memory_bytes=carries.nbytes(self.carry or ()),
            readings=self.model.readings(),
            backends=self._backends(),
            precision=self.config.precision,
            compiled=self._gradients.losses.compiled,
            processes=self.world.size,
            loss_scale=self.scale.value(),
            skipped=round(skipped),
            peak_bytes=int(self.world.highest(peak_bytes(self.device))[0]),
        )

    def _backends(self) -> dict[str, str]:
        """Of all sessions of the run, each op's newest."""
        return {**self._ran_before, **kernels.ran()}

    def state(self) -> dict[str, Any]:
        """All but the weights, as tensors and plain values for a checkpoint: in process 0 that of
        all processes, which any other number of them can continue from."""
        meters, world = self.meters, self.world
        self.stored = self.shards.stored() if self.shards else None
        sums = world.total(torch.stack([meters.loss, *meters.penalties.values()]))
        carry = None if self.carry is None else world.join(_compact(self.carry))
        return {
            "step": self.step,
            "tokens": self.tokens,
            "optimizer": self._optimizer_state(),
            "carry": None if carry is None else carries.flatten(carry),
            "segments": self.segments.state(),
            "random": states_of_all(world, self.random.state),
            "lr": self.lr,
            "grad_norm": self.grad_norm,
            "validations": list(self.validations),
            "averaged_from": self.averaged_from,
            "loss_scale": self.scale.state(),
            "guard": self.guard.state(),
            "backends": self._backends(),
            "meters": {
                "loss": sums[0],
                "penalties": dict(zip(meters.penalties, sums[1:] / world.size, strict=True)),
                "tokens": meters.tokens * world.size,
                "updates": meters.updates,
                "seconds": meters.seconds,
                "skipped": meters.skipped,
            },
        }

    def _optimizer_state(self) -> dict[str, Any]:
        if self.shards is not None:
            return self.shards.whole_state(self.optimizer)
        return self.optimizer.state_dict()

    def _take_over(self, state: dict[str, Any]) -> None:
        if self.shards is not None:
            state = self.shards.own_state(self.optimizer, state)
        take_over(self.optimizer, state)

    @property
    def storage(self) -> Storable:
        """Where a checkpoint's weights go to."""
        return self.shards.unfilled() if self.shards else self.model

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
        self._take_over({**self.optimizer.state_dict(), "state": theirs})

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave; the weights are the caller's affair."""
        self.step, self.tokens, self.lr = state["step"], state["tokens"], state["lr"]
        self._take_over(state["optimizer"])
        if isinstance(self.optimizer, AveragedSGD) and self.optimizer.swapped:
            # the checkpoint's weights are the averages
            self.optimizer.swap()
        self.validations = list(state.get("validations", ()))
        self.averaged_from = state.get("averaged_from")
        # not there before there was fp16
        self.scale.restore(state.get("loss_scale", {}))
        self.guard.restore(state.get("guard", {}))
        self._ran_before = state.get("backends", {})
        self.segments.restore(state["segments"])
        self._restore_random(state["random"])
        self.grad_norm = state["grad_norm"].to(self.device)
        self.carry = None
        if state["carry"] is not None:
            like = self.model.initial_carry(1)
            carry = carries.unflatten(state["carry"], like)
            self.carry = carries.to(self.world.rows(carry), self.device)
        meters = state["meters"]
        self.meters = Meters.fresh(self.device)
        self.meters.loss += meters["loss"].to(self.device) / self.world.size
        self.meters.penalties = {n: x.to(self.device) for n, x in meters["penalties"].items()}
        self.meters.tokens = meters["tokens"] // self.world.size
        self.meters.updates = meters["updates"]
        self.meters.skipped += meters.get("skipped", 0)
        self.meters.seconds = meters["seconds"]

    def _restore_random(self, states: dict[str, Tensor] | list[dict[str, Tensor]]) -> None:
        """Each process's own generators; where there are more processes than before, the new ones
        begin afresh, at numbers that no other process has."""
        # one dict: from before there were several processes
        states = [states] if isinstance(states, dict) else states
        own = state_of(self.world, states)
        if own is not None:
            self.random.state = own
        else:
            seed = own_seed(self.config.seed + self.step, self.world.rank)
            self.random = OwnRandom(seed, self.device)


def _compact(carry: Carry) -> Carry:
    """Copies without the storage that a view of a longer tensor would drag along."""
    return carries.map_tensors(lambda x: x.clone(memory_format=torch.contiguous_format), carry)
