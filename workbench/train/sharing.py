"""Work that several processes share, and its results in the order in which one would have them.

Of n things each process takes equally many, so that all do the same number of forward passes: what
is short at the end does the last thing once more, and nobody looks at it. So no process waits long
for another, and weights that are spread over processes are there whenever they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.carry import Carry
from workbench.models import draws
from workbench.train.distributed import World, own_seed

Out = tuple[Tensor, ...]
Read = Callable[[Tensor, Tensor, Carry], tuple[Out, Carry]]
"""(tokens_BT, targets_BT, carry) -> what is kept of each target, (B, T, ...) each, and the carry;
where tokens are more than targets, the first ones are context only"""


def share(n: int, world: World) -> Tensor:
    """(ceil(n / processes),) which of n things this process does, the last ones repeated."""
    each = math.ceil(n / world.size)
    return torch.arange(world.rank * each, (world.rank + 1) * each).clamp(max=n - 1)


def together(parts: Out, n: int, world: World) -> Out:
    """What all processes have made of their shares, the same in each of them.

    Args:
        parts: (things of this process, ...) on the CPU; alike in shape and type everywhere.
        n: things in all.

    Returns:
        (n, ...) each.
    """
    if world.size == 1:
        return parts
    return tuple(torch.cat(from_all(part, world))[:n] for part in parts)


def from_all(part: Tensor, world: World) -> list[Tensor]:
    """Tensors of one shape and type of all processes, in their order, on the CPU."""
    part = part.detach().cpu().contiguous()
    if world.size == 1 or not part.numel():
        return [part] * world.size
    # as bytes: gloo does not know every type
    flat = part.view(-1).view(torch.uint8)
    parts = [torch.empty_like(flat) for _ in range(world.size)]
    dist.all_gather(parts, flat, group=world.control)
    return [found.view(part.dtype).view(part.shape) for found in parts]


def padded(part: Tensor, n: int) -> Tensor:
    """(n, ...): rows of zeros after those that there are."""
    missing = part.new_zeros(n - len(part), *part.shape[1:])
    return torch.cat([part, missing]) if len(missing) else part


def unequal(parts: Sequence[Tensor], lengths: Sequence[int], world: World) -> list[Tensor]:
    """As `together`, for rows of numbers that have lengths of their own.

    Args:
        parts: of this process, one for each of its things.
        lengths: of all things.
    """
    longest = max(lengths)
    (rows,) = together(
        (torch.stack([padded(x.cpu(), longest) for x in parts]),), len(lengths), world
    )
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


class Passes:
    """Forward passes with a number, from which follows what a model draws in them.

    So a model that draws in evaluation, too, draws the same whoever does the pass.

    Args:
        read: what is to be done in each.

    Attributes:
        number: of the next pass.
    """

    def __init__(self, read: Read) -> None:
        self._read, self.number = read, 0

    def __call__(self, tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Out, Carry]:
        with draws.shared(own_seed(0, self.number), compiled=False):
            self.number += 1
            return self._read(tokens_BT, targets_BT, carry)
