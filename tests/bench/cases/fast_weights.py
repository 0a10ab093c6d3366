"""The delta rule and the sum rule against FLA, fast-transformers and a step loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench import peers
from bench.case import BOTH, FWD, PEAK, Case, Results, Ways, Work, on, on_backends, together
from workbench.kernels.dispatch import OPS

FLOPS = {("delta_rule", FWD): 6, ("delta_rule", BOTH): 24}
FLOPS |= {("sum_rule", FWD): 4, ("sum_rule", BOTH): 16}
"""operations on an entry of W and a token"""
STEP_LOOP_T = 256
"""longest segment that the step loop is asked for: its backward pass keeps a W for each token"""
FLA32, FAST, LOOP = "FLA chunk-32", "fast-transformers -O3 native", "step loop"


class Size(NamedTuple):
    """B sequences of T tokens, H heads, F features, V values."""

    T: int
    F: int
    V: int
    B: int = 8
    H: int = 8

    def __str__(self) -> str:
        return f"B{self.B} H{self.H} T{self.T} F{self.F} V{self.V}"


def inputs(op: str, s: Size, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Keys and queries positive with sum 1, as after the feature map of a layer; an empty W, from
    which all peers start."""
    generator = torch.Generator(device).manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    q, k = (x / x.sum(-1, keepdim=True) for x in rand(2, s.B, s.T, s.H, s.F))
    v = torch.randn(s.B, s.T, s.H, s.V, generator=generator, device=device)
    state = torch.zeros(s.B, s.H, s.F, s.V, device=device)
    parts = [q, k, v, rand(s.B, s.T, s.H)] if op == "delta_rule" else [q, k, v]
    return [x.to(dtype) for x in parts] + [state]


def peer_works(op: str, s: Size, way: str, arguments: list[Tensor], seed: Tensor) -> Ways:
    """What others have for an op: each with its own layout, made before the time runs."""
    ways = Ways({})
    by_head = [peers.by_head(x) for x in arguments[:-1]]

    def add(name: str, function: Callable[[], Callable[..., Tensor]], inputs: list[Tensor]) -> None:
        layout = seed if inputs is arguments else peers.by_head(seed)
        try:
            ways.peers[name] = together(function(), inputs[: len(by_head)], way, [layout])
        except peers.Missing as why:
            ways.missing[name] = str(why)

    def by_token(results: Results) -> Results:
        return tuple(x.transpose(1, 2) for x in results)

    if op == "delta_rule":
        if s.T % 32 == 0:
            # it divides queries by the root of F and cannot be told not to
            add(FLA32, peers.fla_delta, [by_head[0] * s.F**0.5, *by_head[1:]])
            ways.as_ours[FLA32] = lambda results: rescaled(by_token(results), s.F**0.5)
    else:
        add(FAST, peers.fast_sum, by_head)
        ways.as_ours[FAST] = by_token
        if s.T % 64 == 0:
            add("FLA chunk-64", peers.fla_sum, arguments)
    return ways


def rescaled(results: Results, factor: float) -> Results:
    """The gradient of queries that were given `factor` times as large."""
    y, *gradients = results
    return (y, *(factor * g for g in gradients[:1]), *gradients[1:])


def triton_works(op: str, way: str, arguments: list[Tensor], seed: Tensor) -> Ways:
    """FLA's kernels for GPUs."""
    module, name = {
        "delta_rule": ("delta_rule", "chunk_delta_rule"),
        "sum_rule": ("linear_attn", "chunk_linear_attn"),
    }[op]
    ways, peer = Ways({}), f"FLA {name}"
    options = {"normalize": False} if op == "sum_rule" else {}
    try:
        run = partial(peers.fla_triton(module, name), scale=1.0, **options)
        ways.peers[peer] = together(run, arguments[:-1], way, [seed])
    except peers.Missing as why:
        ways.missing[peer] = str(why)
    return ways


def make(op: str, s: Size, way: str, dtype: torch.dtype, device: torch.device) -> Ways:
    """All ways to run an op at a size; the gradient of the first state is nobody's."""
    arguments = inputs(op, s, device, dtype)
    generator = torch.Generator(device).manual_seed(1)
    seed = torch.randn(s.B, s.T, s.H, s.V, generator=generator, device=device).to(dtype)
    if device.type == "cuda":
        ways = triton_works(op, way, arguments, seed)
    else:
        ways = peer_works(op, s, way, arguments, seed)
    ways.ours = {
        name: without_state(work) for name, work in on_backends(op, arguments, way, seed).items()
    }
    if s.T <= STEP_LOOP_T and s.F * s.V <= 4096 and device.type == "cpu":
        loop = together(OPS[op], arguments, way, [seed])
        ways.peers[LOOP] = without_state(on("reference", loop))
    return ways


def without_state(work: Work) -> Work:
    """The output and the gradients of what every peer has: not of the state."""

    def run() -> tuple[Tensor, ...]:
        results = work()
        return results if len(results) == 1 else results[:-1]

    return run


