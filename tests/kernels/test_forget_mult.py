"""QRNN pooling: what `test_ops.py` does not already ask of every op."""

from __future__ import annotations

import pytest
import torch
from cases import assert_outcomes_equal, inputs, usable

from workbench import kernels

POOLS = [backend for op, backend in usable() if op == "fo_pool"]
needs_cpp = pytest.mark.skipif("cpp" not in POOLS, reason="no C++ compiler here")
SIZES = [(1, 1), (63, 5), (100, 300), (4097, 3)]  # T, U


def pooled(backend, T, U, gates=3, zoneout=None, dtype=torch.float64, state=torch.float64):
    """Everything a call returns and sends back, of numbers that bfloat16 can hold."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    leaves = [randn(2, T, gates * U).to(dtype), randn(2, U).to(state)]
    kept = (torch.rand(2, T, U, generator=generator) < 0.7).to(dtype)
    more = {None: (), "training": (kept,), "evaluation": (None, 0.7)}[zoneout]
    leaves = [x.requires_grad_() for x in leaves]
    with kernels.use(backend):
        y, last = kernels.fo_pool(*leaves, *more)
    weights = randn(2, T, U).to(y)
    grads = torch.autograd.grad((y * weights).sum() + last.sum(), leaves)
    assert [x.dtype for x in (y, last, *grads)] == [dtype, state, dtype, state]
    return dict(zip(["y", "last", "dgates", "dstate"], (y, last, *grads), strict=True))


@pytest.mark.parametrize("zoneout", [None, "training", "evaluation"])
@pytest.mark.parametrize("gates", [2, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@needs_cpp
def test_pooling_between_its_gates(sizes, gates, zoneout):
    want = pooled("reference", *sizes, gates, zoneout)
    assert_outcomes_equal(pooled("cpp", *sizes, gates, zoneout), want, 1e-13)
    single = pooled("cpp", *sizes, gates, zoneout, torch.float32, torch.float32)
    assert_outcomes_equal(single, want, 2e-6)
    for state in (torch.float32, torch.bfloat16):
        half = pooled("cpp", *sizes, gates, zoneout, torch.bfloat16, state)
        assert_outcomes_equal(half, want, 0.01)
    # sums are not rounded to bfloat16 from token to token
    assert_outcomes_equal({"last": single["last"]}, {"last": want["last"]}, 2e-6)


@pytest.mark.parametrize("zoneout", [None, "training", "evaluation"])
def test_gates_alone_are_pooled_by_the_recurrence(zoneout):
    gates, state = inputs("fo_pool", T=7)
    U = state.shape[-1]
    kept = (torch.rand(2, 7, U, dtype=torch.float64) < 0.5).double()
    more = {None: (), "training": (kept,), "evaluation": (None, 0.7)}[zoneout]
    z, f, o = gates.split(U, dim=-1)
    f = f.sigmoid() * {None: 1.0, "training": kept, "evaluation": 0.7}[zoneout]
    c, last = kernels.forget_mult(f, z.tanh(), state)
    for backend in POOLS:
        with kernels.use(backend):
            y, end = kernels.fo_pool(gates, state, *more)
            alone, _ = kernels.fo_pool(gates[..., : 2 * U], state, *more)
        torch.testing.assert_close(y, o.sigmoid() * c, rtol=0, atol=1e-14)
        torch.testing.assert_close(alone, c, rtol=0, atol=1e-14)
        torch.testing.assert_close(end, last, rtol=0, atol=1e-14)


@needs_cpp
def test_large_results_share_no_memory():
    """From a megabyte on it is handed out again when a result is freed, and not before."""

    def outcomes(seed, backend):
        generator = torch.Generator().manual_seed(seed)
        gates = torch.randn(1, 300, 3 * 1000, generator=generator).requires_grad_()
        f, z = (torch.rand(2, 1, 300, 1000, generator=generator)).requires_grad_().unbind()
        state = torch.randn(1, 1000, generator=generator)
        with kernels.use(backend):
            c, y = kernels.forget_mult(f, z, state)[0], kernels.fo_pool(gates, state)[0]
        grads = torch.autograd.grad(c.square().sum() + y.square().sum(), (f, z, gates))
        return dict(zip(("c", "y", "df", "dz", "dgates"), (c, y, *grads), strict=True))

    outcomes(0, "cpp")  # freed: the next are written where these were
    kept = [outcomes(seed, "cpp") for seed in (1, 2)]
    assert min(x.nbytes for x in kept[0].values()) > 1 << 20
    for seed, got in zip((1, 2), kept, strict=True):
        assert_outcomes_equal(got, outcomes(seed, "reference"), 3e-6)


@needs_cpp
def test_functions_of_single_numbers_keep_seven_digits():
    x = torch.cat([torch.linspace(-50, 50, 10_001), torch.linspace(-1, 1, 10_001)])
    open_ = torch.full_like(x, 50.0)
    for gates, expected in (((x, open_), x.double().tanh()), ((open_, x), x.double().sigmoid())):
        with kernels.use("cpp"):
            y, _ = kernels.fo_pool(torch.cat(gates).view(1, 1, -1), torch.zeros(1, len(x)))
        torch.testing.assert_close(y[0, 0].double(), expected, rtol=4e-7, atol=0)


@needs_cpp
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_hidden(wrong):
    gates = torch.zeros(1, 3, 6)
    gates[0, 1] = wrong
    with kernels.use("cpp"):
        y, _ = kernels.fo_pool(gates, torch.ones(1, 2))
    with kernels.use("reference"):
        want, _ = kernels.fo_pool(gates, torch.ones(1, 2))
    torch.testing.assert_close(y, want, equal_nan=True)


@needs_cpp
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_registration():
    ops = torch.ops.workbench
    f, z, state = (x.requires_grad_() for x in inputs("forget_mult"))
    torch.library.opcheck(ops.forget_mult_forward.default, (f, z, state))
    f, z, state, y = f.detach(), z.detach(), state.detach(), torch.randn_like(z)
    torch.library.opcheck(ops.forget_mult_backward.default, (y, state, f, z, y, state))
    gates, state = (x.requires_grad_() for x in inputs("fo_pool"))
    mask = torch.ones(2, 5, state.shape[-1], dtype=torch.float64)
    for more in ((None, 1.0), (mask, 1.0), (None, 0.5)):
        torch.library.opcheck(ops.fo_pool_forward.default, (gates, state, *more))
        given = (mask, state.detach(), gates.detach(), state.detach(), *more)
        torch.library.opcheck(ops.fo_pool_backward.default, given)


def test_gates_that_do_not_fit_are_refused_by_name():
    gates, state = inputs("fo_pool", T=4)
    mask = torch.ones(2, 4, state.shape[-1], dtype=torch.float64)
    for arguments, said in (
        ((gates[..., :-1], state), "gates of width 17"),
        ((gates[:, :0], state), "at least one token"),
        ((gates, state[:1]), "state of shape"),
        ((gates, state[0, 0]), "expected .batch, units."),
        ((gates[..., :0], state[:, :0]), "at least one unit"),
        ((gates, state, mask[:, :2]), "mask of shape"),
        ((gates, state.float()), "state of type"),
    ):
        with pytest.raises(ValueError, match=said):
            kernels.fo_pool(*arguments)


def test_forget_mult_is_a_running_mean_with_a_weight_for_each_token():
    f, z, state = inputs("forget_mult", T=6)
    y, last = kernels.forget_mult(f, z, state)
    for b, u in ((0, 0), (1, 3)):
        c = float(state[b, u])
        for t in range(6):
            c = float(f[b, t, u]) * float(z[b, t, u]) + (1 - float(f[b, t, u])) * c
            assert abs(c - float(y[b, t, u])) < 1e-14
        assert last[b, u] == y[b, 5, u]
    assert torch.equal(kernels.forget_mult(torch.zeros_like(f), z, state)[1], state)
    assert torch.equal(kernels.forget_mult(torch.ones_like(f), z, state)[0], z)
    for broken in ([f[:, :0], z[:, :0], state], [f, z[:, :5], state], [f, z, state.float()]):
        with pytest.raises(ValueError, match=r"forget_mult: got .*expected"):
            kernels.forget_mult(*broken)
