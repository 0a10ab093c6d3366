"""What differentiates otherwise than backwards and once gets the right numbers, or an error."""

from __future__ import annotations

import pytest
import torch
from attention_cases import floats, make, rebuilt
from cases import inputs, usable
from torch.autograd import forward_ad

from workbench import kernels
from workbench.errors import NoBackend
from workbench.kernels.linear_cross_entropy import BLOCK

CPP = ("delta_rule", "cpp") in usable()


def attention(*tensors):
    call = make(rows=9, bias=True, spans=[2.0, 3.5], N=2, extra=True)
    return kernels.attention(*rebuilt(call, dict(zip(floats(call), tensors, strict=True))))


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def linear_cross_entropy(hidden, weight):
    targets = torch.arange(len(hidden)) % len(weight)
    return kernels.linear_cross_entropy(hidden, weight, None, targets)


# a function, its float64 arguments, and the backend that has a gradient of its own
FUNCTIONS = {
    "attention": (
        attention,
        list(floats(make(rows=9, bias=True, spans=[2.0, 3.5], N=2, extra=True)).values()),
        "cpp",
    ),
    "dpfp": (lambda x: kernels.dpfp(x, 2, True), [randn(4, 5)], "cpp"),
    "dropout": (lambda x: kernels.dropout(x, torch.tensor(5), 0.4) ** 3, [randn(4, 5)], "cpp"),
    "linear_cross_entropy": (linear_cross_entropy, [randn(2050, 2), randn(2050, 2)], "chunked"),
} | {
    op: (lambda *x, op=op: getattr(kernels, op)(*x)[0], inputs(op), "cpp")
    for op in ("delta_rule", "sum_rule", "forget_mult", "fo_pool")
}


@pytest.fixture(params=FUNCTIONS)
def case(request):
    function, arguments, backend = FUNCTIONS[request.param]
    if backend == "cpp" and not CPP:
        pytest.skip("no C++ compiler here")
    return function, [x.clone() for x in arguments], backend


def second(function, arguments):
    """The gradient of the square of the gradient."""
    leaves = [x.clone().requires_grad_() for x in arguments]
    y = function(*leaves)
    grads = torch.autograd.grad((y * y).sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum((g * g).sum() for g in grads), leaves)


def test_a_second_derivative_is_right_or_refused(case):
    function, arguments, backend = case
    with kernels.use("reference"):
        want = second(function, arguments)
    assert max(x.abs().max() for x in want) > 0
    with kernels.use(backend):
        try:
            got = second(function, arguments)
        except NoBackend as error:
            assert 'kernels.use("reference")' in str(error)
            return
    torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:.*passing over the backend:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_tangents_and_function_transforms_are_not_lost(case):
    """A kernel knows neither: it is passed over, where PyTorch would take tangents for zeros."""
    function, arguments, backend = case
    tangents = [x.cos() for x in arguments]
    leaves = [x.clone().requires_grad_() for x in arguments]
    with kernels.use(backend):
        grads = torch.autograd.grad(function(*leaves).sum(), leaves)
        with pytest.raises(NoBackend, match=r"torch\.func"):
            torch.func.grad(lambda x: function(x, *arguments[1:]).sum())(arguments[0])
    forwards = torch.func.jvp(lambda *x: function(*x).sum(), tuple(arguments), tuple(tangents))[1]
    want = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    torch.testing.assert_close(forwards, want)
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, arguments, tangents)
        dual = forward_ad.unpack_dual(function(*duals).sum()).tangent
    torch.testing.assert_close(dual, want)
    got = torch.func.grad(lambda *x: function(*x).sum())(*arguments)
    torch.testing.assert_close(got, grads[0])


def test_the_large_case_is_cut_into_blocks():
    hidden, weight = FUNCTIONS["linear_cross_entropy"][1]
    assert len(hidden) * len(weight) > BLOCK
