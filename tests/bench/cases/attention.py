"""Attention by content and distance: spans, relative positions, plain; growth with the span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.case import BOTH, FWD, Case, Ways, Work, on, with_gradients
from workbench.kernels.attention import Persistent, Positions, SoftSpan, Window
from workbench.kernels.dispatch import OPS

FULL, SDPA, FLEX = "full length, mask", "SDPA, additive mask", "flex attention, compiled"
RAMP = 32
LEAST = 1e-9
"""of a soft mask, where its logarithm is added to scores"""


class Size(NamedTuple):
    """T queries of H heads see L tokens back; S keys."""

    T: int
    S: int
    H: int = 8
    K: int = 32
    B: int = 8

    def __str__(self) -> str:
        return f"B{self.B} H{self.H} T{self.T} S{self.S} K{self.K}"


class Inputs(NamedTuple):
    """What a call of the op reads; queries are scaled already."""

    q_BTHK: Tensor
    k_BSHK: Tensor
    v_BSHK: Tensor
    code_RHK: Tensor
    span_H: Tensor
    seed_BTHK: Tensor


def inputs(s: Size, spans: Sequence[float], shared_codes: bool, device: torch.device) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    q = (randn(s.B, s.T, s.H, s.K) / math.sqrt(s.K)).requires_grad_()
    k, v = (randn(s.B, s.S, s.H, s.K).requires_grad_() for _ in range(2))
    # rows of distances 0 to S - T, or of all distances
    rows = s.S - s.T + 1 if shared_codes else s.S
    code = randn(rows, 1 if shared_codes else s.H, s.K).requires_grad_()
    span = torch.tensor(list(spans), device=device, requires_grad=True)
    return Inputs(q, k, v, code, span, randn(s.B, s.T, s.H, s.K))


def ours(call: Callable[..., Tensor], arguments: tuple[object, ...], make: Work) -> dict[str, Work]:
    """Every backend that can, the reference where there is none."""
    rows = OPS["attention"].explain(*arguments)
    names = [row.backend for row in rows if not row.why_not and row.backend != "reference"]
    return {name: on(name, make) for name in names or ["reference"]}


def with_spans(s: Size, spans: Sequence[float], way: str, device: torch.device) -> Ways:
    """Adaptive-span attention: codes by distance shared by heads, a soft mask for each head."""
    x, L = inputs(s, spans, True, device), s.S - s.T
    window, positions = Window(1, L), Positions(x.q_BTHK, x.code_RHK)
    arguments = (x.q_BTHK, x.k_BSHK, x.v_BSHK, window, positions, SoftSpan(x.span_H, RAMP))
    wanted = [x.q_BTHK, x.k_BSHK, x.v_BSHK, x.code_RHK, x.span_H]
    op = OPS["attention"]
    work = with_gradients(lambda: op(*arguments), wanted, way, [x.seed_BTHK])
    full = with_gradients(lambda: full_length(x), wanted, way, [x.seed_BTHK])
    sdpa = with_gradients(lambda: sdpa_spans(x), wanted[:-1], way, [x.seed_BTHK])
    ways = Ways(
        ours(op, arguments, work), {FULL: full, SDPA: sdpa}, partial=frozenset({SDPA, FLEX})
    )
    # for want of a backward pass on CPUs
    if L == 1024 and (way == FWD or device.type == "cuda"):
        try:
            ways.peers[FLEX] = with_gradients(flex_spans(x), wanted[:-1], way, [x.seed_BTHK])
        except Exception as error:
            # no compiler, or no such kernel
            ways.missing[FLEX] = f"does not compile here: {type(error).__name__}"
    return ways


def heads_first(x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """(B, H, T or S, K) views."""
    return x.q_BTHK.transpose(1, 2), x.k_BSHK.transpose(1, 2), x.v_BSHK.transpose(1, 2)


def full_length(x: Inputs) -> Tensor:
    """The original's way (arXiv:1905.07799): every head looks at the same L keys of each query, of
    which the softmax is multiplied by the mask; what is left is divided by its sum."""
    q, k, v = heads_first(x)
    B, H, T, _ = q.shape
    S = k.shape[2]
    L = S - T
    by_key = q @ k.mT
    # row i of the scores, shifted to the left by i: its L keys, the farthest first
    rows = F.pad(by_key.reshape(B, H, T * S), (0, T)).view(B, H, T, S + 1)[..., :L]
    # code d belongs to distance d; distance L stands first, distance 1 last
    rows = rows + q @ x.code_RHK[1 : L + 1, 0].flip(0).T
    distance_L = torch.arange(L, 0, -1, device=q.device)
    mask_HL = ((RAMP + 1 + x.span_H[:, None] - distance_L) / RAMP).clamp(0, 1)
    weights = rows.softmax(-1) * mask_HL[:, None]
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
    # and back: row i begins at key i
    skewed = F.pad(weights, (0, T + 1)).view(B, H, T * (S + 1))[..., : T * S]
    return (skewed.view(B, H, T, S) @ v).transpose(1, 2)


def by_distance(query: Tensor, code_HRK: Tensor, S: int) -> Tensor:
    """(B, H, T, S) scores of keys: row r of the codes is distance r, later keys get garbage."""
    B, H, T, _ = query.shape
    scores = query @ code_HRK.flip(1).mT
    scores = F.pad(scores, (S - scores.shape[-1], 0))
    return F.pad(scores, (1, 0)).view(B, H, S + 1, T)[:, :, 1:].reshape(B, H, T, S)


def distances(T: int, S: int, device: torch.device) -> Tensor:
    return torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)


def sdpa_spans(x: Inputs) -> Tensor:
    """The logarithm of the mask, added to the scores; no gradient reaches the spans."""
    q, k, v = heads_first(x)
    T, S = q.shape[2], k.shape[2]
    L, distance_TS = S - T, distances(T, S, q.device)
    soft_HTS = (RAMP + 1 + x.span_H.detach()[:, None, None] - distance_TS) / RAMP
    added = soft_HTS.clamp(LEAST, 1).log()
    added = added.masked_fill((distance_TS < 1) | (distance_TS > L), -torch.inf)
    added = by_distance(q, x.code_RHK.transpose(0, 1), S) + added
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=1.0).transpose(1, 2)


def flex_spans(x: Inputs) -> Callable[[], Tensor]:
    """Flex attention: scores by distance are looked up, blocks beyond the window left out; no
    gradient reaches the spans."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    T, S = x.q_BTHK.shape[1], x.k_BSHK.shape[1]
    L, span_H, code = S - T, x.span_H.detach(), x.code_RHK[:, 0]
    q, k, v = heads_first(x)
    if code.device.type == "cpu":
        # it refuses tensors that ask for a gradient
        q, k, v, code = (y.detach() for y in (q, k, v, code))

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j < i + L) & (j >= i)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ code.T

        def change(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            distance = (L + i - j).clamp(0, L)
            soft = ((RAMP + 1 + span_H[h] - distance) / RAMP).clamp(LEAST, 1)
            return score + scores[b, h, i, distance] + soft.log()

        return flex_attention(q, k, v, score_mod=change, block_mask=blocks, scale=1.0)

    blocks = create_block_mask(seen, None, None, T, S, device=str(code.device))
    compiled = torch.compile(attend, dynamic=False)
    compiled(q, k, v)
    return lambda: compiled(q, k, v).transpose(1, 2)


def relative(s: Size, way: str, device: torch.device) -> Ways:
    """Transformer-XL's attention: codes for each head, queries of their own for them."""
    x = inputs(s, s.H * [0.0], False, device)
    position_BTHK = (x.q_BTHK.detach() + 0.1).requires_grad_()
    arguments = (x.q_BTHK, x.k_BSHK, x.v_BSHK, Window(0, s.S), Positions(position_BTHK, x.code_RHK))
    wanted = [x.q_BTHK, x.k_BSHK, x.v_BSHK, position_BTHK, x.code_RHK]
    future_TS = distances(s.T, s.S, device) < 0

    def scores() -> Tensor:
        codes_HRK = x.code_RHK.transpose(0, 1)
        return by_distance(position_BTHK.transpose(1, 2), codes_HRK, s.S)

    def plainly() -> Tensor:
        q, k, v = heads_first(x)
        logits = (q @ k.mT + scores()).masked_fill(future_TS, -torch.inf)
        return (logits.softmax(-1) @ v).transpose(1, 2)

    def sdpa() -> Tensor:
        q, k, v = heads_first(x)
        mask = scores().masked_fill(future_TS, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0).transpose(1, 2)

    op = OPS["attention"]
    work, *peers = (
        with_gradients(f, wanted, way, [x.seed_BTHK])
        for f in (lambda: op(*arguments), plainly, sdpa)
    )
    return Ways(ours(op, arguments, work), dict(zip(("shifted copies", SDPA), peers, strict=True)))


def causal(s: Size, way: str, device: torch.device) -> Ways:
    """Softmax attention without positions, as PyTorch has it built in."""
    x = inputs(s, s.H * [0.0], True, device)
    arguments = (x.q_BTHK, x.k_BSHK, x.v_BSHK, Window(0, s.S))
    wanted = [x.q_BTHK, x.k_BSHK, x.v_BSHK]
    op = OPS["attention"]

    def sdpa() -> Tensor:
        q, k, v = heads_first(x)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0).transpose(1, 2)

    work, peer = (
        with_gradients(f, wanted, way, [x.seed_BTHK]) for f in (lambda: op(*arguments), sdpa)
    )
    return Ways(ours(op, arguments, work), {"SDPA, causal": peer})


