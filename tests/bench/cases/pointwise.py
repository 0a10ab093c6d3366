"""Feature maps, dropout and the fused cross-entropy beside what PyTorch does in several passes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.case import BOTH, FWD, Case, Ways, on, together
from bench.configurations import zipf
from workbench.kernels.dispatch import OPS
from workbench.kernels.features import sum_normalise
from workbench.models.feature_maps import DpfpConfig, features

PLAIN = "PyTorch, plainly"


def dpfp_plainly(x: Tensor, nu: int) -> Tensor:
    """`y = [relu(x), relu(-x)]`, times itself shifted by 1 to nu (arXiv:2102.11174 section 5.3)."""
    y = torch.cat([x.relu(), (-x).relu()], dim=-1)
    return torch.cat([y * y.roll(i, -1) for i in range(1, nu + 1)], dim=-1)


def dpfp(B: int, T: int, way: str, device: torch.device) -> Ways:
    """Features of the fast-weight mixer, divided by their sum, K = 32, nu = 3."""
    H, K, nu = 8, 32, 3
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(B, T, H, K, generator=generator, device=device)
    seed = torch.randn(B, T, H, 2 * K * nu, generator=generator, device=device)
    phi = DpfpConfig(nu=nu).build(K)
    return Ways(
        {"auto": together(partial(features, phi, "sum"), [x], way, [seed])},
        {PLAIN: together(lambda x: sum_normalise(dpfp_plainly(x, nu)), [x], way, [seed])},
    )


def dropout(shape: tuple[int, ...], way: str, device: torch.device) -> Ways:
    """By a seed and the place of a number, beside a generator; other numbers are dropped."""
    generator = torch.Generator(device).manual_seed(0)
    x, gradient = torch.randn(2, *shape, generator=generator, device=device)
    key, p = torch.tensor(7, device=device), 0.1
    work = together(lambda y: OPS["dropout"](y, key, p), [x], way, [gradient])
    rows = OPS["dropout"].explain(x, key, p)
    names = [row.backend for row in rows if not row.why_not and row.backend != "reference"]
    theirs = together(lambda y: F.dropout(y, p), [x], way, [gradient])
    ours = {name: on(name, work) for name in names or ["reference"]}
    return Ways(ours, {"F.dropout": theirs}, unlike=frozenset({"F.dropout"}))


def cross_entropy(N: int, D: int, C: int, device: torch.device) -> Ways:
    """Nats of targets from hidden states and the output matrix."""
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, device=device)
    weight = 0.02 * torch.randn(C, D, generator=generator, device=device)
    arguments, targets = [hidden, weight, torch.zeros(C, device=device)], zipf(C, N).to(device)
    seed = torch.full((N,), 1 / N, device=device)

    def plainly(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, w, b), targets, reduction="none")

    op = OPS["linear_cross_entropy"]
    work = together(lambda *x: op(*x, targets), arguments, BOTH, [seed])
    rows = op.explain(*arguments, targets)
    names = [row.backend for row in rows if not row.why_not and row.backend != "reference"]
    ours = {name: on(name, work) for name in names or ["reference"]}
    return Ways(ours, {"cross_entropy(linear)": together(plainly, arguments, BOTH, [seed])})


def cases() -> list[Case]:
    result = []
    for way in (FWD, BOTH):
        numbers = 8 * 256 * 8 * 32
        result.append(
            Case(
                "pointwise", "DPFP-3", "B8 T256 H8 K32", way, partial(dpfp, 8, 256, way),
                bytes_=4.0 * numbers * (7 if way == FWD else 15), quick=way == BOTH,
            )
        )  # fmt: skip
        shape = (8, 256, 1024)
        result.append(
            Case(
                "pointwise", "dropout", "B8 T256 D1024", way, partial(dropout, shape, way),
                bytes_=4.0 * 8 * 256 * 1024 * (2 if way == FWD else 4), quick=False,
            )
        )  # fmt: skip
    for C in (10_000, 30_000, 100_000):
        result.append(
            Case(
                "pointwise", "linear cross-entropy", f"N1024 D256 C{C}", BOTH,
                partial(cross_entropy, 1024, 256, C), flops=6.0 * 1024 * 256 * C,
                sweep="vocabulary", x=C, quick=False,
            )
        )  # fmt: skip
    for name, make in (
        ("DPFP-3", partial(dpfp, 1, 3, BOTH)),
        ("dropout", partial(dropout, (2, 3, 4), BOTH)),
        ("linear cross-entropy", partial(cross_entropy, 5, 4, 9)),
    ):
        told = {"quick": False, "full": False, "tiny": True}
        result.append(Case("pointwise", name, "tiny", BOTH, make, **told))  # type: ignore[arg-type]
    ops = {"dropout": "dropout", "linear cross-entropy": "linear_cross_entropy"}
    return [case for case in result if ops.get(case.name, "delta_rule") in OPS]
