"""A case: one computation at one size, and all the ways to do it, ours and those of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from workbench import kernels
from workbench.kernels.dispatch import OPS

Results = tuple[Tensor, ...]
Work = Callable[[], Results]
"""does the computation and gives all that it gave: outputs, then gradients"""

FWD, BOTH = "fwd", "fwd+bwd"
OURS = "ours"


@dataclass
class Ways:
    """What can be timed of a case on this machine, with its inputs made."""

    ours: dict[str, Work]
    """backend -> work, the preferred one first"""
    peers: dict[str, Work] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """peer -> why it is not here"""
    as_ours: dict[str, Callable[[Results], Results]] = field(default_factory=dict)
    """peer -> how its results become ours to be compared: another layout, another scale"""
    given_ms: dict[str, float] = field(default_factory=dict)
    """peer -> its milliseconds, measured by others on a machine of `GIVEN_GFLOPS`"""
    measured_ms: dict[str, float] = field(default_factory=dict)
    """peer -> its milliseconds, measured on this machine outside of this run"""
    partial: frozenset[str] = frozenset()
    """peers that leave out the last of the results, such as gradients of spans"""
    unlike: frozenset[str] = frozenset()
    """peers that compute something comparable but not the same"""


@dataclass(frozen=True)
class Case:
    """One line or more of the table.

    `make` is called only when the case's turn has come, so that cases not asked for cost nothing.
    """

    group: str
    name: str
    size: str
    way: str
    make: Callable[[torch.device], Ways]
    dtype: str = "float32"
    flops: float = 0.0
    """operations that the computation needs at least, by the best known form"""
    bytes_: float = 0.0
    """bytes that must be read or written at least once"""
    targets: Mapping[str, float] = field(default_factory=dict)
    """peer -> the least ratio asked for; `PEAK`: the least fraction of the peak of products"""
    tolerance: float = 1e-4
    """how far results may lie apart, relative to the largest number of each"""
    sweep: str = ""
    """what grows in the family of cases that this one belongs to"""
    x: float = 0.0
    """its value here"""
    quick: bool = True
    """whether a quick run has it"""
    full: bool = True
    """whether a full run has it"""
    tiny: bool = False
    """whether a run that only tries everything has it: it takes no time"""
    cuda: bool | None = None
    """whether it is for GPUs alone, or for CPUs alone"""


GIVEN_GFLOPS = 180.0
"""fp32 GEMM of the machine on which the originals' milliseconds were measured"""
PEAK = "fp32 GEMM peak"
"""named as a peer where a fraction of the machine's limit is asked for"""


def together(
    function: Callable[..., Any], arguments: Sequence[Tensor], way: str, seeds: Sequence[Tensor]
) -> Work:
    """A work that calls a function and, for `fwd+bwd`, asks for the gradient of every argument.

    Args:
        function: gives a tensor or a tuple, whose first is the output.
        arguments: floating ones get gradients.
        way: FWD or BOTH.
        seeds: gradient of the output; random, as zeros are multiplied faster on some machines.
    """
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in arguments]
    wanted = [x for x in leaves if x.requires_grad]
    return with_gradients(lambda: function(*leaves), wanted, way, seeds)


def with_gradients(
    function: Callable[[], Any], wanted: Sequence[Tensor], way: str, seeds: Sequence[Tensor]
) -> Work:
    """A work that calls a function and, for `fwd+bwd`, asks for the gradients of `wanted`."""

    def forward() -> Results:
        with torch.no_grad():
            y = function()
        return (y if isinstance(y, Tensor) else y[0],)

    def both() -> Results:
        y = function()
        y = y if isinstance(y, Tensor) else y[0]
        return (y.detach(), *torch.autograd.grad(y, wanted, seeds[0]))

    return forward if way == FWD else both


def on_backends(op: str, arguments: Sequence[Tensor], way: str, seed: Tensor) -> dict[str, Work]:
    """Every backend of an op that can run here and is no step loop, the preferred one first."""
    works = {}
    for row in OPS[op].explain(*arguments):
        if not row.why_not and row.backend != "reference":
            works[row.backend] = on(row.backend, together(OPS[op], arguments, way, [seed]))
    return works


def on(backend: str, work: Work) -> Work:
    """A work on one backend of every op that it calls."""

    def run() -> Results:
        with kernels.use(backend):
            return work()

    return run


def apart(results: Results, others: Results) -> float:
    """The largest difference, relative to the largest number of the tensor it is in."""
    if len(results) != len(others):
        raise AssertionError(f"got {len(results)} and {len(others)} results of one computation")
    if not results:
        return 0.0
    distances = [
        (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)
        for a, b in zip(results, others, strict=True)
    ]
    # PyTorch's maximum, which keeps a NaN
    return torch.stack(distances).max().item()
