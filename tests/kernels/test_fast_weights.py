"""What only the fast-weight rules have: normalised keys, bfloat16, and memory linear in T."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from cases import ARGUMENTS, assert_outcomes_equal, inputs, usable
from torch import Tensor

from workbench import kernels
from workbench.kernels.dispatch import OPS

RULES = ("delta_rule", "sum_rule")
BACKENDS = [case for case in usable() if case[0] in RULES]
ON_CPU = [case for case in BACKENDS if case[1] == "cpp"]


def outcome(
    op: str, arguments: list[Tensor], backend: str, grads: list[Tensor], normalise: bool
) -> dict[str, Tensor]:
    """Output, last state and the gradient of every argument, given those of the results."""
    leaves = [x.detach().requires_grad_() for x in arguments]
    with kernels.use(backend):
        results = OPS[op](*leaves, normalise)
    sent = [g.to(x.dtype) for g, x in zip(grads, results, strict=True)]
    gradients = torch.autograd.grad(results, leaves, sent)
    assert [x.dtype for x in gradients] == [x.dtype for x in arguments]
    names = ["y", "last", *(f"d{name}" for name in ARGUMENTS[op])]
    return dict(zip(names, [*results, *gradients], strict=True))


def rounded(x: Tensor) -> Tensor:
    """Float64 numbers that bfloat16 holds without loss."""
    return x.to(torch.bfloat16).double()


def results_like(op: str, arguments: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = (arguments[2].shape, arguments[-1].shape)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def positive(op: str, arguments: list[Tensor]) -> list[Tensor]:
    """Keys and queries as features are: positive, of any sum, some of them all zeros."""
    q, k, *rest = arguments
    q, k = q.abs() + 0.01, 3 * k.abs() + 0.01
    q[:, -1, 0], k[:, 0, 1] = 0, 0
    return [q, k, *rest]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [(1, 4, 4), (9, 33, 5), (6, 130, 70), (101, 12, 20)], ids=str)
@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_normalised_inside(op, backend, sizes, dtype):
    T, F, V = sizes
    arguments = positive(op, inputs(op, T=T, F=F, V=V))
    grads = results_like(op, arguments)
    q, k, *rest = (x.clone().requires_grad_() for x in arguments)
    divided = [x / torch.where(x.sum(-1, True) == 0, 1, x.sum(-1, True)) for x in (q, k)]
    results = OPS[op].reference(*divided, *rest)
    gradients = torch.autograd.grad(results, [q, k, *rest], grads)
    names = ["y", "last", *(f"d{name}" for name in ARGUMENTS[op])]
    want = dict(zip(names, [*results, *gradients], strict=True))
    got = outcome(op, [x.to(dtype) for x in arguments], backend, grads, normalise=True)
    assert_outcomes_equal(got, want, 1e-12 if dtype == torch.float64 else 4e-6)


INF, NAN = float("inf"), float("nan")
# (a key or a query, whether its gradient is finite enough to be compared)
OUT_OF_BOUNDS = {
    "inf": ((1.0, INF, 2.0), True),
    "-inf": ((1.0, -INF, 2.0), True),
    "inf - inf": ((INF, -INF, 2.0), True),
    "nan": ((1.0, NAN, 2.0), True),
    "sum overflows": ((3e38, 3e38, 1.0), True),
    "1 / sum overflows": ((2e-40, 3e-40, 0.0), False),
}


@pytest.mark.parametrize("spoilt", OUT_OF_BOUNDS)
@pytest.mark.parametrize("which", ["q", "k"])
@pytest.mark.parametrize(("op", "backend"), ON_CPU)
def test_normalised_sums_out_of_bounds_are_not_hidden(op, backend, which, spoilt):
    """What is infinite or NaN afterwards is so where it is in the reference, and nowhere else."""
    arguments = [x.float() for x in positive(op, inputs(op, F=3))]
    numbers, with_gradients = OUT_OF_BOUNDS[spoilt]
    arguments["qk".index(which)][1, 2, 0] = torch.tensor(numbers)
    grads = results_like(op, arguments)
    got, want = (outcome(op, arguments, b, grads, normalise=True) for b in (backend, "reference"))
    for name in want if with_gradients else ("y", "last"):
        torch.testing.assert_close(
            got[name],
            want[name],
            rtol=1e-5,
            atol=1e-5,
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_normalised_gradcheck(op, backend):
    arguments = positive(op, inputs(op, B=1, T=3, H=2, F=5, V=3))
    # at zeros a step to either side has another sum
    leaves = [(x + 0.1 if i < 2 else x).requires_grad_() for i, x in enumerate(arguments)]
    with kernels.use(backend):
        assert torch.autograd.gradcheck(lambda *x: OPS[op](*x, True), leaves)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("state_type", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [(1, 4, 4), (63, 20, 33), (40, 192, 32)], ids=str)
@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_bfloat16_is_rounded_only_where_it_is_stored(op, backend, sizes, state_type, normalise):
    T, F, V = sizes
    arguments = [rounded(x) for x in inputs(op, T=T, F=F, V=V)]
    if normalise:
        arguments = [rounded(x) for x in positive(op, arguments)]
    grads = [rounded(x) for x in results_like(op, arguments)]
    want = outcome(op, arguments, "reference", grads, normalise)
    small = [x.to(torch.bfloat16) for x in arguments[:-1]] + [arguments[-1].to(state_type)]
    got = outcome(op, small, backend, grads, normalise)
    assert got["y"].dtype == torch.bfloat16
    assert got["last"].dtype == got["dstate"].dtype == state_type
    exact = ["last", "dstate"] if state_type == torch.float32 else []
    assert_outcomes_equal({n: got[n] for n in exact}, {n: want[n] for n in exact}, 1e-5)
    # half a unit in the last place of 8 bits, of each tensor's largest number
    assert_outcomes_equal(got, want, 2**-8)


@pytest.mark.parametrize("backend", sorted({backend for _, backend in BACKENDS}))
def test_a_state_may_be_wider_than_its_segment_and_nothing_else(backend):
    arguments = [x.to(torch.bfloat16) for x in inputs("delta_rule")]
    with kernels.use(backend):
        with pytest.raises(ValueError, match=r"state of type torch.float64"):
            kernels.delta_rule(*arguments[:-1], arguments[-1].double())
        with pytest.raises(ValueError, match=r"values of type torch.float32"):
            kernels.delta_rule(*arguments[:2], arguments[2].float(), *arguments[3:])


@pytest.mark.parametrize("sizes", [(4097, 16, 16), (7, 300, 257), (7, 257, 300)], ids=str)
@pytest.mark.parametrize(("op", "backend"), ON_CPU)
def test_long_and_wide(op, backend, sizes):
    T, F, V = sizes
    arguments = inputs(op, B=1, T=T, H=2, F=F, V=V)
    grads = results_like(op, arguments)
    want = outcome(op, arguments, "chunked", grads, normalise=False)
    got = outcome(op, [x.float() for x in arguments], backend, grads, normalise=False)
    assert_outcomes_equal(got, want, 2e-5)


@pytest.mark.parametrize("T", [48, 49, 131])
@pytest.mark.parametrize(("op", "backend"), ON_CPU)
def test_heads_go_through_blocks_of_tokens_together(op, backend, T):
    arguments = inputs(op, B=2, T=T, H=11, F=24, V=40)
    # heads side by side with something else between tokens, as parts of one projection lie
    parts = [torch.cat([x, x + 1], dim=2)[:, :, : x.shape[2]] for x in arguments[:-1]]
    grads = results_like(op, arguments)
    want = outcome(op, arguments, "chunked", grads, normalise=False)
    got = outcome(op, [*parts, arguments[-1]], backend, grads, normalise=False)
    assert_outcomes_equal(got, want, 1e-10)


@pytest.mark.parametrize(("op", "backend"), ON_CPU)
def test_results_larger_than_caches(op, backend):
    arguments = inputs(op, B=1, T=4109, H=8, F=64, V=64)
    grads = results_like(op, arguments)
    want = outcome(op, arguments, "chunked", grads, normalise=False)
    got = outcome(op, [x.float() for x in arguments], backend, grads, normalise=False)
    assert got["y"].nbytes > 8 << 20
    assert_outcomes_equal(got, want, 2e-5)


@pytest.mark.parametrize(("op", "backend"), ON_CPU)
def test_memory_of_results_is_used_again_when_they_are_gone(op, backend):
    arguments = [x.float() for x in inputs(op, B=1, T=1200, H=4, F=8, V=64)]
    with kernels.use(backend), torch.no_grad():
        first, second = OPS[op](*arguments)[0], OPS[op](*arguments)[0]
        assert first.data_ptr() != second.data_ptr()
        assert torch.equal(first, second)
        kept, place = second.clone(), first.data_ptr()
        del first
        third = OPS[op](*[2 * x for x in arguments])[0]
    assert third.data_ptr() == place
    assert torch.equal(second, kept) and not torch.equal(third, kept)
    third.resize_(3, *third.shape)  # as other tensors do
    assert third.data_ptr() != place


PEAK = """
import resource, torch
from workbench.kernels.dispatch import OPS
from workbench import kernels
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def call(T):
    x = [torch.rand(1, T, 1, 64).requires_grad_() for _ in range(3)]
    x += [torch.rand(1, T, 1)] * (op == "delta_rule") + [torch.zeros(1, 1, 64, 64)]
    torch.autograd.grad(OPS[op](*x)[0].sum(), x[:3])
with kernels.use("cpp"):
    call(64)
    before = peak()
    call(4096)
print(peak() - before)
"""


@pytest.mark.parametrize(("op", "backend"), ON_CPU)
def test_memory_grows_as_the_inputs_do(op, backend):
    """A matrix of tokens by tokens, and one W for each token, would take 64 MB here."""
    program = f"op = {op!r}\n{PEAK}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 32
