"""What the machine can do at best, measured in the run that is judged by it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.timing import Effort, take_turns


@dataclass(frozen=True)
class Limit:
    """One limit: `rate` in 1e9 of `unit` per second."""

    name: str
    size: str
    unit: str
    rate: float
    ms: float
    spread_ms: tuple[float, float]
    disturbed: bool


@dataclass(frozen=True)
class Limits:
    """All limits; `all_` in the order in which they are told."""

    all_: tuple[Limit, ...]

    def rate(self, name: str) -> float:
        """1e9 per second of the limit `name`."""
        return next(limit.rate for limit in self.all_ if limit.name == name)

    def best(self, others: Limits) -> Limits:
        """Of each limit the better measurement: what disturbs the machine never raises one."""
        pairs = zip(self.all_, others.all_, strict=True)
        return Limits(tuple(max(pair, key=lambda limit: limit.rate) for pair in pairs))

    @property
    def disturbed(self) -> bool:
        return any(limit.disturbed for limit in self.all_)


def measure_quietly(device: torch.device, effort: Effort, scale: int = 1, tries: int = 4) -> Limits:
    """As `measure`, again while others use the machine: a limit that is too low flatters everyone
    who is judged by it."""
    found = measure(device, effort, scale)
    for _ in range(tries - 1):
        if not found.disturbed:
            break
        found = found.best(measure(device, effort, scale))
    return found


def measure(device: torch.device, effort: Effort, scale: int = 1) -> Limits:
    """Products of square matrices, memory, and exponentials.

    Args:
        device: whose limits.
        effort: how long.
        scale: sizes are divided by so much, for tests.
    """
    N = (8192 if device.type == "cuda" else 2048) // scale
    n_copy, n_exp = 2**25 // scale, 2**20 // scale
    generator = torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    a, b, out = randn(N, N), randn(N, N), torch.empty(N, N, device=device)
    a16, b16, out16 = a.bfloat16(), b.bfloat16(), out.bfloat16()
    source, target, small = randn(n_copy), torch.empty(n_copy, device=device), randn(n_exp)
    exp = torch.empty_like(small)
    square, flops = f"{N} x {N} x {N}", 2.0 * N**3
    kinds = {
        "fp32 GEMM": (square, "FLOP", flops, lambda: torch.mm(a, b, out=out)),
        "bf16 GEMM": (square, "FLOP", flops, lambda: torch.mm(a16, b16, out=out16)),
        "copy": (_mb(2 * n_copy), "B", 8.0 * n_copy, lambda: target.copy_(source)),
        "read": (_mb(n_copy), "B", 4.0 * n_copy, lambda: source.sum()),
        "exp": (f"{n_exp} numbers", "exp", float(n_exp), lambda: torch.exp(small, out=exp)),
    }
    times = take_turns({name: call for name, (*_, call) in kinds.items()}, effort)
    return Limits(
        tuple(
            Limit(
                name=name,
                size=size,
                unit=unit,
                rate=work / times[name].median_ms / 1e6,
                ms=times[name].median_ms,
                spread_ms=times[name].spread_ms,
                disturbed=times[name].is_disturbed,
            )
            for name, (size, unit, work, _) in kinds.items()
        )
    )


def _mb(n_floats: int) -> str:
    return f"{4 * n_floats / 1e6:.0f} MB"
