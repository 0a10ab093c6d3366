"""The cross-entropies of clusters in blocks are those of PyTorch's own functions."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
import torch

from workbench import kernels
from workbench.errors import NoBackend

# the packages give the ops of these names
from workbench.kernels.clustered_cross_entropy import in_blocks, reference

SINGLE = sys.modules["workbench.kernels.linear_cross_entropy"]
N, D, K = 70, 3, 2
CASES = {
    "small": ((0, 20, 50, 90), (9, 5)),
    "a tail without tokens": ((0, 20, 700, 1500), (0, 30)),
    "many blocks": ((0, 1100, 1800, 3000), (40, 30)),
    "a head that ends with a block": ((0, 1024, 1030, 1600), (20, 10)),
}


@pytest.fixture(params=[0, 30_000, 1 << 24], ids=["computed again", "some kept", "kept"])
def small_blocks(monkeypatch, request):
    """Blocks of 512 classes, whose logits are or are not kept."""
    monkeypatch.setattr(SINGLE, "BLOCK", 512)
    monkeypatch.setattr(SINGLE, "KEPT", request.param)


def inputs(case, n=N, dtype=torch.float64):
    ends, counts = CASES[case]
    generator = torch.Generator().manual_seed(0)
    M, C = sum(counts), ends[-1]
    shapes = (n, D), (M, D), (C, D), (C,), (K, D), (K,)
    floats = [torch.randn(*x, generator=generator, dtype=torch.float64).to(dtype) for x in shapes]
    classes = [ends[1] + K, *(b - a for a, b in pairwise(ends[1:]))]
    targets = [
        torch.randint(high, (m,), generator=generator)
        for high, m in zip(classes, (n, *counts), strict=True)
    ]
    # some are in a tail, as many of a real head are
    targets[0][::4] = ends[1] + torch.arange(len(targets[0][::4])) % K
    return floats, (torch.cat(targets), ends, counts)


def outcome(run, floats, rest):
    leaves = [x.detach().requires_grad_() for x in floats]
    nll = run(*leaves, *rest)
    weights = torch.randn(len(nll), generator=torch.Generator().manual_seed(1))
    return [nll.detach(), *torch.autograd.grad(nll, leaves, weights.to(nll))]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_blocks_are_the_whole(small_blocks, case, dtype):
    floats, rest = inputs(case, dtype=dtype)
    want = outcome(reference, [x.double() for x in floats], rest)
    got = outcome(in_blocks, floats, rest)
    assert [x.dtype for x in got[1:]] == [dtype] * 6
    share = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape
        assert (x.double() - y).abs().max() <= share * y.abs().max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gradients_and_registration(small_blocks):
    floats, rest = inputs("small", n=4)
    leaves = [x.requires_grad_() for x in floats]
    assert torch.autograd.gradcheck(lambda *x: in_blocks(*x, *rest), leaves)
    forward = torch.ops.workbench.clustered_cross_entropy_forward.default
    for keep in (True, False):
        torch.library.opcheck(forward, (*leaves, *rest, keep))


def test_a_gradient_is_the_same_twice_and_has_none(small_blocks):
    floats, rest = inputs("many blocks")
    leaves = [x.requires_grad_() for x in floats]
    nll = kernels.clustered_cross_entropy(*leaves, *rest)
    first = torch.autograd.grad(nll.sum(), leaves, create_graph=True)
    for x, y in zip(first, torch.autograd.grad(nll.sum(), leaves, retain_graph=True), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(NoBackend, match="differentiated once more"):
        first[0].sum().backward()


def test_compiles_in_one_graph():
    floats, rest = inputs("many blocks")
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: kernels.clustered_cross_entropy(*x, *rest), fullgraph=True, backend="aot_eager"
    )
    for x, y in zip(outcome(compiled, floats, ()), outcome(in_blocks, floats, rest), strict=True):
        torch.testing.assert_close(x, y)


def test_autocast_computes_the_products_in_its_type():
    floats, rest = inputs("many blocks", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = outcome(kernels.clustered_cross_entropy, floats, rest)
    assert all(x.dtype == torch.float32 for x in got)
    for x, y in zip(got, outcome(reference, floats, rest), strict=True):
        assert 0 < (x - y).abs().max() < 0.03 * y.abs().max()


def test_what_does_not_fit_is_refused():
    (hidden, *floats), (targets, ends, counts) = inputs("small")
    for arguments, said in (
        ((hidden[:, :2], *floats, targets, ends, counts), "weight of shape"),
        ((hidden, *floats, targets[1:], ends, counts), "targets of shape"),
        ((hidden, *floats, targets.int(), ends, counts), "ids in int64"),
        ((hidden, *floats, targets, ends[:-1], counts), r"end at \[20, 50\]"),
        ((hidden, *floats, targets, ends, (9, 6)), "14 tokens in all"),
    ):
        with pytest.raises(ValueError, match=said):
            kernels.clustered_cross_entropy(*arguments)
    targets[-1] = 40
    with pytest.raises(IndexError, match="expected 0 to 39"):
        in_blocks(hidden, *floats, targets, ends, counts)
