"""Questions that notebooks put to a trained model: arrays out, nothing drawn.

Papers: arXiv:1905.07799 (spans), arXiv:2102.11174 (fast weights).
Shapes: T segment, S memory + segment, H heads, F features, V value width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench import inspect, paired
from workbench.carry import nbytes
from workbench.data.corpus import Corpus
from workbench.errors import ConfigError, DataError
from workbench.metrics import bits_per_token, compressed_bits, unigram_nats
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.attention import Attention
from workbench.models.mixers.delta_recurrent import DeltaRNNConfig
from workbench.models.mixers.fast_weight import FastWeightConfig
from workbench.models.mixers.span import LearnedSpan
from workbench.train import continuous_cache
from workbench.train.config import CacheConfig, EvalConfig
from workbench.train.evaluate import evaluate, measure

Array = NDArray[np.float32]
FAST_WEIGHTS = (FastWeightConfig, DeltaRNNConfig)
"""mixers whose writes `fast_weight_inputs` shows; a Delta LSTM's config is a Delta RNN's"""


class Stretch(NamedTuple):
    """A piece of text, and what was read before it."""

    before: Tensor
    """(M,) ids that fill the model's memory"""
    tokens: Tensor
    """(T,) ids that are looked at"""


def stretch(tokens: Tensor, start: int, length: int, before: int) -> Stretch:
    """Cut a piece out of a text.

    Args:
        tokens: (n,) ids.
        start: of the piece, in tokens from the beginning of the text.
        length: of the piece.
        before: how many tokens to read ahead of it, where the text has them.

    Raises:
        DataError: the text ends before the piece does.
    """
    if start < 0 or length < 2 or start + length > len(tokens):
        raise DataError(
            f"got start {start} and length {length}, expected a piece of at least 2 tokens inside "
            f"a text of {len(tokens):,} tokens; choose a smaller start or length"
        )
    ahead = tokens[max(0, start - before) : start]
    return Stretch(ahead.long(), tokens[start : start + length].long())


def after(model: LanguageModel, ahead: Tensor) -> Any:
    """The carry after (M,) ids were read, from a new one."""
    carry = model.initial_carry(1)
    # an empty tensor splits into one empty piece
    for piece in ahead.split(128) if len(ahead) else ():
        with torch.no_grad():
            _, carry = model(piece[None].to(model.device), carry)
    return carry


class AttentionView(NamedTuple):
    """Attention over one stretch."""

    probs_LHTS: list[Array]
    """per attention layer; S may differ, as memory is trimmed to the longest span"""
    masks_LHD: list[Array]
    """per layer with spans: the soft mask at distance 1, 2, ..."""
    spans_LHT: list[Array]
    """per layer with spans: the span of each head at each token, in tokens, without its ramp"""
    persistent_LHT: list[Array]
    """per layer with persistent vectors: the share of each query's attention that goes to them"""
    carry_bytes_L: list[int]
    """per attention layer: what it hands on after the stretch, for one row of text"""


def attention(model: LanguageModel, text: Stretch) -> AttentionView:
    """Attention of all layers and heads over a stretch, with its memory filled."""
    carry = after(model, text.before)
    names = ("attention_probs", "persistent_probs", "span_mask", "span_tokens")
    with inspect.capture(model, *names) as taps:
        _, carry = model(text.tokens[None].to(model.device), carry)
    probs, persistent, masks, spans = (
        [x.float().cpu().numpy() for x in taps[name]] for name in names
    )
    length = len(text.tokens)
    return AttentionView(
        [p[0] for p in probs],
        masks,
        # a span is learned for each head, a dynamic one for each row and token, too
        [np.repeat(z[:, None], length, axis=1) if z.ndim == 1 else z[0] for z in spans],
        [p[0].sum(-1) for p in persistent],
        [
            nbytes((state,))
            for block, state in zip(model.layers, carry, strict=True)
            if isinstance(block.mixer, Attention)
        ],
    )


