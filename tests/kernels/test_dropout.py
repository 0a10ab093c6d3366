"""Dropout by a seed: the same mask on every backend and thread, as rare and as random as asked."""

from __future__ import annotations

import math

import pytest
import torch

from workbench import kernels
from workbench.kernels.dispatch import OPS
from workbench.kernels.dropout import Dropout
from workbench.kernels.dropout import kept as mask
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


def test_the_mask_is_a_function_of_seed_and_place() -> None:
    drop = Dropout(0.3, torch.tensor(7))
    first = mask(drop, torch.Size((3, 4, 50)), 200)
    assert torch.equal(first, mask(drop, torch.Size((3, 4, 50)), 200))
    # rows are numbered, so other rows of a batch change nothing; nor do more columns
    assert torch.equal(first[:2], mask(drop, torch.Size((2, 4, 50)), 200))
    assert torch.equal(first[..., :90], mask(drop, torch.Size((3, 4, 50)), 90))
    n = first.numel()
    assert abs(float(first.double().mean()) - 0.7) < 5 * math.sqrt(0.3 * 0.7 / n)
    others = [Dropout(0.3, torch.tensor(s)) for s in (8, 7 + 2**32, -7)]
    for other in others:
        same = float((first == mask(other, torch.Size((3, 4, 50)), 200)).double().mean())
        assert abs(same - (0.49 + 0.09)) < 0.01
    # neighbours along each axis are independent
    for axis in range(4):
        size = first.shape[axis]
        pair = first.narrow(axis, 1, size - 1) & first.narrow(axis, 0, size - 1)
        assert abs(float(pair.double().mean()) - 0.49) < 0.012


def test_the_hash_is_what_its_docstring_says() -> None:
    word = 0xFFFFFFFF

    def mixed(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D & word
        x = (x ^ x >> 15) * 0x846CA68B & word
        return x ^ x >> 16

    seed = 0x0123456789ABCDEF
    got = mask(Dropout(0.5, torch.tensor(seed)), torch.Size((1, 2, 3)), 4)
    for r in range(6):
        first = mixed(r ^ seed & word)
        second = mixed(r + (seed >> 32) + 0x9E3779B9 & word)
        for c in range(4):
            x = c * 0x9E3779B1 + first & word
            x = (x ^ x >> 16) * 0x7FEB352D & word
            x = ((x ^ x >> 15) + second & word) * 0x846CA68B & word
            assert bool(got[0, r // 3, r % 3, c]) == ((x ^ x >> 16) >= 2**31)
