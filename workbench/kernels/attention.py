"""Attention by content and by distance, over a window of the past, with learned spans.

Paper: arXiv:1901.02860 section 3.3 (scores by distance); arXiv:1905.07799 equations 3 to 5 (soft
span mask); arXiv:1907.01470 section 3 (persistent vectors); arXiv:2205.14135 (tiles).
Shapes: B batch, T segment, S memory + segment, H heads, K key width, V value width, N persistent,
R rows of codes. The distance of key j from query i is `S - T + i - j`: 0 is its own token.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.kernels.checks import cpp_reasons
from workbench.kernels.dispatch import LIBRARY, Backend, Op, refuse_second_derivative
from workbench.kernels.dropout import Dropout, check_dropout, kept

RENORMALISED = 1e-8
"""is added to the mass that a soft mask leaves before it divides, as in the adaptive-span code"""


class Window(NamedTuple):
    """The distances that a query sees, in tokens, both ends included."""

    nearest: int
    """0: its own token"""
    farthest: int
    """S - 1 and beyond: no bound"""


class Positions(NamedTuple):
    """Scores by distance d: `query . key_RHK[d] + bias_RH[d]`."""

    query_BTHK: Tensor
    """already scaled, like the content queries"""
    key_RHK: Tensor
    """(R, H, K), or (R, 1, K) for all heads; distances of R and more share the last row"""
    bias_RH: Tensor | None = None


class SoftSpan(NamedTuple):
    """The soft mask `m(d) = clamp((ramp + 1 + tokens - d) / ramp, 0, 1)` on the softmax weights."""

    tokens: Tensor
    """(H,) or (B, H, T), the span in tokens; may be float32 where all else is of half its width"""
    ramp: int


class Persistent(NamedTuple):
    """Keys and values that every query sees, in the same softmax, never masked."""

    key_HNK: Tensor
    value_HNV: Tensor
    bias_HN: Tensor | None = None
    """is added to their scores"""


class Call(NamedTuple):
    """The arguments of the op; see `reference`."""

    q_BTHK: Tensor
    k_BSHK: Tensor
    v_BSHV: Tensor
    window: Window
    positions: Positions | None = None
    span: SoftSpan | None = None
    persistent: Persistent | None = None
    dropout: Dropout | None = None


class Weights(NamedTuple):
    """What each query takes, before dropout."""

    keys_BHTS: Tensor
    persistent_BHTN: Tensor | None
    mass_BHT1: Tensor | None
    """what the soft mask left, is divided by; None without one"""


def reference(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    v_BSHV: Tensor,
    window: Window,
    positions: Positions | None = None,
    span: SoftSpan | None = None,
    persistent: Persistent | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """`softmax(q . k + by distance)` over the window and persistent keys, masked softly, read out.

    With a span the weights are multiplied by its mask and divided by what is left + 1e-8. A query
    that sees no key reads zeros.

    Args:
        q_BTHK: content queries of the last T of S positions, already scaled.
        k_BSHK: keys, oldest first.
        v_BSHV: values.
        window: the distances that are seen.
        positions: scores by distance, added to those by content.
        span: soft mask by distance, for each head or for each head and query. Its gradient includes
            the first distance where the mask is exactly 0. Fused backends pass over the keys beyond
            that one: they weigh nothing but their share of the 1e-8.
        persistent: keys and values beside those of the text; their query is `q_BTHK`.
        dropout: of the weights, after all of that.

    Returns:
        What each query read, (B, T, H, V).
    """
    weights = weigh(q_BTHK, k_BSHK, window, positions, span, persistent)
    taken, rest = weights.keys_BHTS, weights.persistent_BHTN
    if dropout is not None:
        S, N = k_BSHK.shape[1], 0 if rest is None else rest.shape[-1]
        scale = 1 / (1 - dropout.p_drop)
        factor = kept(dropout, taken.shape[:3], S + N).to(taken.dtype) * scale
        taken = taken * factor[..., :S]
        rest = None if rest is None else rest * factor[..., S:]
    y_BTHV = torch.einsum("bhts,bshv->bthv", taken, v_BSHV)
    if rest is not None and persistent is not None:
        y_BTHV = y_BTHV + torch.einsum("bhtn,hnv->bthv", rest, persistent.value_HNV)
    return y_BTHV if weights.mass_BHT1 is None else y_BTHV / weights.mass_BHT1.transpose(1, 2)


def weigh(
    q_BTHK: Tensor,
    k_BSHK: Tensor,
    window: Window,
    positions: Positions | None = None,
    span: SoftSpan | None = None,
    persistent: Persistent | None = None,
) -> Weights:
    """The weights of `reference`: softmax, times the soft mask, not yet divided by the mass."""
    T, S = q_BTHK.shape[1], k_BSHK.shape[1]
    distance_TS = distances(T, S, q_BTHK.device)
    hidden_TS = (distance_TS < window.nearest) | (distance_TS > window.farthest)
    logits_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK)
    if positions is not None:
        logits_BHTS = logits_BHTS + _by_distance(positions, S)
    # the most negative number and not -inf: a query without any key gets zeros, not NaN
    logits = logits_BHTS.masked_fill(hidden_TS, torch.finfo(logits_BHTS.dtype).min)
    if persistent is not None:
        extra_BHTN = torch.einsum("bthk,hnk->bhtn", q_BTHK, persistent.key_HNK)
        if persistent.bias_HN is not None:
            extra_BHTN = extra_BHTN + persistent.bias_HN[:, None]
        logits = torch.cat([logits, extra_BHTN], dim=-1)
    keys, rest = logits.softmax(-1).tensor_split([S], dim=-1)
    if window.nearest > S - T or window.farthest < window.nearest:
        keys = keys.masked_fill(hidden_TS, 0.0)  # the first queries see nothing
    if span is not None:
        keys = keys * soft_mask(span, distance_TS).to(keys.dtype)
    persistent_BHTN = None if persistent is None else rest
    if span is None:
        return Weights(keys, persistent_BHTN, None)
    mass = keys.sum(-1, keepdim=True)
    mass = mass if persistent_BHTN is None else mass + rest.sum(-1, keepdim=True)
    return Weights(keys, persistent_BHTN, mass + RENORMALISED)


def distances(T: int, S: int, device: torch.device) -> Tensor:
    """(T, S) distance of every key from every query."""
    query_T = torch.arange(S - T, S, device=device)
    return query_T[:, None] - torch.arange(S, device=device)


def soft_mask(span: SoftSpan, distance: Tensor) -> Tensor:
    """The span's mask: (H, ...) or (B, H, T, ...) weights in [0, 1] for integer distances."""
    tokens = span.tokens[..., None, None] if span.tokens.dim() == 1 else span.tokens[..., None]
    return ((span.ramp + 1 + tokens - distance) / span.ramp).clamp(0, 1)