def loss_with_span(
    model: LanguageModel, text: Stretch, at: int, head: int, span: float, ramp: int
) -> float:
    """What a stretch would cost, had one head another span and its layer another ramp.

    The text before it is read anew, as its memory would be another one, too. The model is left as
    it was.

    Args:
        model: whose layer `at` learns one span for each head.
        text: every token but the first of all is predicted.
        at: which layer of the stack, from 0.
        head: of that layer, from 0.
        span: z of the head in tokens, 0 to the layer's limit.
        ramp: R of all heads of the layer, in tokens.

    Returns:
        mean nats per token.
    """
    mixer = model.layers[at].mixer
    assert isinstance(mixer, Attention) and isinstance(mixer.span, LearnedSpan)
    learned = mixer.span
    share_H, own_ramp = learned.share_H.detach().clone(), learned.ramp
    ids = torch.cat([text.before, text.tokens]).to(model.device)
    # the token before the stretch predicts its first one
    T = min(len(text.tokens), len(ids) - 1)
    with torch.no_grad():
        try:
            learned.share_H[head], learned.ramp = span / learned.limit, ramp
            carry = after(model, ids[: -T - 1])
            nll_BT, _ = model.nll(ids[None, -T - 1 : -1], ids[None, -T:], carry)
        finally:
            learned.share_H.copy_(share_H)
            learned.ramp = own_ramp
    return float(nll_BT.mean())


class RulesView(NamedTuple):
    """One head's keys and values written under both rules into an empty memory."""

    W: dict[str, Array]
    """rule -> (T, F, V), the matrix after each token"""
    reads: dict[str, Array]
    """rule -> (T, T): [t, s] is the cosine of the value written at t and what its key reads
    after token s"""


def fast_weight_inputs(model: LanguageModel, text: Stretch) -> list[inspect.FastWeightInputs]:
    """What each fast-weight layer writes and asks over a stretch, after what was read before.

    Gates of a Delta RNN or Delta LSTM are so many more heads, one gate after another.
    """
    carry = after(model, text.before)
    with inspect.capture(model, "fast_weight_inputs") as taps:
        model(text.tokens[None].to(model.device), carry)
    return list(taps["fast_weight_inputs"])


def both_rules(inputs: inspect.FastWeightInputs, head: int) -> RulesView:
    """Write the same keys and values by the delta and by the sum rule.

    The memory starts empty for both: what it held was written by the model's own rule. A model
    of the sum rule has no write strengths; the delta rule then writes with strength 1.
    """
    empty = inputs._replace(state_BHFV=torch.zeros_like(inputs.state_BHFV))
    matrices, reads = {}, {}
    for rule in ("delta", "sum"):
        life = inspect.trajectory(empty, 0, head, rule)
        matrices[rule] = life.W_TFV.cpu().numpy()
        length = len(life.W_TFV)
        each = [inspect.read_back(life, empty, 0, head, t) for t in range(length)]
        reads[rule] = torch.stack(each).cpu().numpy()
    return RulesView(matrices, reads)


class ContextPoint(NamedTuple):
    """Mean loss with exactly so much context."""

    context_len: int
    bits: float
    standard_error: float
    """as if tokens were independent"""
    saved: float = 0.0
    """bits that the longest context saves on the same tokens"""
    saved_low: float = 0.0
    saved_high: float = 0.0
    """its 95 % interval, which counts in that neighbouring tokens are alike (`paired.mean`)"""