def persistent(s: Size, N: int, way: str, device: torch.device) -> Ways:
    """All-attention: persistent vectors in the softmax of a span attention (arXiv:1907.01470)."""
    x, L = inputs(s, s.H * [64.0], True, device), s.S - s.T
    key, value = (torch.randn(s.H, N, s.K, device=device, requires_grad=True) for _ in range(2))
    positions, span = Positions(x.q_BTHK, x.code_RHK), SoftSpan(x.span_H, RAMP)
    added = Persistent(key, value)
    arguments = (x.q_BTHK, x.k_BSHK, x.v_BSHK, Window(1, L), positions, span, added)
    wanted = [x.q_BTHK, x.k_BSHK, x.v_BSHK, x.code_RHK, x.span_H, key, value]

    def plainly() -> Tensor:
        q, k, v = heads_first(x)
        distance_TS = distances(s.T, s.S, device)
        logits = q @ k.mT + by_distance(q, x.code_RHK.transpose(0, 1), s.S)
        logits = logits.masked_fill((distance_TS < 1) | (distance_TS > L), -torch.inf)
        weights = torch.cat([logits, q @ key.mT], dim=-1).softmax(-1)
        soft = ((RAMP + 1 + x.span_H[:, None, None] - distance_TS) / RAMP).clamp(0, 1)
        seen, rest = weights[..., : s.S] * soft, weights[..., s.S :]
        mass = seen.sum(-1, keepdim=True) + rest.sum(-1, keepdim=True) + 1e-8
        return ((seen @ v + rest @ value) / mass).transpose(1, 2)

    op = OPS["attention"]
    work, peer = (
        with_gradients(f, wanted, way, [x.seed_BTHK]) for f in (lambda: op(*arguments), plainly)
    )
    return Ways(ours(op, arguments, work), {FULL: peer})