def align_distances(scores_BHTS: Tensor) -> Tensor:
    """Turn scores by distance into scores by key.

    Args:
        scores_BHTS: column c holds distance `S - 1 - c`, for every query.

    Returns:
        the same numbers with key j in column j. Entries for keys after the query hold other
        queries' numbers: the causal mask must hide them. (arXiv:1901.02860 appendix B)
    """
    B, H, T, S = scores_BHTS.shape
    padded = F.pad(scores_BHTS, (1, 0)).view(B, H, S + 1, T)
    return padded[:, :, 1:].reshape(B, H, T, S)


def _by_distance(positions: Positions, S: int) -> Tensor:
    """(B, H, T, S) scores of keys by their distance."""
    R, H = positions.key_RHK.shape[0], positions.query_BTHK.shape[2]
    rows_S = torch.arange(S - 1, -1, -1, device=positions.key_RHK.device).clamp(max=R - 1)
    key_SHK = positions.key_RHK[rows_S].expand(-1, H, -1)
    scores_BHTS = torch.einsum("bthk,shk->bhts", positions.query_BTHK, key_SHK)
    if positions.bias_RH is not None:
        scores_BHTS = scores_BHTS + positions.bias_RH[rows_S].T[:, None]
    return align_distances(scores_BHTS)


LIBRARY.define(
    "attention_forward(Tensor q, Tensor k, Tensor v, Tensor? p, Tensor? r, Tensor? bias,"
    " Tensor? span, Tensor? persistent_k, Tensor? persistent_v, Tensor? persistent_bias,"
    " Tensor? seed, int nearest, int farthest, int ramp, float p_drop, bool banded)"
    " -> (Tensor, Tensor)"
)
LIBRARY.define(
    "attention_backward(Tensor gy, Tensor y, Tensor log_norm, Tensor q, Tensor k, Tensor v,"
    " Tensor? p, Tensor? r, Tensor? bias, Tensor? span, Tensor? persistent_k, Tensor? persistent_v,"
    " Tensor? persistent_bias, Tensor? seed, int nearest, int farthest, int ramp, float p_drop,"
    " bool banded) -> Tensor[]"
)

FEW_KEYS = 128  # one tile
N_TENSORS = 11
N_FLOATS = 10  # all but the seed


@torch.library.register_fake("workbench::attention_forward")
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    return v.new_empty((B, T, H, v.shape[-1])), q.new_empty((B, H, T), dtype=norm_type(q.dtype))


@torch.library.register_fake("workbench::attention_backward")
def _(gy: Tensor, y: Tensor, log_norm: Tensor, *inputs: Any) -> list[Tensor]:
    floats = inputs[:N_FLOATS]
    return [gy.new_empty((0,)) if x is None else x.new_empty(x.shape) for x in floats]


