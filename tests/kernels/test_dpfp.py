"""The DPFP op: its backends agree with the map's definition, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workbench import kernels
from workbench.models.feature_maps import DpfpConfig, features

BACKENDS = [
    row.backend for row in kernels.dpfp.explain(torch.ones(1, 2), 1, True) if not row.why_not
]
CLOSE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 1e-2}
SHAPES = [(1,), (3, 5, 1), (7, 2), (2, 3, 4, 33), (300, 32), (0, 4), (2, 0, 3, 8)]


def slowly(x: Tensor, nu: int, normalise: bool) -> Tensor:
    """The definition, index by index, in float64."""
    y = torch.cat([x.clamp(min=0), (-x).clamp(min=0)], -1)
    N = y.shape[-1]
    products = [y[..., m] * y[..., (m - i) % N] for i in range(1, nu + 1) for m in range(N)]
    phi = torch.stack(products, -1)
    total = phi.sum(-1, keepdim=True)
    return phi / torch.where(total == 0, 1.0, total) if normalise else phi


def drawn(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normalise", [False, True])
def test_backends_compute_the_definition(backend, dtype, shape, normalise):
    for nu in range(1, min(3, 2 * shape[-1] - 1) + 1):
        x = drawn(shape).to(dtype).requires_grad_()
        exact = x.detach().double().requires_grad_()
        want = slowly(exact, nu, normalise)
        g = drawn(want.shape).to(dtype)
        with kernels.use(backend):
            got = kernels.dpfp(x, nu, normalise)
            (dx,) = torch.autograd.grad(got, x, g)
        (want_dx,) = torch.autograd.grad(want, exact, g.double())
        assert got.dtype == dx.dtype == dtype
        for ours, theirs in ((got, want), (dx, want_dx)):
            scale = theirs.abs().max().item() if theirs.numel() else 1.0
            close = {"rtol": CLOSE[dtype], "atol": CLOSE[dtype] * max(scale, 1)}
            torch.testing.assert_close(ours.double(), theirs, **close)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalise", [False, True])
def test_gradients_of_heads_that_lie_apart(backend, normalise):
    mixed = drawn((2, 3, 2, 17)).requires_grad_()
    with kernels.use(backend):
        for part in (
            lambda m: m[..., 5:10],
            lambda m: m[:, -2:, :, :5],
            lambda m: m.transpose(0, 3)[:5],
            lambda m: m[:, :1].expand(2, 3, 2, 17)[..., :4],
        ):
            assert torch.equal(
                kernels.dpfp(part(mixed), 2, normalise),
                kernels.dpfp(part(mixed).contiguous(), 2, normalise),
            )
            assert torch.autograd.gradcheck(
                lambda m, part=part: kernels.dpfp(part(m), 2, normalise), mixed
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_stay_zeros_and_nan_stays_nan(backend):
    x = torch.zeros(3, 4)
    x[1, 2], x[2, 1] = 1.0, float("nan")
    x.requires_grad_()
    with kernels.use(backend):
        y = kernels.dpfp(x, 1, True)
        (dx,) = torch.autograd.grad(y[:2].sum(), x)
    assert torch.equal(y[:2], torch.zeros(2, 8))  # one number alone has no neighbour
    assert y[2].isnan().any()
    assert torch.equal(dx[:2], torch.zeros(2, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_change_nothing(backend):
    x = drawn((4000, 32)).float()
    with kernels.use(backend):
        alone = kernels.dpfp(x, 3, True)
        torch.set_num_threads(2)
        try:
            assert torch.equal(kernels.dpfp(x, 3, True), alone)
        finally:
            torch.set_num_threads(1)


def test_the_feature_map_runs_the_op_and_its_features_add_up_to_one():
    phi = DpfpConfig(nu=2).build(6)
    x = drawn((5, 6)).float()
    kernels.forget()
    torch.testing.assert_close(features(phi, "sum", x).sum(-1), torch.ones(5))
    assert kernels.ran()["dpfp"] == BACKENDS[0]
    torch.testing.assert_close(features(phi, "none", x), slowly(x, 2, False))


@pytest.mark.parametrize("nu", [0, 8])
def test_refuses_shifts_that_repeat(nu):
    with pytest.raises(ValueError, match=f"got {nu} shifts of heads of shape"):
        kernels.dpfp(torch.ones(2, 4), nu, False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_cuda_kernel_says_what_it_cannot(dtype):
    row, *_ = kernels.dpfp.explain(torch.ones(2, 513, dtype=dtype), 1, True)
    assert row.backend == "cuda" and not row.chosen
    elsewhere, types, width = row.why_not
    assert "run on a GPU, the tensors are on cpu" in elsewhere
    assert f"float32 and bfloat16, the tensor holds {dtype}" in types
    assert "heads of up to 512, got 513" in width
    fitting = kernels.dpfp.explain(torch.ones(2, 512), 1, True)[0].why_not
    assert len(fitting) == 1 and "the tensors are on cpu" in fitting[0]
    if not torch.cuda.is_available():
        (missing,) = kernels.dpfp.explain()[0].why_not
        assert "CUDA" in missing or "GPU" in missing