SHORT = [16.0, 24.0, 32.0, 40.0, 48.0, 56.0, 64.0]


def spans_case(L: int, spans: list[float], way: str, name: str, **told: object) -> Case:
    # content, codes and values: three products forward, twice as many backward
    seen = sum(min(L, span + RAMP) for span in spans)
    flops = (1 if way == FWD else 3) * 3 * 2.0 * 8 * 128 * 32 * seen
    make = partial(with_spans, Size(128, 128 + L), spans, way)
    return Case("attention", name, str(Size(128, 128 + L)), way, make, flops=flops, **told)  # type: ignore[arg-type]


def cases() -> list[Case]:
    result = []
    for L in (64, 256, 1024, 4096):
        for way in (FWD, BOTH):
            told = {"sweep": "span", "x": L, "quick": L == 256 and way == BOTH}
            spans = 8 * [L - RAMP - 1.0]
            result.append(spans_case(L, spans, way, "span attention", **told))
    for way in (FWD, BOTH):
        targets = {FULL: 4.0, SDPA: 4.0} if way == BOTH else {}
        spans = [*SHORT, 4096 - RAMP - 1.0]
        result.append(
            spans_case(
                4096,
                spans,
                way,
                "span attention, one long head",
                targets=targets,
                quick=way == BOTH,
            )
        )
    for T, S in ((128, 256), (128, 1152), (80, 2180)):
        for way in (FWD,) if T == 80 else (FWD, BOTH):
            size = Size(T, S) if T == 128 else Size(T, S, B=1)
            make = partial(relative, size, way)
            flops = (1 if way == FWD else 3) * 3 * 2.0 * size.B * 8 * 32 * T * (S - T / 2)
            result.append(
                Case(
                    "attention", "relative attention", str(size), way, make, flops=flops,
                    quick=S == 256 and way == BOTH,
                )
            )  # fmt: skip
    for T in (256, 1024):
        size = Size(T, T)
        flops = 3 * 2 * 2.0 * 8 * 8 * 32 * T * T / 2
        make = partial(causal, size, BOTH)
        result.append(
            Case("attention", "causal attention", str(size), BOTH, make, flops=flops, quick=False)
        )
    size = Size(128, 384)
    make = partial(persistent, size, 256, BOTH)
    name = "span attention, 256 persistent vectors"
    result.append(Case("attention", name, str(size), BOTH, make, quick=False))
    return result + tiny_cases()


def tiny_cases() -> list[Case]:
    """Every kind of case, at no cost."""
    small, told = Size(5, 45, 2, 4, 2), {"quick": False, "full": False, "tiny": True}
    makes = {
        "span attention": partial(with_spans, small, [0.0, 3.5]),
        "relative attention": partial(relative, small),
        "causal attention": partial(causal, Size(7, 7, 2, 4, 2)),
        "span attention, 3 persistent vectors": partial(persistent, small, 3),
    }
    return [
        Case("attention", name, "tiny", way, partial(make, way), **told)  # type: ignore[arg-type]
        for name, make in makes.items()
        for way in (FWD, BOTH)
    ]