def loss_by_context(
    model: LanguageModel,
    tokens: Tensor,
    contexts: Sequence[int],
    sample: int,
    *,
    stretches: int = 4,
    batch_size: int = 32,
) -> list[ContextPoint]:
    """What memory buys: the same tokens predicted from ever more context.

    Args:
        model: any model; each prediction starts from a fresh state.
        tokens: (n,) ids of held-out text.
        contexts: tokens before the predicted one.
        sample: how many tokens are predicted, in stretches spread evenly over the text.
        stretches: how many.
        batch_size: windows side by side; changes time, not the result.

    Raises:
        DataError: the text is too short for the longest context.
    """
    each, longest = max(1, sample // stretches), max(contexts)
    room = len(tokens) - longest - each
    if room < 0:
        raise DataError(
            f"got a text of {len(tokens):,} tokens, expected at least {longest + each:,} for "
            f"context {longest} and stretches of {each}; shorten contexts or the sample"
        )
    starts = [longest + round(room * i / max(1, stretches - 1)) for i in range(stretches)]
    found = {c: _bits_with(model, tokens, c, starts, each, batch_size) for c in contexts}
    points = []
    for context, bits in found.items():
        error = float(bits.std(ddof=1) / len(bits) ** 0.5) if len(bits) > 1 else 0.0
        saved = paired.mean(bits - found[longest]) if len(bits) > 1 else None
        interval = (saved.mean, saved.low, saved.high) if saved else ()
        points.append(ContextPoint(context, float(bits.mean()), error, *interval))
    return points


def _bits_with(
    model: LanguageModel,
    tokens: Tensor,
    context: int,
    starts: Sequence[int],
    each: int,
    batch_size: int,
) -> NDArray[np.float64]:
    """Bits of the tokens of some stretches, each with exactly so much context."""
    config = EvalConfig(method="windows", context_len=context, batch_size=batch_size)
    parts = []
    for start in starts:
        window = tokens[start - context : start + each]
        # the first window scores all its positions; only its last has the full context
        parts.append(evaluate(model, window, config).nll_nats[-each:])
    bits: NDArray[np.float64] = bits_per_token(1.0) * torch.cat(parts).double().numpy()
    return bits


class CacheGrid(NamedTuple):
    """What continuous caches make of one text."""

    plain_nats: float
    """mean nats per token without any"""
    mean_nats: Array
    """(thetas, lams) with each"""


def cache_grid(
    model: LanguageModel,
    tokens: Tensor,
    config: EvalConfig,
    window: int,
    thetas: Sequence[float],
    lams: Sequence[float],
) -> CacheGrid:
    """Tune a continuous cache: one pass of the model, then every pair of settings.

    Args:
        model: any model.
        tokens: (n,) ids of validation text.
        config: method `carried` or `streams`, without a cache.
        window, thetas, lams: see `CacheConfig`.

    Raises:
        ConfigError: windows have no running past to keep in a cache.
    """
    if config.method == "windows" or config.order == "sentences":
        raise ConfigError(
            "a cache needs a running text; set eval.method: carried or streams, and eval.order: "
            "contiguous"
        )
    streams = config.batch_size if config.method == "streams" else 1
    # rows that overlap would make several pasts of one
    config = config.model_copy(update={"batch_size": streams})

    def read(tokens_BT: Tensor, targets_BT: Tensor, carry: Any) -> tuple[tuple[Tensor, ...], Any]:
        hidden_BTD, carry = model.hidden(tokens_BT, targets_BT, carry)
        return (model.vocabulary.nll(hidden_BTD, targets_BT), hidden_BTD, targets_BT), carry

    kept, *_ = measure(model, tokens, config, read)
    nll_BT, hidden_BTD, targets_BT = (x.unflatten(0, (streams, -1)) for x in kept)
    means = [
        [
            float(continuous_cache.mix_nll(nll_BT, hidden_BTD, targets_BT, None, cache)[0].mean())
            for cache in (CacheConfig(window=window, theta=theta, lam=lam) for lam in lams)
        ]
        for theta in thetas
    ]
    return CacheGrid(float(nll_BT.mean()), np.asarray(means, dtype=np.float32))


def baselines(corpus: Corpus, tokens: Tensor) -> dict[str, float]:
    """Bits per token of the same text by methods that know no context, or start without knowledge.

    Args:
        corpus: its training split gives the unigram counts.
        tokens: (n,) ids of the text to score.

    Returns:
        unigram (counts of the training split), and gzip and xz of the text alone.
    """
    text = corpus.vocabulary.raw(tokens)
    nats = unigram_nats(corpus.splits["train"], tokens, corpus.vocabulary.size)
    bytes_per_token = len(text) / len(tokens)
    return {
        "unigram": bits_per_token(nats),
        "gzip": compressed_bits(b"", text, "gzip") * bytes_per_token,
        "xz": compressed_bits(b"", text, "xz") * bytes_per_token,
    }
