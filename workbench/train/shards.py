"""`train.shard`: weights, gradients and optimizer spread over processes (FSDP2, arXiv:2304.11277).

Each process keeps an equal part of the rows of every parameter. A block's parameters are brought
together for its forward and its backward pass and let go after each; those of both ends of the
vocabulary from a segment's first layer to the end of its backward pass. A few small parameters stay
whole everywhere, because they are read outside of their block: those that several blocks share, and
learned spans.

The optimizer sees this process's rows as ordinary tensors, so it must go number by number, as all
do here but the one that clips each tensor. What a checkpoint holds is what one process would have
written: the rows of all are put together in process 0, on the CPU.

Shapes: R rows of a parameter, ceil(R / processes) of them here, fewer or none at the end.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workbench import carry as carries
from workbench.carry import Carry
from workbench.errors import ConfigError
from workbench.models.base import Model
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.span import Span
from workbench.train.distributed import World
from workbench.train.sharing import padded


class Own(nn.Module):
    """The parameters of a model, under their names: of each, this process's rows."""

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._named = dict(named)

    def named_parameters(self, *_: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self._named.items()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield from self._named.values()


class Stored:
    """A model as checkpoints see it: under the names of the whole one.

    Attributes:
        vocab_size: of the model.
    """

    def __init__(self, shards: Shards, weights: Mapping[str, Tensor]) -> None:
        self.vocab_size, self._shards, self._weights = shards.model.vocab_size, shards, weights

    def state_dict(self) -> Mapping[str, Tensor]:
        return self._weights

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Take this process's rows of whole weights."""
        self._shards.load(weights)


class Shards:
    """A model whose parameters are spread over the processes of a world.

    Args:
        model: whole, and alike in all processes, on the device where it is to be trained.
        world: of more than one process.

    Attributes:
        own: what the optimizer is to train.

    Raises:
        ConfigError: the model cannot be spread.
    """

    def __init__(self, model: Model, world: World) -> None:
        if not isinstance(model, LanguageModel):
            raise ConfigError(
                "train.shard is true, but this is no language model of blocks; write shard: false"
            )
        if _learned(model.initial_carry(1)):
            raise ConfigError(
                "train.shard is true, but a state begins with learned values, which would not be "
                "averaged; write shard: false"
            )
        self.model, self.world = model, world
        names = [name for name, _ in model.named_parameters()]
        self._whole = _kept_whole(model)
        _spread(model, self._whole)
        spread = dict(model.named_parameters())
        self._spread = {name: spread[name] for name in names}
        self.own = Own({name: self._rows(p) for name, p in self._spread.items()})

    def _rows(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter in self._whole:
            return parameter
        # the same memory: what the optimizer does here is done to the model
        local = cast(Any, parameter).to_local().detach()
        return nn.Parameter(local, requires_grad=parameter.requires_grad)

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """Each spread parameter and its rows here."""
        for name, own in self.own.named_parameters():
            if own is not self._spread[name]:
                yield self._spread[name], own

    # an update

    def accumulate(self, last: bool) -> None:
        """Say whether the next backward pass is the one after which gradients are averaged."""
        cast(Any, self.model).set_requires_gradient_sync(last)

    def touched(self) -> Tensor:
        """Zero, with a zero gradient for all of the vocabulary: a cluster of rare words may have
        been met by some processes and not by others, and all must have something to average."""
        ends = [p for p in self.model.vocabulary.parameters() if p.requires_grad]
        return torch.stack([p.reshape(-1)[:0].float().sum() for p in ends]).sum()

    def collect(self) -> None:
        """After the backward pass: give the optimizer the averaged gradients."""
        for parameter, own in self._pairs():
            grad, parameter.grad = cast(Any, parameter.grad), None
            own.grad = None if grad is None else grad.to_local()
        whole = [p for p in self.own.parameters() if p in self._whole and p.requires_grad]
        if not whole:
            return
        for p in whole:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        flat = torch.cat([cast(Tensor, p.grad).flatten() for p in whole])
        dist.all_reduce(flat)
        flat /= self.world.size
        for p, grad in zip(whole, flat.split([p.numel() for p in whole]), strict=True):
            cast(Tensor, p.grad).copy_(grad.view_as(p))

    def norm(self, gradients: bool) -> Tensor:
        """Of all parameters of the whole model, or of their gradients; a scalar on the device."""
        spread = [own for _, own in self._pairs() if own.requires_grad]
        whole = [p for p in self.own.parameters() if p in self._whole and p.requires_grad]
        squares = self._square(spread, gradients)
        dist.all_reduce(squares)
        return (squares + self._square(whole, gradients)).sqrt()

    def _square(self, parameters: list[nn.Parameter], gradients: bool) -> Tensor:
        taken = [p.grad if gradients else p.detach() for p in parameters]
        found = [x for x in taken if x is not None and x.numel()]
        norm = torch.nn.utils.get_total_norm(found) if found else torch.zeros(())
        return norm.to(self.model.device).square()

    def reshard(self) -> None:
        """Let go of what passes without a backward pass have left together."""
        for module in self.model.modules():
            if module is self.model or module in list(self.model.blocks):
                cast(Any, module).reshard()

    # checkpoints

    def stored(self) -> Stored:
        """For a checkpoint: whole in process 0; all processes call this together."""
        made: dict[int, Tensor] = {}
        named = {}
        for name, value in self.model.state_dict(keep_vars=True).items():
            # tied ones once
            if id(value) not in made:
                spread = isinstance(value, nn.Parameter) and value not in self._whole
                rows = cast(Any, value).to_local() if spread else value
                made[id(value)] = self._together(rows.detach(), value.shape) if spread else rows
            named[name] = made[id(value)].detach()
        return Stored(self, named if self.world.leads else {})

    def unfilled(self) -> Stored:
        """To be filled from a checkpoint."""
        return Stored(self, self.model.state_dict())

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take this process's rows of whole weights, by the names of the whole model."""
        for name, value in self.model.state_dict(keep_vars=True).items():
            if isinstance(value, nn.Parameter) and value not in self._whole:
                cast(Any, value).to_local().copy_(self._cut(weights[name]))
            else:
                value.copy_(weights[name])

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Its `state_dict()` with whole tensors, in process 0; all call this together."""
        state = optimizer.state_dict()
        numbered = self._numbered(optimizer)
        whole = {
            i: {
                key: self._together(x, numbered[i][0].shape) if _is_rows(x, numbered[i]) else x
                for key, x in entry.items()
            }
            for i, entry in state["state"].items()
        }
        return {**state, "state": whole}

    def own_state(
        self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The other way round: this process's rows of what any number of processes wrote."""
        numbered = self._numbered(optimizer)
        own = {
            i: {key: self._cut(x) if _is_whole(x, numbered[i]) else x for key, x in entry.items()}
            for i, entry in state["state"].items()
        }
        return {**state, "state": own}

    def _numbered(
        self, optimizer: torch.optim.Optimizer
    ) -> dict[int, tuple[nn.Parameter, nn.Parameter]]:
        """Of each number in its `state_dict()`: the spread parameter, and its rows here."""
        owned = {own: self._spread[name] for name, own in self.own.named_parameters()}
        inside = (p for group in optimizer.param_groups for p in group["params"])
        return {i: (owned[own], own) for i, own in enumerate(inside)}

    def _cut(self, whole: Tensor) -> Tensor:
        each = math.ceil(len(whole) / self.world.size)
        return whole[self.world.rank * each : (self.world.rank + 1) * each].clone()

    def _together(self, rows: Tensor, shape: torch.Size) -> Tensor:
        each = math.ceil(shape[0] / self.world.size)
        parts = self.world.gather(padded(rows.detach().cpu(), each))
        return torch.cat(parts)[: shape[0]] if parts else rows


def _learned(carry: Carry) -> bool:
    leaves = (leaf for state in carries.flatten(carry) for leaf in state)
    return any(isinstance(x, Tensor) and x.requires_grad for x in leaves)


def _is_rows(value: Any, pair: tuple[nn.Parameter, nn.Parameter]) -> bool:
    spread, own = pair
    return isinstance(value, Tensor) and own is not spread and value.shape == own.shape


def _is_whole(value: Any, pair: tuple[nn.Parameter, nn.Parameter]) -> bool:
    spread, own = pair
    return isinstance(value, Tensor) and own is not spread and value.shape == spread.shape


def _kept_whole(model: LanguageModel) -> set[nn.Parameter]:
    """Parameters that are read outside of their block."""
    owners = Counter(p for block in model.layers for p in set(block.parameters()))
    spans = (m for m in model.modules() if isinstance(m, Span))
    read = {p for span in spans for p in span.parameters()}
    return {p for p in model.parameters() if owners[p] > 1 or p in read or p.ndim == 0}


def _spread(model: LanguageModel, whole: set[nn.Parameter]) -> None:
    """Spread all but `whole`, by blocks, in place."""
    # loaded late: they bring the whole compiler
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor

    # nothing that a model returns here is changed in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    device = model.device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in model.layers:
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole, reshard_after_forward=False)
    for method in ("losses", "nll", "log_probs"):
        register_fsdp_forward_method(model, method)
    made = model.initial_carry

    def initial_carry(*given: Any, **named: Any) -> Carry:
        """Plain tensors, although they are made like parameters that are spread."""
        return carries.map_tensors(
            lambda x: x.full_tensor() if isinstance(x, DTensor) else x, made(*given, **named)
        )

    name = "initial_carry"
    setattr(model, name, initial_carry)
