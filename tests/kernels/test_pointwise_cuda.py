"""The CUDA sources of forget_mult and dpfp compute what is meant: on a CPU, under the emulator."""

from __future__ import annotations

import pytest
import torch
from cases import assert_outcomes_equal
from emulated import COMMON, TYPES, Empty, Emulated, Fault, compiler, in_all_orders
from torch import Tensor

from workbench.kernels.dpfp import reference as dpfp_reference
from workbench.kernels.forget_mult import reference

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def differentiated(run, *arguments: Tensor) -> list[Tensor]:
    """Results and gradients in float64, the results weighted with `weights_of` them."""
    leaves = [x.double().requires_grad_() for x in arguments]
    results = run(*leaves)
    weights = weights_of(results, arguments)
    loss = sum((y * w.double()).sum() for y, w in zip(results, weights, strict=True))
    return [*results, *torch.autograd.grad(loss, leaves)]


def weights_of(results: list[Tensor], like: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients to send back: random, of the types of the first and of the last argument."""
    g = torch.Generator().manual_seed(1)
    types = (like[0].dtype, like[-1].dtype)
    shapes = (y.shape for y in results)
    return [torch.randn(s, generator=g).to(t) for s, t in zip(shapes, types, strict=False)]


@pytest.fixture(scope="module")
def forget_mult() -> Emulated:
    return Emulated(COMMON.parent / "forget_mult" / "forget_mult.cu")


# a state is never shorter than the segment's numbers
TYPE_PAIRS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
]


@pytest.mark.parametrize(("dtype", "state_type"), TYPE_PAIRS, ids=str)
@pytest.mark.parametrize(("B", "T", "U"), [(1, 1, 1), (2, 63, 33), (3, 64, 32), (2, 200, 70)])
def test_forget_mult(forget_mult, B, T, U, dtype, state_type):
    torch.manual_seed(0)
    f, z = torch.rand(B, T, U).to(dtype), torch.randn(B, T, U).to(dtype)
    state = torch.randn(B, U).to(state_type)
    sizes = (TYPES[dtype], TYPES[state_type], B, T, U)
    want = differentiated(reference, f, z, state)
    gy, glast = weights_of(want[:2], (f, state))

    def run(order: str) -> list[Tensor]:
        outputs = (Empty((B, T, U), dtype), Empty((B, U), state_type))
        y, last = forget_mult.call(
            "forget_mult_cuda_forward", f, z, state, *outputs, *sizes, order=order
        )
        outputs = (Empty((B, T, U), dtype), *outputs)
        grads = forget_mult.call(
            "forget_mult_cuda_backward", gy, glast, f, z, y, state, *outputs, *sizes, order=order
        )
        return [y, last, *grads]

    names = ("y", "last", "df", "dz", "dstate")
    got = dict(zip(names, in_all_orders(run), strict=True))
    assert_outcomes_equal(got, dict(zip(names, want, strict=True)), CLOSE[dtype])


def test_forget_mult_refuses_other_types(forget_mult):
    with pytest.raises(Fault, match="expected float32, or bfloat16"):
        forget_mult.call("forget_mult_cuda_forward", *[None] * 5, 2, 2, 1, 1, 1)


@pytest.fixture(scope="module")
def dpfp() -> Emulated:
    return Emulated(COMMON.parent / "dpfp" / "dpfp.cu")


def dpfp_both_ways(dpfp: Emulated, x: Tensor, nu: int, normalise: bool, g: Tensor) -> list[Tensor]:
    """Features and the gradient of x, the same in every order."""
    rows, K = x.shape
    sizes = (TYPES[x.dtype], rows, K, nu, normalise)

    def run(order: str) -> list[Tensor]:
        features = Empty((rows, 2 * K * nu), x.dtype)
        (y,) = dpfp.call("dpfp_cuda_forward", x, features, *sizes, order=order)
        (dx,) = dpfp.call("dpfp_cuda_backward", g, x, Empty(x.shape, x.dtype), *sizes, order=order)
        return [y, dx]

    return in_all_orders(run)


# among them every shift that there is, more than are staged together, and the widest head
DPFP_SIZES = [
    (1, 1, 1), (7, 16, 1), (9, 32, 3), (5, 33, 2), (2, 5, 9), (3, 200, 5), (6, 3, 5), (3, 33, 65),
    (2, 512, 2),
]  # fmt: skip


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "K", "nu"), DPFP_SIZES)
def test_dpfp(dpfp, rows, K, nu, dtype, normalise):
    torch.manual_seed(0)
    x = torch.randn(rows, K).to(dtype)
    x[0] = 0  # no feature of it is more than 0, so there is no sum to divide by
    if K > 2:
        x[-1, 1:] = 0  # and a single number has no neighbour, but its neighbours have a gradient
    want = differentiated(lambda x: [dpfp_reference(x, nu, normalise)], x)
    (g,) = weights_of(want[:1], (x,))
    got = dict(zip(("y", "dx"), dpfp_both_ways(dpfp, x, nu, normalise, g), strict=True))
    assert not got["y"][0].any() and not got["dx"][0].any()
    assert_outcomes_equal(got, dict(zip(("y", "dx"), want, strict=True)), CLOSE[dtype])


def test_dpfp_divides_by_sums_below_the_normal_numbers(dpfp):
    x = torch.tensor([[2e-20, -3e-20, 4e-20, 5e-20], [1, 1e-39, 0, 0]])
    want = differentiated(lambda x: [dpfp_reference(x, 1, True)], x)
    (g,) = weights_of(want[:1], (x,))
    y, dx = dpfp_both_ways(dpfp, x, 1, True, g)
    torch.testing.assert_close(y.double(), want[0], rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(dx[:1].double(), want[1][:1], rtol=1e-4, atol=1e15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normalise", [True, False])
def test_dpfp_keeps_nan(dpfp, dtype, normalise):
    x = torch.tensor([[1, float("nan"), 2, -1, 3], [1, 2, -3, 1, 2]], dtype=dtype)
    want = differentiated(lambda x: [dpfp_reference(x, 2, normalise)], x)
    (g,) = weights_of(want[:1], (x,))
    for got, expected in zip(dpfp_both_ways(dpfp, x, 2, normalise, g), want, strict=True):
        assert torch.equal(got.isnan(), expected.isnan())
        close = {"rtol": CLOSE[dtype], "atol": 4 * CLOSE[dtype]}
        torch.testing.assert_close(got.double(), expected, equal_nan=True, **close)


def test_dpfp_refuses_what_does_not_fit(dpfp):
    for sizes, said in (
        ((0, 1, 4, 8, 1), "shifts"),
        ((0, 1, 513, 1, 1), "heads"),
        ((2, 1, 4, 1, 1), "float32"),
        ((0, 0, 4, 1, 1), "heads of tokens"),
        ((0, 4 * 2**31, 4, 1, 1), "heads of tokens"),
    ):
        with pytest.raises(Fault, match=said):
            dpfp.call("dpfp_cuda_forward", None, None, *sizes)