def norm_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which backends keep the logarithm of each query's normaliser."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:N_TENSORS])
    ctx.plain = inputs[N_TENSORS:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    y, log_norm, *tensors = ctx.saved_tensors
    if gy is None:
        return (None,) * (N_TENSORS + len(ctx.plain))
    grads = torch.ops.workbench.attention_backward(gy, y, log_norm, *tensors, *ctx.plain)
    known = [None if x is None else g for x, g in zip(tensors, grads, strict=False)]
    return (*known, None, *(None for _ in ctx.plain))


torch.library.register_autograd("workbench::attention_forward", _backward, setup_context=_remember)
refuse_second_derivative("attention")


def _check(*arguments: Any) -> None:
    q_BTHK, k_BSHK, v_BSHV, window, positions, span, persistent, dropout = Call(*arguments)
    if q_BTHK.dim() != 4 or k_BSHK.dim() != 4 or v_BSHV.dim() != 4:
        raise ValueError(
            f"attention: got queries of shape {tuple(q_BTHK.shape)}, keys {tuple(k_BSHK.shape)} "
            f"and values {tuple(v_BSHV.shape)}, expected (batch, time, heads, width) for all"
        )
    B, T, H, K = q_BTHK.shape
    S, V = k_BSHK.shape[1], v_BSHV.shape[3]
    if not 1 <= T <= S:
        raise ValueError(
            f"attention: got {T} queries and {S} keys, expected at least one query, and a key for "
            "each: the queries are the last of the keys' positions"
        )
    if window.nearest < 0:
        raise ValueError(f"attention: got a nearest distance of {window.nearest}, expected >= 0")
    parts: list[tuple[str, Tensor, tuple[int, ...]]]
    parts = [("keys", k_BSHK, (B, S, H, K)), ("values", v_BSHV, (B, S, H, V))]
    if positions is not None:
        R, heads = positions.key_RHK.shape[0], 1 if positions.key_RHK.shape[1] == 1 else H
        parts.append(("position queries", positions.query_BTHK, (B, T, H, K)))
        parts.append(("codes", positions.key_RHK, (max(R, 1), heads, K)))
        if positions.bias_RH is not None:
            parts.append(("biases of distances", positions.bias_RH, (R, H)))
    if span is not None:
        shape = (H,) if span.tokens.dim() == 1 else (B, H, T)
        parts.append(("spans", span.tokens, shape))
        if span.ramp < 1:
            raise ValueError(f"attention: got a ramp of {span.ramp} tokens, expected at least 1")
    if persistent is not None:
        N = persistent.key_HNK.shape[1]
        parts.append(("persistent keys", persistent.key_HNK, (H, N, K)))
        parts.append(("persistent values", persistent.value_HNV, (H, N, V)))
        if persistent.bias_HN is not None:
            parts.append(("biases of persistent keys", persistent.bias_HN, (H, N)))
    for name, tensor, wanted in parts:
        check_part(name, tensor, wanted, q_BTHK)
    if dropout is not None:
        check_dropout("attention", dropout, q_BTHK)


def check_part(name: str, tensor: Tensor, wanted: tuple[int, ...], q_BTHK: Tensor) -> None:
    """Refuse a tensor whose shape, type or device does not fit the queries."""
    if tensor.shape != wanted:
        raise ValueError(
            f"attention: got {name} of shape {tuple(tensor.shape)}, expected {wanted} "
            f"beside queries of shape {tuple(q_BTHK.shape)}"
        )
    # half the digits would round a long span to whole tens of tokens
    wide = name == "spans" and tensor.dtype == torch.float32 and q_BTHK.dtype.itemsize == 2
    if not (tensor.dtype == q_BTHK.dtype or wide) or tensor.device != q_BTHK.device:
        raise ValueError(
            f"attention: got {name} of type {tensor.dtype} on {tensor.device}, expected "
            f"{q_BTHK.dtype} on {q_BTHK.device} like the queries. Convert before the call"
        )


def flat(call: Call) -> tuple[Any, ...]:
    """A call's arguments as those of `torch.ops.workbench.attention_forward`, but for `banded`."""
    q_BTHK, k_BSHK, v_BSHV, window, positions, span, persistent, dropout = call
    p, r, bias = positions or (None, None, None)
    persistent_k, persistent_v, persistent_bias = persistent or (None, None, None)
    tokens, ramp = span or (None, 1)
    p_drop, seed = dropout or (0.0, None)
    tensors = (p, r, bias, tokens, persistent_k, persistent_v, persistent_bias, seed)
    return (q_BTHK, k_BSHK, v_BSHV, *tensors, *window, ramp, p_drop)


def _cpp(*arguments: Any) -> Tensor:
    call = Call(*arguments)
    # every key in float64, and where there are few: there the meaning is the reference's exactly
    banded = call.q_BTHK.dtype != torch.float64 and call.k_BSHK.shape[1] > FEW_KEYS
    y_BTHV, _ = torch.ops.workbench.attention_forward(*flat(call), banded)
    return y_BTHV


attention = Op(
    "attention",
    reference,
    [Backend("cpp", _cpp, partial(cpp_reasons, "attention"), device="cpu")],
    check=_check,
)
