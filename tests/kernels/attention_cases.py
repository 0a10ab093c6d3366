"""Calls of the attention op: every option, odd sizes; and what they mean, number by number."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from workbench.kernels.attention import (
    Call,
    Persistent,
    Positions,
    SoftSpan,
    Window,
    reference,
)
from workbench.kernels.dropout import Dropout, kept

FLOATS = ("q", "k", "v", "p", "codes", "bias", "span", "persistent_k", "persistent_v", "extra")


def floats(call: Call) -> dict[str, Tensor]:
    """Its tensors that take gradients, by name."""
    positions, span, persistent = call.positions, call.span, call.persistent
    found: list[Tensor | None] = [*call[:3]]
    found += [*positions] if positions else [None] * 3
    found += [span.tokens if span else None]
    found += [*persistent] if persistent else [None] * 3
    return {name: x for name, x in zip(FLOATS, found, strict=True) if x is not None}


def rebuilt(call: Call, tensors: dict[str, Tensor]) -> Call:
    """The same call about other tensors."""
    t = tensors
    positions, span, persistent = call.positions, call.span, call.persistent
    if positions:
        positions = Positions(t["p"], t["codes"], t.get("bias"))
    if span:
        span = SoftSpan(t["span"], span.ramp)
    if persistent:
        persistent = Persistent(t["persistent_k"], t["persistent_v"], t.get("extra"))
    return Call(t["q"], t["k"], t["v"], call.window, positions, span, persistent, call.dropout)


SEES_ALL = (0, 10**6)
RAMP = 3


def make(
    T: int = 5,
    S: int = 9,
    sizes: tuple[int, int, int, int] = (2, 2, 4, 3),
    window: tuple[int, int] = SEES_ALL,
    *,
    rows: int = 0,
    shared: bool = False,
    bias: bool = False,
    spans: list[float] | str | None = None,
    N: int = 0,
    extra: bool = False,
    p_drop: float = 0.0,
    seed: int = 0,
) -> Call:
    """A call about random float64 numbers.

    Args:
        sizes: B, H, K, V.
        window: nearest and farthest distance.
        rows: of codes, 0: none. shared: one code for all heads.
        spans: tokens of each head, or "dynamic".
        N: persistent vectors. extra: they have biases.
    """
    g = torch.Generator().manual_seed(seed)
    B, H, K, V = sizes

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    size = 1 / math.sqrt(K)
    call: dict[str, Any] = {"window": Window(*window)}
    if rows:
        bias_RH = randn(rows, H) if bias else None
        codes = randn(rows, 1 if shared else H, K)
        call["positions"] = Positions(randn(B, T, H, K) * size, codes, bias_RH)
    if spans == "dynamic":
        reach = torch.rand(B, H, T, generator=g, dtype=torch.float64) * S
        call["span"] = SoftSpan(reach, RAMP)
    elif spans is not None:
        call["span"] = SoftSpan(torch.tensor(spans, dtype=torch.float64), RAMP)
    if N:
        call["persistent"] = Persistent(
            randn(H, N, K), randn(H, N, V), randn(H, N) if extra else None
        )
    if p_drop:
        call["dropout"] = Dropout(p_drop, torch.tensor(seed * 2**40 + 12345))
    return Call(randn(B, T, H, K) * size, randn(B, S, H, K), randn(B, S, H, V), **call)


CALLS = {
    "content": lambda: make(),
    "no memory": lambda: make(T=7, S=7),
    "one token": lambda: make(T=1, S=1),
    "before it": lambda: make(T=6, S=6, window=(1, 99)),
    "nothing": lambda: make(T=3, S=3, window=(3, 99)),
    "window": lambda: make(T=6, S=14, window=(1, 5)),
    "codes": lambda: make(rows=9),
    "few codes": lambda: make(rows=3),
    "many codes": lambda: make(rows=20, shared=True),
    "one code": lambda: make(rows=1, bias=True),
    "table": lambda: make(T=8, S=21, rows=6, bias=True),
    "span": lambda: make(T=6, S=20, spans=[4.3, 0.0], window=(1, 99)),
    "whole span": lambda: make(T=6, S=20, spans=[4.0, 9.0], rows=20, shared=True, window=(1, 99)),
    "long span": lambda: make(T=6, S=20, spans=[50.0, 2.5], window=(0, 13)),
    "dynamic": lambda: make(T=6, S=20, spans="dynamic", rows=15, window=(1, 99)),
    "persistent": lambda: make(N=5),
    "only persistent": lambda: make(T=3, S=3, window=(3, 99), N=4, extra=True),
    "all-attention": lambda: make(
        T=6, S=20, spans=[4.3, 9.0], rows=14, shared=True, window=(1, 13), N=5
    ),
    "dropout": lambda: make(T=6, S=20, p_drop=0.4, rows=20),
    "everything": lambda: make(
        T=6, S=19, rows=12, bias=True, spans="dynamic", N=5, extra=True, p_drop=0.3, window=(0, 15)
    ),
}


# several tiles of keys and groups of queries, widths of whole vectors and others, streams of tokens
LARGE = {
    "one query": lambda: make(1, 300, (2, 3, 32, 32), rows=300),
    "63": lambda: make(63, 190, (1, 2, 41, 41), rows=190, bias=True),
    "100": lambda: make(
        100, 411, (2, 2, 32, 32), (1, 310), rows=311, shared=True, spans=[7, 290.5]
    ),
    "dynamic 100": lambda: make(
        100,
        400,
        (1, 2, 16, 48),
        (1, 300),
        rows=301,
        shared=True,
        spans="dynamic",
        N=150,
        p_drop=0.2,
    ),
    "none of the first": lambda: make(150, 150, (1, 2, 64, 8), (70, 149), rows=100),
    "4097": lambda: make(4097, 4097, (1, 1, 4, 4), (0, 80), rows=50, spans=[30.0]),
}


def by_hand(call: Call) -> Tensor:
    """The op's meaning, one query and one key at a time."""
    q, k, v = call.q_BTHK, call.k_BSHK, call.v_BSHV
    (B, T, H, _), S = q.shape, k.shape[1]
    positions, span, persistent, dropout = call[4:]
    N = persistent.key_HNK.shape[1] if persistent else 0
    keep = kept(dropout, torch.Size((B, H, T)), S + N) if dropout else None
    y = v.new_zeros(B, T, H, v.shape[3])
    for b, t, h in ((b, t, h) for b in range(B) for t in range(T) for h in range(H)):
        terms = []  # exp of the score, soft mask, value, column
        for s in range(S):
            d = S - T + t - s
            if not call.window.nearest <= d <= call.window.farthest:
                continue
            score, mask = q[b, t, h] @ k[b, s, h], 1.0
            if positions:
                row = min(d, len(positions.key_RHK) - 1)
                code = positions.key_RHK[row, 0 if positions.key_RHK.shape[1] == 1 else h]
                score = score + positions.query_BTHK[b, t, h] @ code
                if positions.bias_RH is not None:
                    score = score + positions.bias_RH[row, h]
            if span:
                z = span.tokens[h] if span.tokens.dim() == 1 else span.tokens[b, h, t]
                mask = min(max((span.ramp + float(z) + 1 - d) / span.ramp, 0.0), 1.0)
            terms.append((math.exp(score), mask, v[b, s, h], s))
        if persistent:
            for n in range(N):
                score = q[b, t, h] @ persistent.key_HNK[h, n]
                if persistent.bias_HN is not None:
                    score = score + persistent.bias_HN[h, n]
                terms.append((math.exp(score), 1.0, persistent.value_HNV[h, n], S + n))
        total = sum(e for e, *_ in terms)
        for e, mask, value, column in terms:
            weight = e / total * mask
            if span:
                weight /= sum(e / total * m for e, m, *_ in terms) + 1e-8
            if dropout and keep is not None:
                weight *= float(keep[b, h, t, column]) / (1 - dropout.p_drop)
            y[b, t, h] += weight * value
    return y


def outcome(op: Any, call: Call, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """What is read, and the gradient of every float tensor, under random weights."""
    leaves = {n: x.detach().to(dtype).requires_grad_() for n, x in floats(call).items()}
    y = op(*rebuilt(call, leaves))
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(y.shape, generator=g, dtype=torch.float64).to(dtype)
    grads = torch.autograd.grad((y * weight).sum(), list(leaves.values()), allow_unused=True)
    zero = {n: torch.zeros_like(x) for n, x in leaves.items()}
    return {"y": y.detach()} | {
        f"d{n}": zero[n] if x is None else x for n, x in zip(leaves, grads, strict=True)
    }


def expected(call: Call) -> dict[str, Tensor]:
    """The same, of the reference in float64."""
    return outcome(reference, call)
