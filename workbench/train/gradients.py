"""From a batch to gradients: in one or several pieces, in one or several processes.

Shapes: B rows of this process, T segment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from workbench import carry as carries
from workbench.carry import Carry
from workbench.data.batches import Batch
from workbench.errors import ConfigError
from workbench.models import draws
from workbench.models.base import Model
from workbench.train.compiling import Compiled
from workbench.train.config import TrainConfig
from workbench.train.distributed import World, own_seed
from workbench.train.objective import objective, total
from workbench.train.precision import LossScale, check_precision, computing
from workbench.train.shards import Shards


class Losses(nn.Module):
    """A model's losses of one segment as a module's forward pass, which is what DDP wraps.

    The carry it returns is cut from its gradient.
    """

    def __init__(self, model: Model, compiled: bool, shards: Shards | None = None) -> None:
        super().__init__()
        self.model, self.shards = model, shards
        self.function = Compiled(model.losses) if compiled else model.losses

    @property
    def compiled(self) -> bool:
        """Whether `torch.compile`'s code runs."""
        return isinstance(self.function, Compiled) and self.function.active

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor, carry: Carry
    ) -> tuple[Tensor, dict[str, Tensor], Carry]:
        nll_BT, penalties, carry = self.function(tokens_BT, targets_BT, carry)
        if self.shards is not None:
            nll_BT = nll_BT + self.shards.touched()
        return nll_BT, penalties, carries.detach(carry)


def _averaged(losses: Losses, device: torch.device) -> Any:
    """The same forward pass; its backward pass averages gradients over all processes."""
    # loaded late: it brings the whole compiler, which makes a folder for itself
    from torch.nn.parallel import DistributedDataParallel

    # buffers are alike in all processes by themselves; the argument has two names
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    wrapped: Callable[..., Any] = DistributedDataParallel
    return wrapped(
        losses,
        device_ids=[device] if device.type == "cuda" else None,
        # such as those of a branch that a short segment does not reach
        find_unused_parameters=True,
        **{name: False},
    )


def check_pieces(config: TrainConfig, batch_size: int, world: World) -> None:
    """Refuse micro-batches of different sizes, before anything is spent.

    Args:
        batch_size: rows of all processes together, which `world` shares evenly.
    """
    rows, pieces = batch_size // world.size, config.micro_batches
    if rows % pieces:
        fitting = [str(n) for n in range(1, rows + 1) if rows % n == 0]
        raise ConfigError(
            f"train.micro_batches is {pieces}, but the {rows} rows of a batch (data.batch_size "
            f"{batch_size}, {world.size} processes) cannot be cut into so many equal pieces; write "
            f"one of {', '.join(fitting)}"
        )


class Gradients:
    """The backward pass.

    Args:
        model: on the device where it is to be trained.
        config: how.
        world: the processes that average their gradients.
        shards: of the model, where it is spread over them.

    Raises:
        ConfigError: the device cannot compute in `train.precision`.
    """

    def __init__(
        self, model: Model, config: TrainConfig, world: World, shards: Shards | None = None
    ) -> None:
        check_precision(config.precision, model.device)
        self.config, self.device = config, model.device
        self.scale = LossScale(config.precision, config.loss_scale, self.device)
        model.recompute = config.recompute
        self.losses, self._shards = Losses(model, config.compile, shards), shards
        self._ddp = None
        if world.size > 1 and shards is None:
            self._ddp = _averaged(self.losses, self.device)

    def add(self, batch: Batch, start: Carry, step: int) -> tuple[dict[str, Tensor], Carry]:
        """Add the gradient of a batch, averaged over all processes, to that of the parameters: a
        multiple of it where there is a `scale`.

        The rows are read in `train.micro_batches` pieces one after another: what is in memory
        between forward and backward pass is that of one piece.

        Args:
            batch: this process's rows.
            start: their carry.
            step: updates done before.

        Returns:
            the terms of the loss over this process's rows, and the new carry.
        """
        config, B = self.config, len(batch.tokens_BT)
        each, last = B // config.micro_batches, B - B // config.micro_batches
        sums: dict[str, Tensor] = {}
        parts = []
        for at in range(0, B, each):
            rows = slice(at, at + each)
            piece = carries.rows(start, at, at + each) if each < B else start
            # gradients meet those of the other processes once, when all pieces are there
            if self._shards is not None:
                self._shards.accumulate(last=at == last)
            alone = nullcontext() if self._ddp is None or at == last else self._ddp.no_sync()
            with alone, draws.shared(own_seed(config.seed, ~step)):
                with computing(config.precision, self.device):
                    nll_BT, penalties, carry = (self._ddp or self.losses)(
                        batch.tokens_BT[rows], batch.targets_BT[rows], piece
                    )
                terms = objective(nll_BT, penalties)
                self.scale.scaled(total(terms) * (each / B)).backward()
            parts.append(carry)
            for name, value in terms.items():
                share = value.detach() * (each / B)
                sums[name] = sums[name] + share if name in sums else share
        if self._shards is not None:
            self._shards.collect()
        return sums, carries.join(parts) if len(parts) > 1 else parts[0]
