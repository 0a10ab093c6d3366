"""Every op on every backend of this machine computes what its reference means."""

from __future__ import annotations

import pytest
import torch
from cases import assert_outcomes_equal, inputs, outcome, scattered, usable

from workbench import kernels
from workbench.kernels.dispatch import OPS

BACKENDS = usable()
FAST = [(op, backend) for op, backend in BACKENDS if backend != "reference"]
SIZES = [
    # T, F, V: one token; nothing a multiple of a vector; several panels with a narrow rest; wide
    (1, 4, 4),
    (63, 20, 33),
    (100, 7, 70),
    (5, 300, 16),
    (12, 16, 1),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_outputs_and_gradients(op, backend, sizes, dtype):
    T, F, V = sizes
    arguments = inputs(op, T=T, F=F, V=V)
    want = outcome(OPS[op], arguments, "reference")
    got = outcome(OPS[op], [x.to(dtype) for x in arguments], backend)
    assert all(x.dtype == dtype for x in got.values())
    assert_outcomes_equal(got, want, 1e-12 if dtype == torch.float64 else 4e-6)


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_memory_layout_does_not_matter(op, backend):
    arguments = inputs(op, T=9, F=10, V=12)
    want = outcome(OPS[op], arguments, "reference")
    apart = [scattered(x) for x in arguments]
    assert not any(x.is_contiguous() for x in apart)
    assert_outcomes_equal(outcome(OPS[op], apart, backend), want, 1e-13)
    # slices of one tensor along the width, as a projection gives them
    wide = [torch.cat([x, x], dim=-1)[..., : x.shape[-1]] for x in arguments]
    assert_outcomes_equal(outcome(OPS[op], wide, backend), want, 1e-13)


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_gradients_of_one_result_alone(op, backend):
    """Either result may go unused, and a sum sends back one number seen many times."""
    for pick in (0, 1):
        grads = []
        for name in ("reference", backend):
            leaves = [x.requires_grad_() for x in inputs(op, T=7)]
            with kernels.use(name):
                result = OPS[op](*leaves)[pick]
            grad = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
            grads.append([torch.zeros(()) if g is None or g.abs().max() == 0 else g for g in grad])
        for want, got in zip(*grads, strict=True):
            torch.testing.assert_close(got, want.to(got), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_inputs_stay_as_they_were(op, backend):
    arguments = inputs(op, T=20, F=9, V=11)
    before = [x.clone() for x in arguments]
    y = outcome(OPS[op], arguments, backend)
    for old, new in zip(before, arguments, strict=True):
        assert torch.equal(old, new)
    held = {x.untyped_storage().data_ptr() for x in arguments}
    assert not any(x.untyped_storage().data_ptr() in held for x in y.values())


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_every_fresh_number_is_written(op, backend):
    """Fresh memory holds NaN here; one entry that nobody wrote would show."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        results = outcome(OPS[op], inputs(op, T=6, F=21, V=35), backend)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill
    assert all(x.isfinite().all() for x in results.values())


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_segments_are_the_whole(op, backend):
    arguments = inputs(op, T=13, F=8, V=8)
    *sequences, state = arguments
    with kernels.use(backend):
        whole, last = OPS[op](*arguments)
        parts = []
        for cut in zip(*(x.split([5, 1, 7], dim=1) for x in sequences), strict=True):
            y, state = OPS[op](*cut, state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("op", "backend"), [case for case in FAST if case[1] == "cpp"])
def test_threads_do_not_change_a_bit(op, backend):
    arguments = [x.float() for x in inputs(op, B=4, T=200, H=4, F=32, V=32)]
    alone = outcome(OPS[op], arguments, backend)
    torch.set_num_threads(2)
    try:
        together = outcome(OPS[op], arguments, backend)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(alone[name], together[name]) for name in alone)


@pytest.mark.parametrize("backend", [b for op, b in BACKENDS if op == "delta_rule"])
def test_delta_rule_strength_zero_keeps_and_one_replaces(backend):
    q, k, v, beta, state = inputs("delta_rule", T=8, F=8, V=5)
    with kernels.use(backend):
        y, last = kernels.delta_rule(q, k, v, torch.zeros_like(beta), state)
        assert torch.equal(last, state)
        torch.testing.assert_close(y, torch.einsum("bthf,bhfv->bthv", q, state))
        # orthonormal keys written with strength 1: each key reads its value exactly, whatever
        # was there before
        keys = torch.linalg.qr(k.transpose(1, 2)).Q.transpose(1, 2)
        _, last = kernels.delta_rule(q, keys, v, torch.ones_like(beta), state)
    torch.testing.assert_close(torch.einsum("bthf,bhfv->bthv", keys, last), v)
    for strength in (0.0, 1.0):  # the gradient of beta exists at both ends
        arguments = [q, k, v, torch.full_like(beta, strength), state]
        want = outcome(kernels.delta_rule, arguments, "reference")
        got = outcome(kernels.delta_rule, arguments, backend)
        assert want["dbeta"].abs().min() > 0
        assert_outcomes_equal(got, want, 1e-13)


@pytest.mark.parametrize(("op", "backend"), FAST)
def test_gradcheck(op, backend):
    leaves = [x.requires_grad_() for x in inputs(op, B=1, T=4, H=2, F=5, V=3)]
    with kernels.use(backend):
        assert torch.autograd.gradcheck(OPS[op], leaves)


@pytest.mark.skipif(("delta_rule", "cpp") not in BACKENDS, reason="no C++ compiler here")
@pytest.mark.parametrize("op", ["delta_rule", "sum_rule"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_registration(op):
    forward = getattr(torch.ops.workbench, f"{op}_forward").default
    more = (True, True) if op == "delta_rule" else (True,)
    leaves = [x.requires_grad_() for x in inputs(op)]
    torch.library.opcheck(forward, (*leaves, *more))
    q, k, v, *rest = inputs(op, seed=3)
    gy, glast = torch.randn_like(v), torch.randn_like(rest[-1])
    saved = (q, k, *rest, torch.randn_like(v)) if op == "delta_rule" else (q, k, v, *rest)
    backward = getattr(torch.ops.workbench, f"{op}_backward").default
    torch.library.opcheck(backward, (gy, glast, *saved, True))


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_compiles_in_one_graph(op, backend):
    arguments = [x.requires_grad_() for x in inputs(op, T=4)]
    torch._dynamo.reset()
    with kernels.use(backend):
        compiled = torch.compile(lambda *x: OPS[op](*x), fullgraph=True, backend="aot_eager")
        want, got = OPS[op](*arguments), compiled(*arguments)
        kernels.forget()
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(*arguments)  # keeping the account of `ran` must not trace anew
    assert kernels.ran() == {op: backend}
    for x, y in zip(want, got, strict=True):
        torch.testing.assert_close(x, y)
    grads = [torch.autograd.grad(y.sum() + s.sum(), arguments) for y, s in (want, got)]
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y)
