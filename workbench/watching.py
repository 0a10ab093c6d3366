"""What a model does while it writes: how likely each token was, and what of the past it uses.

Every number is read from the carry, whose tensors say by their letters what they are, from the
mixers' own readings, and from the taps of `inspect`; no family of models is asked for by name.
Papers: arXiv:1905.07799 (spans), arXiv:2102.11174 section 4 (write strength, capacity).
Shapes: B rows, H heads, T tokens of the last pass, S memory + segment, C classes, X matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from workbench import carry as carries
from workbench.carry import State
from workbench.generation import Generation, Moment
from workbench.inspect import Taps
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.attention import AttentionConfig
from workbench.models.mixers.fast_weight import FastWeightConfig
from workbench.probe import FAST_WEIGHTS

LOOKS_BACK = "attention looks back (tokens)"
SPAN = "span of this token (tokens)"
FILLED = "memory filled (tokens)"
STRENGTH = "write strength"
RANK = "effective rank of W"
NORM = "norm of W"
STATE = "norm of the state"
GAUGES = (LOOKS_BACK, SPAN, FILLED, STRENGTH, RANK, NORM, STATE)
"""in the order in which they are drawn"""

RANK_EVERY = 8
"""tokens from one effective rank to the next: singular values are what costs most here"""

Gauges = dict[str, dict[int, float]]
"""name -> layer, from 0 -> value, the mean over heads"""


class Written(NamedTuple):
    """One token that was drawn, and what was known when it was."""

    id: int
    position: int
    """tokens before it, of prompt and text"""
    nats: float
    """its cost under the model itself, as `score` gives it"""
    rank: int
    """1 where it was the likeliest"""
    alternatives: tuple[tuple[int, float], ...]
    """the likeliest ids and the nats of each, likeliest first"""
    carry_bytes: int
    """what the model keeps of the past"""
    full_bytes: int
    """keys and values of all tokens before it, as full attention of this width and depth keeps"""
    gauges: Gauges


def watch(
    generation: Generation,
    model: LanguageModel,
    *,
    before: int = 0,
    alternatives: int = 5,
    look: bool = True,
) -> Iterator[Written]:
    """Let one sample be written, and look on.

    Args:
        generation: of one sample.
        model: which writes.
        before: tokens of the text ahead of the generation's prompt, where it goes on from a `Past`.
        alternatives: how many of the likeliest tokens to keep at each.
        look: False leaves out what is read from inside the layers, which costs time.
    """
    seen: list[Written] = []
    taps = ("attention_probs", "fast_weight_inputs") if look else ()
    first = before + len(generation.prompt)

    def see(moment: Moment) -> None:
        at = first + len(seen)
        seen.append(_written(moment, model, at, alternatives, look and len(seen) % RANK_EVERY == 0))

    for _ in generation.observe(see, *taps):
        yield seen[-1]


def _written(
    moment: Moment, model: LanguageModel, position: int, alternatives: int, with_rank: bool
) -> Written:
    (token,), logp_C = moment.tokens, moment.logp_BC[0]
    best = logp_C.topk(min(alternatives, len(logp_C)))
    pairs = zip(best.indices.tolist(), (-best.values).tolist(), strict=True)
    return Written(
        token.id,
        position,
        token.nats,
        1 + int((logp_C > logp_C[token.id]).sum()),
        tuple(pairs),
        state_bytes(moment.state),
        full_bytes(model, position),
        gauges(model, moment.state, moment.taps, with_rank),
    )


def state_bytes(state: State | Tensor) -> int:
    """Bytes that are kept of the past: the carry, or the tokens of a window that is read again."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    return carries.nbytes(state)


def full_bytes(model: LanguageModel, tokens: int) -> int:
    """Bytes of a key and a value, each of the model's width, for each token in every layer."""
    wide = next(model.parameters()).element_size()
    return 2 * len(model.layers) * tokens * model.config.d_model * wide


def gauges(
    model: LanguageModel, state: State | Tensor, taps: Taps, with_rank: bool = True
) -> Gauges:
    """What can be said of each layer after the newest token was read.

    Args:
        model: which read it.
        state: the carry after it, of one row; where a window is read again, that says nothing.
        taps: of the pass, or {} without a look inside.
        with_rank: whether to compute effective ranks.
    """
    found: Gauges = {name: {} for name in GAUGES}
    mixers = [block.mixer for block in model.config.block_configs()]
    attending = [i for i, mixer in enumerate(mixers) if isinstance(mixer, AttentionConfig)]
    for layer, probs_BHTS in zip(attending, taps.get("attention_probs", ()), strict=False):
        found[LOOKS_BACK][layer] = mean_distance(probs_BHTS[0, :, -1])
    for layer, block in enumerate(model.layers):
        readings = block.mixer.readings()
        if "span_spread" in readings and taps:
            found[SPAN][layer] = float(readings["span"].mean())
    fast = [i for i, mixer in enumerate(mixers) if isinstance(mixer, FAST_WEIGHTS)]
    for layer, inputs in zip(fast, taps.get("fast_weight_inputs", ()), strict=False):
        if inputs.beta_BTH is not None:
            found[STRENGTH][layer] = float(inputs.beta_BTH[0, -1].mean())
    if not isinstance(state, Tensor):
        for layer, leaves in enumerate(state):
            for name, value in of_state(leaves, with_rank).items():
                found[name][layer] = value
    return {name: by_layer for name, by_layer in found.items() if by_layer}


