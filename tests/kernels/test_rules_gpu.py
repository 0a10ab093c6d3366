"""The delta and the sum rule on an NVIDIA GPU: `make test-gpu`, and `make sanitize`."""

from __future__ import annotations

import pytest
import torch
from cases import ARGUMENTS, inputs
from torch import Tensor

from workbench import kernels
from workbench.kernels.dispatch import OPS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
RULES = ["delta_rule", "sum_rule"]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
WIDTHS = [
    (16, 16),
    (32, 32),
    (64, 64),
    (96, 32),
    (192, 32),
    (128, 128),
    (256, 256),
    (7, 3),
    (100, 40),
]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    report = kernels.prepare()
    assert set(RULES) <= set(report.cuda), str(report)


def on_gpu(op: str, dtype: torch.dtype, **sizes: int) -> list[Tensor]:
    *sequences, state = inputs(op, **sizes)
    return [*(x.to("cuda", dtype) for x in sequences), state.float().cuda()]


def outcome(op: str, leaves: list[Tensor], backend: str, normalise: bool = False) -> list[Tensor]:
    """Results and gradients under fixed weights."""
    generator = torch.Generator().manual_seed(3)
    with kernels.use(backend):
        results = OPS[op](*leaves, normalise)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in results]
    return [*results, *torch.autograd.grad(results, leaves, weights)]


def compare(op: str, dtype: torch.dtype, normalise: bool = False, **sizes: int) -> None:
    arguments = on_gpu(op, dtype, **sizes)
    if normalise:
        arguments[:2] = [x.abs() for x in arguments[:2]]
    got = outcome(op, [x.clone().requires_grad_() for x in arguments], "cuda", normalise)
    leaves = [x.double().requires_grad_() for x in arguments]
    names = ["y", "last", *(f"d{name}" for name in ARGUMENTS[op])]
    for name, x, want in zip(names, got, outcome(op, leaves, "reference", normalise), strict=True):
        error = float((x.double() - want).norm() / want.norm())
        print(f"{op} {dtype} {sizes} {name}: {error:.1e}")  # noqa: T201  (for the record)
        assert error < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("T", [1, 16, 17, 63, 100])
@pytest.mark.parametrize("op", RULES)
def test_small_sizes(op, T, widths, dtype):
    compare(op, dtype, B=2, T=T, H=3, F=widths[0], V=widths[1])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("op", RULES)
def test_many_tokens_and_heads(op, dtype):
    compare(op, dtype, B=1, T=4097, H=2, F=64, V=64)
    compare(op, dtype, B=8, T=256, H=16, F=64, V=64)  # more blocks than multiprocessors
    compare(op, dtype, normalise=True, B=2, T=130, H=2, F=64, V=32)


@pytest.mark.parametrize("op", RULES)
def test_small_on_another_stream_and_from_scattered_memory(op):
    arguments = on_gpu(op, torch.bfloat16, T=70, F=48, V=32)
    want = outcome(op, [x.clone().requires_grad_() for x in arguments], "cuda")
    apart = [torch.stack([x, x], dim=-1)[..., 0].requires_grad_() for x in arguments]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = outcome(op, apart, "cuda")
    stream.synchronize()
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("T", [1, 130])
@pytest.mark.parametrize("op", RULES)
def test_graph_is_captured_and_replayed(op, T):
    arguments = [x.requires_grad_() for x in on_gpu(op, torch.bfloat16, T=T, F=64, V=64)]
    weights = [torch.randn_like(arguments[2]), torch.randn_like(arguments[-1])]

    def step() -> list[Tensor]:
        with kernels.use("cuda"):
            results = OPS[op](*arguments)
        return [*results, *torch.autograd.grad(results, arguments, weights)]

    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for x in arguments[:3]:
            x.copy_(torch.randn_like(x) / 8)
    graph.replay()
    for x, y in zip(captured, step(), strict=True):
        assert torch.equal(x, y)
