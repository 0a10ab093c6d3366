"""Time the backends of the fast-weight rules side by side: `python tests/bench/bench_kernels.py [threads]`.

Backends take turns within one process, on random data, and the medians are compared: figures of
different runs are not. Each line is a call as a layer makes it, B=8 streams and H=8 heads; its
ratio is of the last column to the first.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from workbench import kernels
from workbench.kernels.dispatch import OPS

B, H = 8, 8
SIZES = [(256, 32, 32), (256, 64, 64), (256, 192, 32), (1024, 64, 64)]  # T, F, V
ROUNDS = 3


def inputs(op: str, T: int, F: int, V: int) -> list[Tensor]:
    """Keys and queries positive with sum 1, as after the feature map of a layer."""
    torch.manual_seed(0)
    q, k = (x / x.sum(-1, keepdim=True) for x in torch.rand(2, B, T, H, F))
    v, state = torch.randn(B, T, H, V), torch.randn(B, H, F, V)
    return [q, k, v, torch.rand(B, T, H), state] if op == "delta_rule" else [q, k, v, state]


def forward(op: str, arguments: list[Tensor]) -> None:
    with torch.no_grad():
        OPS[op](*arguments)


def both_ways(op: str, arguments: list[Tensor]) -> None:
    leaves = [x.detach().requires_grad_() for x in arguments]
    y, _ = OPS[op](*leaves)
    torch.autograd.grad(y, leaves, y.detach())


def milliseconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def compare(op: str, size: tuple[int, int, int], way: Callable[[str, list[Tensor]], None]) -> str:
    arguments = inputs(op, *size)
    names = [row.backend for row in OPS[op].explain(*arguments) if not row.why_not]
    if size[0] > 256:
        names.remove("reference")  # minutes
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(ROUNDS + 1):
        for name in names:
            with kernels.use(name):
                taken = milliseconds(lambda: way(op, arguments))
            if round_:  # the first is warm-up
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    cells = [f"{name} {ms:9.1f} ms" for name, ms in medians.items()]
    ratio = medians[names[-1]] / medians[names[0]]
    what = f"{op:10s} T{size[0]:<5d} F{size[1]:<4d} V{size[2]:<3d} {way.__name__:9s}"
    return f"{what} {'  '.join(cells)}  ({ratio:.0f}x)"


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(kernels.prepare())
    print(f"B={B} H={H} float32, {torch.get_num_threads()} threads, median of {ROUNDS}")
    for op in ("delta_rule", "sum_rule"):
        for size in SIZES:
            for way in (forward, both_ways):
                print(compare(op, size, way), flush=True)


if __name__ == "__main__":
    main()
