"""What learned spans allow, what attention makes of it, and what they save.

Papers: arXiv:1905.07799 sections 2.2 and 3 (spans, and their FLOPs and memory), arXiv:1907.01470
section 3 (persistent vectors). Arrays in, arrays out; nothing is drawn.
Shapes: T queries, H heads, Q quantiles, K head width, D model width, N persistent vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.distances import Floats, mass_by_distance, mean_distances, reaches
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.attention import Attention, AttentionConfig
from workbench.models.mixers.span import TRIM_STEP
from workbench.probe import AttentionView

FLOAT_BYTES = 4


class HeadsUse(NamedTuple):
    """Allowed and effective context of the heads of one layer, in tokens."""

    span_H: Floats | None
    """learned span, in the mean over tokens where it is dynamic; None where none is learned"""
    allowed_H: NDArray[np.int64]
    """the farthest distance that the mask lets through, of the farthest token where dynamic"""
    reach_HQ: NDArray[np.int64]
    """within which distance 50, 90 and 99 % of the attention to the text lie"""
    mean_H: Floats
    persistent_H: Floats | None
    """share of the attention that goes to persistent vectors; None where there are none"""


def heads_use(model: LanguageModel, seen: AttentionView) -> list[HeadsUse]:
    """Effective against allowed context, layer by layer of those that attend."""
    found = []
    spans, persistent = iter(seen.spans_LHT), iter(seen.persistent_LHT)
    for mixer, probs_HTS in zip(attention_mixers(model), seen.probs_LHTS, strict=True):
        config = mixer.config
        mass_HS = mass_by_distance(probs_HTS)
        span_HT = next(spans) if config.span else None
        farthest = probs_HTS.shape[2] - 1
        if config.span is None or span_HT is None:
            allowed_H = np.full(config.n_heads, min(farthest, config.limit or farthest))
        else:
            allowed_H = open_distances(span_HT, config.span.ramp, config.span.limit).max(1)
        found.append(
            HeadsUse(
                None if span_HT is None else span_HT.mean(1, dtype=np.float64),
                allowed_H,
                reaches(mass_HS),
                mean_distances(mass_HS),
                next(persistent).mean(1, dtype=np.float64) if config.persistent else None,
            )
        )
    return found


def attention_mixers(model: LanguageModel) -> list[Attention]:
    """The attention of each layer that has one, from below."""
    mixers = [block.mixer for block in model.layers]
    return [mixer for mixer in mixers if isinstance(mixer, Attention)]


def open_distances(spans: ArrayLike, ramp: int, limit: int) -> NDArray[np.int64]:
    """At how many distances 1, 2, ... a span's mask is above 0: `min(limit, ceil(z) + R)`."""
    return np.minimum(limit, np.ceil(np.asarray(spans, dtype=np.float64)).astype(int) + ramp)


class LayerCost(NamedTuple):
    """What attention costs in one layer, with all its keys and with those that spans leave.

    FLOPs are those of one token, a multiplication and an addition counted as two. For each head and
    each key that is seen there are three products of width K: with the key, with the code of its
    distance (none where positions are not relative), and of the weight with the value. So a token
    costs `2 * K * (products * keys + 2 * N)` in each head, N being its persistent vectors, which
    have no code. Projections, which spans leave as they are, are not in it, nor what the softmax
    costs; sinusoids are projected once for a segment and not for each token.

    Bytes are those that one row of text carries to the next segment: the inputs of width D in
    training, or keys and values of `2 * H * K` numbers where weights are constant, in float32.
    """

    flops_full: float
    """every head sees all that memory and limit let it see"""
    flops_layer: float
    """every head sees as far as the longest of its layer, in steps of 64: what is left where the
    keys of a layer are cut at one place (`trim_keys`, `trim_memory`)"""
    flops_heads: float
    """every head sees as far as its own mask is above 0"""
    bytes_full: int
    bytes_kept: int
    """what is carried now: less than all where `trim_memory` is on"""
    bytes_needed: int
    """what the longest span of the layer asks for, were memory trimmed to the token"""


def keys_seen(allowed: ArrayLike, config: AttentionConfig, memory: int, T: int) -> Floats:
    """How many keys a query sees in the mean over a segment.

    Args:
        allowed: farthest distances, any shape.
        config: of the layer, which says whether a token sees itself.
        memory: past inputs that the segment finds.
        T: tokens of the segment.
    """
    before_T = memory + np.arange(T)
    past = np.minimum(np.asarray(allowed)[..., None], before_T).mean(-1)
    return np.asarray(past + config.attend_self, dtype=np.float64)


def attention_flops(config: AttentionConfig, keys: ArrayLike) -> float:
    """FLOPs of one token over heads that see so many keys each; see `LayerCost`.

    Args:
        config: of the layer.
        keys: seen by each head, (H,), or one number for all.
    """
    products = 2 if config.positions.kind == "none" else 3
    vectors = config.persistent.n_vectors if config.persistent else 0
    keys_H = np.broadcast_to(np.asarray(keys, dtype=np.float64), config.n_heads)
    return float(2 * config.d_head * (products * keys_H + 2 * vectors).sum())


def carried_bytes(config: AttentionConfig, d_model: int, tokens: int, cached: bool = False) -> int:
    """Bytes of the memory of one layer for one row of text; see `LayerCost`.

    Args:
        config: of the layer.
        d_model: D.
        tokens: that are remembered.
        cached: keys and values instead of inputs.
    """
    width = 2 * config.n_heads * config.d_head if cached else d_model
    return FLOAT_BYTES * width * tokens


def layer_costs(model: LanguageModel, seen: AttentionView, segment_len: int) -> list[LayerCost]:
    """What attention costs in each layer that learns spans.

    Args:
        model: its spans say what is trimmed.
        seen: spans of the tokens of a stretch.
        segment_len: tokens that go through the model together.
    """
    with_span = [mixer for mixer in attention_mixers(model) if mixer.config.span]
    return [
        _layer_cost(mixer, span_HT, segment_len)
        for mixer, span_HT in zip(with_span, seen.spans_LHT, strict=True)
    ]


def _layer_cost(mixer: Attention, span_HT: ArrayLike, T: int) -> LayerCost:
    config, D = mixer.config, mixer.d_out
    assert config.span is not None and config.limit is not None
    memory = min(config.memory_len, config.limit)
    open_HT = open_distances(span_HT, config.span.ramp, config.span.limit)
    longest = int(open_HT.max())
    kept = memory
    # as the model does it: cut to steps, with one step to grow into
    stepped = config.limit - TRIM_STEP * ((config.limit - longest) // TRIM_STEP)
    if config.span.trim_memory:
        kept = min(memory, stepped + TRIM_STEP)
    seen_HT = keys_seen(open_HT, config, memory, T)
    return LayerCost(
        attention_flops(config, keys_seen(config.limit, config, memory, T)),
        attention_flops(config, keys_seen(stepped, config, memory, T)),
        attention_flops(config, seen_HT.mean(1)),
        carried_bytes(config, D, memory),
        carried_bytes(config, D, kept),
        carried_bytes(config, D, min(memory, longest)),
    )


def saved(costs: Sequence[LayerCost]) -> tuple[float, float]:
    """Shares that are left of all layers' attention FLOPs and of the bytes that are carried."""
    flops = math.fsum(c.flops_heads for c in costs) / math.fsum(c.flops_full for c in costs)
    return flops, sum(c.bytes_kept for c in costs) / sum(c.bytes_full for c in costs)