def mean_distance(probs_HS: Tensor) -> float:
    """How far back the newest token looks: the mean over heads of each one's mean distance.

    Args:
        probs_HS: weights of its keys, oldest first and its own last; what persistent vectors take
            is left out.
    """
    distance_S = torch.arange(probs_HS.shape[-1] - 1, -1, -1, device=probs_HS.device)
    probs_HS = probs_HS.float()
    mass_H = probs_HS.sum(-1).clamp(min=1e-12)
    return float(((probs_HS * distance_S).sum(-1) / mass_H).mean())


def of_state(leaves: carries.State, with_rank: bool = True) -> dict[str, float]:
    """What one layer's state tells, by the letters of its tensors.

    M: past inputs, of which there are so many. Two letters after batch and heads: a matrix of fast
    weights; of several the first counts. Else a vector of units (P: past inputs of a window, which
    say nothing of their own).
    """
    told: dict[str, float] = {}
    vectors: list[Tensor] = []
    for name, leaf in zip(leaves._fields, leaves, strict=True):
        letters = name.rpartition("_")[2]
        if not isinstance(leaf, Tensor) or "P" in letters:
            continue
        if "M" in letters:
            told[FILLED] = float(leaf.shape[letters.index("M")])
        elif leaf.ndim >= 4 and NORM not in told:
            W_XFV = leaf[0].detach().flatten(0, -3).double()
            told[NORM] = float(torch.linalg.matrix_norm(W_XFV).mean())
            if with_rank:
                told[RANK] = float(effective_ranks(W_XFV).mean())
        elif leaf.ndim < 4:
            vectors.append(leaf[0].detach().flatten().double())
    if vectors and not told:
        told[STATE] = float(torch.cat(vectors).norm())
    return told


def effective_ranks(W_XFV: Tensor) -> Tensor:
    """(X,) `exp(entropy of the normalised singular values)` of each matrix (Roy and Vetterli 2007);
    0 for a matrix of zeros."""
    values_XR = torch.linalg.svdvals(W_XFV)
    total_X1 = values_XR.sum(-1, keepdim=True)
    share_XR = values_XR / total_X1.clamp(min=1e-300)
    entropy_X = -torch.special.xlogy(share_XR, share_XR).sum(-1)
    return torch.where(total_X1[:, 0] > 0, entropy_X.exp(), 0.0)


def ceilings(model: LanguageModel) -> dict[str, float]:
    """What a gauge cannot exceed: the capacity of W, of the layer with the smallest; the memory.

    Returns:
        gauge -> value, for those that have one.
    """
    found: dict[str, float] = {}
    for leaves in model.initial_carry(1):
        for name, leaf in zip(leaves._fields, leaves, strict=True):
            letters = name.rpartition("_")[2]
            if isinstance(leaf, Tensor) and leaf.ndim >= 4 and "M" not in letters:
                found[RANK] = min(found.get(RANK, float("inf")), *leaf.shape[-2:])
            elif name == "memory_len":
                found[FILLED] = max(found.get(FILLED, 0.0), float(leaf))
    return found


def promised(model: LanguageModel) -> dict[str, list[int]]:
    """Which gauges there will be, and of which layers, before anything is written."""
    found: dict[str, list[int]] = {name: [] for name in GAUGES}
    mixers = [block.mixer for block in model.config.block_configs()]
    for layer, (mixer, leaves) in enumerate(zip(mixers, model.initial_carry(1), strict=True)):
        for name in of_state(leaves):
            found[name].append(layer)
        if isinstance(mixer, AttentionConfig):
            found[LOOKS_BACK].append(layer)
        if isinstance(mixer, AttentionConfig) and mixer.span is not None and mixer.span.dynamic:
            found[SPAN].append(layer)
        # a fast-weight layer of the sum rule has no write strengths
        sums = isinstance(mixer, FastWeightConfig) and mixer.rule == "sum"
        if isinstance(mixer, FAST_WEIGHTS) and not sums:
            found[STRENGTH].append(layer)
    return {name: layers for name, layers in found.items() if layers}
