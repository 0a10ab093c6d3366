"""The choice between backends: the first that can, with its reasons, and never in silence."""

from __future__ import annotations

import warnings

import pytest
import torch
from cases import inputs, usable

from workbench import kernels
from workbench.errors import NoBackend, WorkbenchError
from workbench.kernels import dispatch
from workbench.kernels.dispatch import OPS, Backend, Op

CPP = ("delta_rule", "cpp") in usable()
needs_cpp = pytest.mark.skipif(not CPP, reason="no C++ compiler here")


@pytest.fixture
def double():
    """An op with a backend that refuses numbers above 9, and one that lacks a machine."""

    def small(*args):
        return ["numbers above 9"] if args and args[0] > 9 else []

    op = Op(
        "double",
        lambda x: x + x,
        [
            Backend("cuda", lambda x: 1 / 0, lambda *args: ["no GPU here", "no driver"]),
            Backend("cpp", lambda x: 2 * x, small),
        ],
    )
    warned = set(dispatch._warned)
    yield op
    del dispatch.OPS["double"]
    dispatch._warned.clear()
    dispatch._warned.update(warned)


def test_auto_takes_the_first_that_can_and_warns_once_for_each_reason(double):
    with pytest.warns(RuntimeWarning) as caught:
        assert double(3) == 6
    assert [str(w.message) for w in caught] == [
        "double: passing over the backend 'cuda': no GPU here",
        "double: passing over the backend 'cuda': no driver",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert double(4) == 8
    with pytest.warns(RuntimeWarning, match="numbers above 9"):
        assert double(10) == 20
    assert kernels.ran()["double"] == "reference"


def test_use_refuses_with_every_reason(double):
    with kernels.use("cuda"), pytest.raises(NoBackend, match=r"no GPU here\n  - no driver"):
        double(1)
    with kernels.use("reference"):
        assert double(1) == 2
    with pytest.raises(NoBackend, match=r"'nonsense'.*auto, chunked, cpp, cuda, .*reference"):
        kernels.use("nonsense").__enter__()
    absent = pytest.raises(NoBackend, match="forget_mult has no backend 'chunked'")
    with kernels.use("chunked"), absent:
        kernels.forget_mult(*inputs("forget_mult"))
    assert issubclass(NoBackend, WorkbenchError)


def test_use_nests_and_ends_with_its_block(double):
    kernels.forget()
    with kernels.use("reference"):
        with kernels.use("cpp"):
            double(1)
            assert kernels.ran() == {"double": "cpp"}
        double(1)
        assert kernels.ran() == {"double": "reference"}
        with pytest.raises(ZeroDivisionError), kernels.use("cpp"):
            raise ZeroDivisionError
        double(1)
        assert kernels.ran() == {"double": "reference"}
    kernels.forget()
    assert kernels.ran() == {}


def test_use_may_end_in_any_order():
    """As in threads; the block that began last and has not ended decides."""
    kernels.forget()
    first, second = kernels.use("reference"), kernels.use("chunked")
    seen = []
    for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None)):
        step()
        kernels.sum_rule(*inputs("sum_rule"))
        seen.append(kernels.ran()["sum_rule"])
    second.__exit__(None, None, None)
    assert seen == ["reference", "chunked", "chunked"]
    assert dispatch._demanded == "auto"


def test_explain_is_a_table_of_a_call(double):
    assert double.explain(10) == [
        ("double", "cuda", False, ["no GPU here", "no driver"]),
        ("double", "cpp", False, ["numbers above 9"]),
        ("double", "reference", True, []),
    ]
    assert [row.chosen for row in double.explain(1)] == [False, True, False]
    with kernels.use("reference"):
        assert [row.chosen for row in double.explain(1)] == [False, False, True]
    assert {row.op for row in kernels.explain()} == set(dispatch.OPS) >= {"double", "delta_rule"}


@needs_cpp
def test_cpp_says_what_it_cannot():
    arguments = [x.to(torch.float16) for x in inputs("delta_rule")]
    _, refusing, chunked, *_ = kernels.delta_rule.explain(*arguments)
    assert refusing.backend == "cpp" and "torch.float16" in refusing.why_not[0]
    assert chunked == ("delta_rule", "chunked", True, [])
    with kernels.use("cpp"), pytest.raises(NoBackend, match="float16"):
        kernels.delta_rule(*arguments)
    elsewhere = [x.to("meta") for x in arguments]
    assert len(kernels.delta_rule.explain(*elsewhere)[1].why_not) == 2


def test_wrong_arguments_are_refused_by_name():
    q, k, v, beta, state = inputs("delta_rule", B=2, T=5, H=3, F=4, V=6)
    wrong = [
        ((q[0], k, v, beta, state), "queries of shape (5, 3, 4)"),
        ((q, k[..., :2], v, beta, state), "keys of shape (2, 5, 3, 2), expected (2, 5, 3, 4)"),
        ((q, k, v, beta[..., None], state), "write strengths of shape (2, 5, 3, 1)"),
        ((q, k, v, beta, state.transpose(2, 3)), "state of shape (2, 3, 6, 4)"),
        ((q, k, v.float(), beta, state), "values of type torch.float32"),
        ((q[:, :0], k[:, :0], v[:, :0], beta[:, :0], state), "no tokens"),
    ]
    for arguments, said in wrong:
        with pytest.raises(ValueError) as caught:
            kernels.delta_rule(*arguments)
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="sum_rule: got state"):
        kernels.sum_rule(q, k, v, state[..., :2])
    for dtype in (torch.int64, torch.complex64):
        for op in ("delta_rule", "forget_mult", "fo_pool"):
            with pytest.raises(ValueError, match=f"{op}: got numbers of type {dtype}, expected a"):
                getattr(kernels, op)(*(x.to(dtype) for x in inputs(op)))


def test_devices_without_numbers_give_shapes():
    for op in ("delta_rule", "sum_rule", "forget_mult", "fo_pool"):
        want = OPS[op](*inputs(op))
        got = OPS[op](*(x.to("meta") for x in inputs(op)))
        assert [x.shape for x in got] == [x.shape for x in want]
        assert all(x.is_meta for x in got)


@needs_cpp
def test_the_kernel_itself_refuses_what_does_not_fit():
    q, k, v, beta, state = inputs("delta_rule")
    forward = torch.ops.workbench.delta_rule_forward
    with pytest.raises(RuntimeError, match="values of shape"):
        forward(q, k, v[:, :3], beta, state, False, False)
    with pytest.raises(RuntimeError, match="write strengths of type Float"):
        forward(q, k, v, beta.float(), state, False, False)
    with pytest.raises(RuntimeError, match="expected float, double or bfloat16"):
        forward(*(x.half() for x in (q, k, v, beta, state)), False, False)
