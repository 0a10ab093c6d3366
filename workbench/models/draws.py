"""Random numbers that belong to weights and not to rows of a batch.

The directions of random features, the classes that a sampled softmax compares with, the weights
that DropConnect spares, the symbols that are not read: one draw holds for a whole update. Where an
update is shared by several processes, or read in several micro-batches, all of them must draw the
same. So inside `shared` such draws follow from a number alone; elsewhere they come from PyTorch's
generators, as all others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

_sharing = False
_seed = 0
"""of the next draw, while sharing"""
_apart: Callable[[torch.device, Callable[[], Tensor]], Tensor] | None = None
"""`_drawn`, outside of compiled graphs"""


@contextmanager
def shared(seed: int, compiled: bool = True) -> Iterator[None]:
    """Inside, the n-th draw `of_weights` follows from `seed` and n alone.

    Args:
        compiled: whether the model may run as a compiled graph there.
    """
    global _sharing, _seed, _apart
    if compiled:
        # a graph would hold the seed of its first run; made late: it brings the compiler
        _apart = _apart or torch.compiler.disable(_drawn)
    _sharing, _seed = True, seed
    try:
        yield
    finally:
        _sharing = False


def twice() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for two computations of the same thing: in the second, draws `of_weights` are those
    of the first again, whatever was drawn between."""
    return nullcontext(), _AsAt(_sharing, _seed)


class _AsAt:
    """A context, as often entered as wanted, in which draws go on from a certain one."""

    def __init__(self, sharing: bool, seed: int) -> None:
        self._then = sharing, seed
        self._now = False, 0

    def __enter__(self) -> None:
        global _sharing, _seed
        self._now = _sharing, _seed
        _sharing, _seed = self._then

    def __exit__(self, *error: object) -> None:
        global _sharing, _seed
        _sharing, _seed = self._now


def of_weights(device: torch.device, draw: Callable[[], Tensor]) -> Tensor:
    """What `draw` returns, the same for all who share the update.

    Args:
        device: whose generators it draws from, beside the CPU's.
        draw: draws from PyTorch's generators.
    """
    return (_apart or _drawn)(device, draw) if _sharing else draw()


def _drawn(device: torch.device, draw: Callable[[], Tensor]) -> Tensor:
    global _seed
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(_seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(_seed)
        _seed = (_seed + 1) % 2**63
        return draw()
