"""Dropout by a seed: the same mask on every backend and thread, as rare and as random as asked."""

from __future__ import annotations

import math

import pytest
import torch

from workbench import kernels
from workbench.kernels.dispatch import OPS
from workbench.models.dropout import Element, draw_seed, drop

BACKENDS = [row.backend for row in kernels.explain() if row.op == "dropout" and not row.why_not]
needs_cpp = pytest.mark.skipif("cpp" not in BACKENDS, reason="no C++ compiler here")
SHAPES = [(1,), (3, 5, 7), (4095,), (4096,), (4097,), (2, 3, 4096), (0, 4)]


def kept(seed: int, p: float, n: int, backend: str = "reference") -> torch.Tensor:
    with kernels.use(backend):
        return kernels.dropout(torch.ones(n), torch.tensor(seed), p) != 0


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backends_give_the_same_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for seed in (0, -1, 7, 2**40 + 3, -(2**63), 2**63 - 1):
        for p in (0.0, 0.1, 0.5, 0.999):
            arguments = (x, torch.tensor(seed), p)
            before = x.clone()
            results = {}
            for name in BACKENDS:
                with kernels.use(name):
                    results[name] = OPS["dropout"](*arguments)
            assert results["cpp"].dtype == dtype
            assert torch.equal(results["cpp"], results["reference"])
            assert torch.equal(x, before)


@needs_cpp
def test_neither_threads_nor_layout_change_the_mask() -> None:
    x = torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
    seed = torch.tensor(5)
    with kernels.use("cpp"):
        alone = kernels.dropout(x, seed, 0.3)
        assert torch.equal(kernels.dropout(x.T.contiguous().T, seed, 0.3), alone)
        torch.set_num_threads(2)
        try:
            assert torch.equal(kernels.dropout(x.repeat(40, 1), seed, 0.3)[:64], alone)
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_as_asked_are_dropped_and_neighbours_know_nothing_of_each_other(
    backend: str, p: float
) -> None:
    n = 1 << 20
    mask = kept(11, p, n, backend).double()
    spread = math.sqrt(p * (1 - p) / n)
    assert abs(mask.mean() - (1 - p)) < 5 * spread
    other = kept(12, p, n, backend).double()
    shifts = [(mask, mask, lag) for lag in (1, 2, 64, 4096, 8192)]
    for a, b, lag in [*shifts, (mask, other, 0), (mask, other, 1)]:
        both = (a[lag:] - (1 - p)) * (b[: n - lag] - (1 - p))
        assert abs(both.mean()) < 5 * p * (1 - p) / math.sqrt(n - lag)


def test_what_is_kept_is_scaled_and_what_is_dropped_sends_no_gradient() -> None:
    x = torch.randn(50, 20, dtype=torch.float64, requires_grad=True)
    for backend in BACKENDS:
        with kernels.use(backend):
            y = kernels.dropout(x, torch.tensor(3), 0.25)
            (grad,) = torch.autograd.grad(y.sum(), x)
            assert torch.autograd.gradcheck(
                lambda x: kernels.dropout(x, torch.tensor(3), 0.25), x[:3].detach().requires_grad_()
            )
        dropped = y == 0
        torch.testing.assert_close(y[~dropped], x[~dropped] / 0.75)
        torch.testing.assert_close(grad, (~dropped).double() / 0.75)


@needs_cpp
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_registration() -> None:
    x = torch.randn(5, 7, requires_grad=True)
    torch.library.opcheck(torch.ops.workbench.dropout.default, (x, torch.tensor(4), 0.5))


def test_refuses_what_no_backend_could_take() -> None:
    x = torch.ones(3)
    for p in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="got p_drop"):
            kernels.dropout(x, torch.tensor(1), p)
    for seed in (torch.tensor(1.0), torch.tensor([1, 2]), torch.tensor(1, device="meta"), 1):
        with pytest.raises(ValueError, match="got a seed"):
            kernels.dropout(x, seed, 0.5)


def test_the_module_draws_from_the_generator_and_does_nothing_in_evaluation() -> None:
    x, module = torch.ones(2000), Element(0.3)
    torch.manual_seed(1)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(module(x), first)
    assert torch.equal(drop(x, 0.3, True), second)
    assert module.eval()(x) is x and drop(x, 0.0, True) is x
    seeds = torch.stack([draw_seed(x.device) for _ in range(1000)])
    assert (
        len(seeds.unique()) == 1000 and (seeds < 0).any() and (seeds >> 32).unique().numel() > 900
    )


def test_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    module = Element(0.5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.ones(1000, requires_grad=True)
    y = compiled(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert 300 < (y == 0).sum() < 700
    assert torch.equal(grad, y.detach())
