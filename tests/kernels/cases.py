"""Inputs for the ops, and everything a call returns and sends back."""

from __future__ import annotations

import torch
from attention_cases import make
from torch import Tensor

from workbench import kernels
from workbench.kernels.build import BUILT_OPS
from workbench.kernels.dispatch import OPS, Op

NAMES = sorted(BUILT_OPS)
ARGUMENTS = {
    "delta_rule": ["q", "k", "v", "beta", "state"],
    "sum_rule": ["q", "k", "v", "state"],
    "forget_mult": ["f", "z", "state"],
    "fo_pool": ["gates", "state"],
}


def usable() -> list[tuple[str, str]]:
    """Every op that `inputs` knows, with every backend that can run tensors on this CPU."""
    rows = (row for row in kernels.explain() if row.op in ARGUMENTS)
    on_gpu = {(op.name, b.name) for op in OPS.values() for b in op.backends if b.device == "cuda"}
    found = [(row.op, row.backend) for row in rows if not row.why_not]
    return [case for case in found if case not in on_gpu]


def inputs(
    op: str, B: int = 2, T: int = 5, H: int = 2, F: int = 6, V: int = 3, seed: int = 0
) -> list[Tensor]:
    """Random float64 arguments of an op: keys of norm 1, strengths in (0, 1), a state not zero.

    The units of `forget_mult` and `fo_pool` are H * V.
    """
    if op == "attention":
        return list(make(N=3))  # type: ignore[arg-type]  # its own tests are in test_attention_op.py
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if op == "fo_pool":
        return [randn(B, T, 3 * H * V), randn(B, H * V)]
    if op == "forget_mult":
        share = torch.rand(B, T, H * V, generator=generator, dtype=torch.float64)
        return [share, randn(B, T, H * V), randn(B, H * V)]
    q, k = randn(B, T, H, F), torch.nn.functional.normalize(randn(B, T, H, F), dim=-1)
    v, state = randn(B, T, H, V), randn(B, H, F, V)
    beta = torch.rand(B, T, H, generator=generator, dtype=torch.float64)
    return [q, k, v, beta, state] if op == "delta_rule" else [q, k, v, state]


def scattered(x: Tensor) -> Tensor:
    """The same numbers with gaps between them and the axes in another order in memory."""
    axes = [*range(1, x.dim()), 0]
    wide = torch.full([*(x.shape[a] for a in axes), 2], float("nan"), dtype=x.dtype)
    back = [axes.index(a) for a in range(x.dim())]
    view = wide[..., 1].permute(back)
    view.copy_(x)
    return view


def outcome(op: Op, arguments: list[Tensor], backend: str, seed: int = 1) -> dict[str, Tensor]:
    """Output, last state and the gradient of every argument, under random weights on both."""
    generator = torch.Generator().manual_seed(seed)
    leaves = [x.detach().requires_grad_() for x in arguments]
    with kernels.use(backend):
        y, state = op(*leaves)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (y, state)]
    loss = (y * weights[0].to(y)).sum() + (state * weights[1].to(state)).sum()
    grads = torch.autograd.grad(loss, leaves)
    names = ARGUMENTS[op.name]
    return {"y": y, "last": state} | {f"d{n}": g for n, g in zip(names, grads, strict=True)}


def assert_outcomes_equal(got: dict[str, Tensor], want: dict[str, Tensor], relative: float) -> None:
    """Equal up to a part of the largest number of each tensor."""
    assert got.keys() == want.keys()
    for name, expected in want.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            got[name].detach().double(),
            expected.detach().double(),
            rtol=0,
            atol=relative * max(scale, 1e-30),
            msg=lambda text, name=name: f"{name}: {text}",
        )