def half(op: str, s: Size, way: str, device: torch.device) -> Ways:
    """The op in bfloat16, W in float32, beside itself in float32."""
    arguments = inputs(op, s, device, torch.bfloat16)
    seed = torch.randn(s.B, s.T, s.H, s.V, generator=torch.Generator().manual_seed(1))
    ways = Ways(on_backends(op, arguments, way, seed.bfloat16()))
    float32 = on_backends(op, [x.float() for x in arguments], way, seed)
    ways.peers = {f"{name}, float32": work for name, work in list(float32.items())[:1]}
    return ways


def normalised(op: str, s: Size, way: str, device: torch.device) -> Ways:
    """Keys and queries divided by their sums inside of the op, beside the same outside."""
    arguments = inputs(op, s, device, torch.float32)
    seed = torch.randn(s.B, s.T, s.H, s.V, generator=torch.Generator().manual_seed(1))

    def outside(q: Tensor, k: Tensor, *rest: Tensor) -> Tensor:
        q, k = (x / x.sum(-1, keepdim=True) for x in (q, k))
        return OPS[op](q, k, *rest)[0]

    inside = together(lambda *x: OPS[op](*x, True), arguments, way, [seed])
    rows = OPS[op].explain(*arguments, True)
    names = [row.backend for row in rows if not row.why_not and row.backend != "reference"]
    ours = {name: on(name, inside) for name in names[:1]}
    return Ways(ours, {"normalised before": together(outside, arguments, way, [seed])})


def case(
    op: str, s: Size, way: str, targets: dict[str, float] | None = None, **told: object
) -> Case:
    return Case(
        group="fast_weights",
        name=op,
        size=str(s),
        way=way,
        make=partial(make, op, s, way, torch.float32),
        flops=FLOPS[op, way] * s.B * s.H * s.T * s.F * s.V,
        bytes_=4.0 * s.B * s.T * s.H * (2 * s.F + 2 * s.V) * (1 if way == FWD else 3),
        targets=targets or {},
        cuda=False,
        **told,  # type: ignore[arg-type]
    )


def on_gpu(op: str, s: Size, way: str, target: float) -> Case:
    peer = {"delta_rule": "FLA chunk_delta_rule", "sum_rule": "FLA chunk_linear_attn"}[op]
    return Case(
        group="fast_weights",
        name=op,
        size=str(s),
        way=way,
        make=partial(make, op, s, way, torch.bfloat16),
        dtype="bfloat16",
        flops=FLOPS[op, way] * s.B * s.H * s.T * s.F * s.V,
        bytes_=2.0 * s.B * s.T * s.H * (2 * s.F + 2 * s.V) * (1 if way == FWD else 3),
        targets={peer: target} if op == "delta_rule" else {},
        tolerance=5e-2,
        cuda=True,
    )


def cases() -> list[Case]:
    """The sizes of the issue's tables, and growth with T and width."""
    result = []
    for T, target in ((256, 10.0), (1024, 10.0), (4096, 40.0)):
        peak = {PEAK: 0.7} if T == 1024 else {}
        told = {"sweep": "T", "x": T, "quick": T < 4096}
        size = Size(T, 64, 64)
        result += [
            case("delta_rule", size, FWD, peak, **told),
            case("delta_rule", size, BOTH, {FLA32: target, **peak}, **told),
            case("sum_rule", size, FWD, peak, **told),
            case("sum_rule", size, BOTH, {FAST: 1.8, **peak}, **told),
        ]
    for op in ("delta_rule", "sum_rule"):
        small = Size(64, 8, 8, 1, 2)
        result.append(case(op, small, BOTH, {FLA32: 10.0}, quick=False, full=False, tiny=True))
        for T in (1, 16, 64):
            result.append(case(op, Size(T, 64, 64), BOTH, sweep="T", x=T, quick=False))
        for D in (16, 32, 128):
            size = Size(256, D, D)
            result.append(case(op, size, BOTH, sweep="width", x=D, quick=D == 32))
        # DPFP-3 at d_head 32
        for way in (FWD, BOTH):
            quick = (op, way) == ("delta_rule", BOTH)
            result.append(case(op, Size(1024, 192, 32), way, {PEAK: 0.6}, quick=quick))
        for way in (FWD, BOTH):
            widths = ((128, 128, 1.0), (64, 64, 1.0), (16, 16, 1.5), (32, 32, 1.5))
            for F, V, target in (*widths, (96, 32, 1.5), (192, 32, 1.5)):
                result.append(on_gpu(op, Size(4096, F, V, 8, 16), way, target))
    for op in ("delta_rule", "sum_rule"):
        size, narrow = Size(1024, 64, 64), Size(1024, 192, 32)
        told = {"quick": False, "cuda": False}
        flops = FLOPS[op, BOTH] * 64 * 1024 * 64 * 64
        result += [
            Case(
                "fast_weights", op, str(size), BOTH, partial(half, op, size, BOTH),
                dtype="bfloat16", flops=flops, tolerance=5e-2, **told,
            ),
            Case(
                "fast_weights", f"{op}, normalised", str(narrow), BOTH,
                partial(normalised, op, narrow, BOTH), flops=1.5 * flops, **told,
            ),
        ]  # fmt: skip
    return result
