"""Cross-entropy in blocks of classes is the cross-entropy of all of them, in bounded memory."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench import kernels

# the package gives the op of this name
from workbench.kernels.linear_cross_entropy import Blocks, in_blocks, reference

MODULE = sys.modules["workbench.kernels.linear_cross_entropy"]
SIZES = [(1, 1, 1), (63, 1500, 7), (100, 513, 3), (0, 600, 4), (5, 512, 2)]  # N, C, D


@pytest.fixture(autouse=True, params=[0, 1 << 24], ids=["computed again", "kept"])
def small_blocks(monkeypatch, request):
    """Blocks of 512 classes, the narrowest there are, whose logits are or are not kept."""
    monkeypatch.setattr(MODULE, "BLOCK", 512)
    monkeypatch.setattr(MODULE, "KEPT", request.param)


def inputs(N, C, D, bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(C, (N,), generator=generator)
    return [randn(N, D), randn(C, D), randn(C) if bias else None, targets]


def outcome(run, arguments):
    """Losses and the gradient of every float, under weights that differ from token to token."""
    leaves = [x.detach().requires_grad_() for x in arguments[:3] if x is not None]
    nll_N = run(*leaves, *([None] if len(leaves) == 2 else []), arguments[3])
    weights = torch.randn(len(nll_N), generator=torch.Generator().manual_seed(1))
    return [nll_N.detach(), *torch.autograd.grad(nll_N, leaves, weights.to(nll_N))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_blocks_are_the_whole(sizes, bias):
    arguments = inputs(*sizes, bias)
    before = [None if x is None else x.clone() for x in arguments]
    want, got = outcome(reference, arguments), outcome(in_blocks, arguments)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    for x, y in zip(before, arguments, strict=True):
        assert x is None or torch.equal(x, y)
    single = [x.float() if x is not None and x.is_floating_point() else x for x in arguments]
    for x, y in zip(outcome(in_blocks, single), want, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4)


def test_layout_does_not_matter():
    hidden, weight, bias, targets = inputs(20, 700, 6)
    want = outcome(in_blocks, [hidden, weight, bias, targets])
    apart = [hidden.T.contiguous().T, weight.T.contiguous().T, torch.stack([bias, bias], 1)[:, 1]]
    for x, y in zip(outcome(in_blocks, [*apart, targets]), want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def test_bfloat16_is_summed_in_float32():
    # equal logits: their exponentials add up to the number of classes, which bfloat16 cannot hold
    C = 3001
    ones = torch.zeros(4, 3).bfloat16(), torch.zeros(C, 3).bfloat16(), torch.zeros(C).bfloat16()
    nll_N = in_blocks(*ones, torch.arange(4))
    torch.testing.assert_close(nll_N, torch.full((4,), float(C)).log(), rtol=1e-6, atol=0)
    arguments = inputs(50, 1300, 8)
    half = [x.bfloat16() if x.is_floating_point() else x for x in arguments]
    want = outcome(reference, [x.double() if x.is_floating_point() else x for x in half])
    got = outcome(in_blocks, half)
    assert [x.dtype for x in got] == [torch.float32] + [torch.bfloat16] * 3
    for x, y in zip(got, want, strict=True):
        assert (x.double() - y).abs().max() < 0.02 * y.abs().max()


def test_extreme_logits():
    hidden, weight, _, targets = inputs(30, 1200, 5)
    for scale in (1e3, 1e-30):
        arguments = [hidden * scale, weight, None, targets]
        for x, y in zip(outcome(in_blocks, arguments), outcome(reference, arguments), strict=True):
            assert x.isfinite().all()
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9 * float(y.abs().max()) + 1e-300)
    hidden[3] = float("nan")
    assert in_blocks(hidden, weight, None, targets).isnan().nonzero().tolist() == [[3]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gradients_and_registration():
    for bias in (True, False):
        hidden, weight, bias_C, targets = inputs(3, 520, 2, bias)
        leaves = [x if x is None else x.requires_grad_() for x in (hidden, weight, bias_C)]
        few = weight.detach()[:6].requires_grad_()
        few_bias = None if bias_C is None else bias_C.detach()[:6].requires_grad_()
        assert torch.autograd.gradcheck(in_blocks, (leaves[0], few, few_bias, targets % 6))
        forward = torch.ops.workbench.linear_cross_entropy_forward.default
        for keep in (True, False):
            torch.library.opcheck(forward, (*leaves, targets, keep))


def test_every_fresh_number_is_written():
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        results = outcome(in_blocks, inputs(7, 1100, 3))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill
    assert all(x.isfinite().all() for x in results)


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


def test_the_op_takes_blocks_where_logits_are_many():
    hidden, weight, bias, targets = inputs(64, 4000, 2)
    assert Blocks(hidden, [weight], [bias], targets, hidden.new_empty(0)).width == 512
    with Largest() as seen:
        want = kernels.linear_cross_entropy(hidden, weight, bias, targets)
    assert seen.numel < 64 * 4000 and kernels.ran()["linear_cross_entropy"] == "chunked"
    with kernels.use("reference"), Largest() as seen:
        got = kernels.linear_cross_entropy(hidden, weight, bias, targets)
    assert seen.numel == 64 * 4000
    torch.testing.assert_close(got, want)


def test_few_logits_are_kept_where_they_are_differentiated(small_blocks):
    hidden, weight, bias, targets = inputs(64, 4000, 2)
    for x in (hidden, weight):
        x.requires_grad_()
    nll_N = kernels.linear_cross_entropy(hidden, weight, bias, targets)
    kept = [x.numel() for x in nll_N.grad_fn.saved_tensors if x.ndim == 1]
    assert (64 * 4000 in kept) == bool(MODULE.KEPT)
    first = torch.autograd.grad(nll_N.sum(), hidden, retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(nll_N.sum(), hidden))


def test_compiles_in_one_graph():
    arguments = inputs(10, 1100, 3)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: kernels.linear_cross_entropy(*x), fullgraph=True, backend="aot_eager"
    )
    want, got = outcome(in_blocks, arguments), outcome(compiled, arguments)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


def test_autocast_computes_the_products_in_its_type():
    arguments = inputs(10, 1100, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = outcome(kernels.linear_cross_entropy, arguments)
    assert all(x.dtype == torch.float32 for x in got)
    for x, y in zip(got, outcome(reference, arguments), strict=True):
        assert 0 < (x - y).abs().max() < 0.03 * y.abs().max()


def test_what_does_not_fit_is_refused():
    hidden, weight, bias, targets = inputs(5, 600, 3)
    for arguments, said in (
        ((hidden, weight[:, :2], bias, targets), "weight of shape"),
        ((hidden, weight, bias[:9], targets), "bias of shape"),
        ((hidden, weight, bias, targets[:2]), "targets of shape"),
        ((hidden[None], weight, bias, targets), "expected matrices"),
        ((hidden, weight[0], bias, targets), "expected matrices"),
        ((hidden, weight, bias, targets.int()), "ids in int64"),
    ):
        with pytest.raises(ValueError, match=said):
            kernels.linear_cross_entropy(*arguments)
    for wrong in (-100, -1, 600):
        with pytest.raises(IndexError, match="expected 0 to 599"):
            in_blocks(hidden, weight, bias, targets.clone().fill_(wrong))
        with pytest.raises(IndexError, match="out of bounds"):
            reference(hidden, weight, bias, targets.clone().fill_(wrong))
