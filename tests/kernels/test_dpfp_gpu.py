"""DPFP on an NVIDIA GPU: `make test-gpu`, and `make sanitize`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workbench import kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
DEVICE, BACKEND = "cuda", "cuda"
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2}
# a shape and its shifts: odd widths, every shift there is, more than are staged, the widest head
SIZES = [
    ((1,), 1),
    ((5, 16), 1),
    ((3, 5, 7, 33), 3),
    ((9, 33), 65),
    ((2, 5), 9),
    ((3, 512), 2),
    ((0, 4), 1),
]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    report = kernels.prepare()
    assert "dpfp" in report.cuda, str(report)


def outcome(x: Tensor, g: Tensor, nu: int, normalise: bool, backend: str) -> list[Tensor]:
    """Features, and the gradient of x where theirs is g."""
    with kernels.use(backend):
        y = kernels.dpfp(x, nu, normalise)
        return [y, *torch.autograd.grad(y, x, g)]


def drawn(shape: tuple[int, ...], nu: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    if len(shape) > 1 and len(x):
        x[0] = 0
    g = torch.randn((*shape[:-1], 2 * shape[-1] * nu), generator=generator)
    return x.to(DEVICE, dtype), g.to(DEVICE, dtype)


def compare(shape: tuple[int, ...], nu: int, dtype: torch.dtype, normalise: bool) -> None:
    x, g = drawn(shape, nu, dtype)
    got = outcome(x.clone().requires_grad_(), g, nu, normalise, BACKEND)
    want = outcome(x.double().requires_grad_(), g.double(), nu, normalise, "reference")
    for name, ours, exact in zip(("y", "dx"), got, want, strict=True):
        assert ours.dtype == dtype and ours.shape == exact.shape
        if exact.numel():
            worst = (ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1)
            print(f"{dtype} {shape} {nu} {normalise} {name}: {worst:.1e}")  # noqa: T201  (for the record)
            assert worst < TOLERANCE[dtype], name


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("shape", "nu"), SIZES, ids=str)
def test_small_sizes(shape, nu, dtype, normalise):
    compare(shape, nu, dtype, normalise)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_more_rows_than_run_at_once(dtype, normalise):
    compare((8, 256, 8, 32), 3, dtype, normalise)


def test_small_zeros_stay_zeros_and_nan_stays_nan():
    x = torch.zeros(3, 4, device=DEVICE)
    x[1, 2], x[2, 1] = 1.0, float("nan")
    y, dx = outcome(x.requires_grad_(), torch.ones(3, 8, device=DEVICE), 1, True, BACKEND)
    assert not y[:2].any() and y[2].isnan().all()
    assert not dx[:2].any()


def test_small_gradients_that_begin_between_the_pieces():
    """Two bfloat16 numbers are read at once, and a part of a tensor may begin at any of them."""
    x, g = drawn((9, 17), 3, torch.bfloat16)
    want = outcome(x.clone().requires_grad_(), g, 3, True, BACKEND)
    for places in (x, g):
        room = torch.empty(places.numel() + 1, dtype=places.dtype, device=DEVICE)
        room[1:] = places.flatten()
        shifted = room[1:].view(places.shape)
        assert shifted.data_ptr() % 4 == 2
        x, g = (shifted, g) if places is x else (x, shifted)
    got = outcome(x.requires_grad_(), g, 3, True, BACKEND)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


def test_small_on_another_stream_and_from_scattered_memory():
    x, g = drawn((4, 6, 3, 20), 2, torch.float32)
    want = outcome(x.clone().requires_grad_(), g, 2, True, BACKEND)
    apart = torch.stack([x, x], dim=-1)[..., 0].requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = outcome(apart, g.transpose(0, 1).contiguous().transpose(0, 1), 2, True, BACKEND)
    stream.synchronize()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


def test_graph_is_captured_and_replayed():
    x, g = drawn((4, 6, 3, 32), 3, torch.bfloat16)
    x.requires_grad_()
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        for _ in range(3):
            outcome(x, g, 3, True, BACKEND)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outcome(x, g, 3, True, BACKEND)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    want = outcome(x, g, 3, True, BACKEND)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(captured, want, strict=True))


def test_auto_takes_it():
    kernels.forget()
    kernels.dpfp(torch.ones(2, 4, device=DEVICE), 1, True)
    assert kernels.ran()["dpfp"] == BACKEND
