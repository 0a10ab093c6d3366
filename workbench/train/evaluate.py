"""Exact evaluation: what every token of a text costs, by one of three ways to cut the text.

`windows`: each token is predicted from a fresh state that was given exactly the tokens of its
window (arXiv:2102.11174, the protocol of its code; cost grows with tokens times context).
`carried`: the state runs along the text and each attention layer sees exactly `context_len` past
positions (arXiv:1901.02860 section 4). Recurrent states reach back without a bound.
`streams`: the loops of the papers' codes. B streams side by side, segment by segment, each with its
own carried state: what a token sees depends on where its segment begins, as in the originals.

Shapes: B rows side by side, T segment, n tokens of text, n - 1 of them scored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.carry import Carry
from workbench.data.sentences import SentenceStreams, bounds
from workbench.errors import ConfigError, DataError
from workbench.models.base import evaluating
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.base import Limits
from workbench.train import continuous_cache
from workbench.train.config import CacheConfig, EvalConfig
from workbench.train.precision import check_precision, computing

CACHED_TOKENS = 1024
"""tokens of a pass over windows on a CPU, about: changes time and memory, not the result"""

Progress = Callable[[int, int], None]
Out = tuple[Tensor, ...]
Read = Callable[[Tensor, Tensor, Carry], tuple[Out, Carry]]
"""(tokens_BT, targets_BT, carry) -> what is kept of each target, (B, T, ...) each, and the carry;
where tokens are more than targets, the first ones are context only"""


@dataclass(frozen=True)
class Evaluation:
    """What a text cost under a model."""

    nll_nats: Tensor
    """(tokens,) nats of each scored token, in the order of the text, on the CPU."""
    positions: Tensor
    """(tokens,) where in the text each of them stands: 1, 2, ..., n - 1 for a single stream."""
    method: str
    context_len: int | None
    """The config's; under `streams` its memory_len."""
    tokens: int
    """Tokens scored, n - 1 for a single stream."""
    seconds: float
    rows: int
    """Pieces of the text that were read side by side; 1 where a state reaches back to the start."""
    divisor: int
    """What the sum of nats is divided by: `tokens`, but for `average: over_tokens`."""
    settings: str
    """The method with everything that changes the result."""

    @property
    def mean_nats(self) -> float:
        """Nats per token, as `EvalConfig.average` says."""
        return float(self.nll_nats.double().sum()) / self.divisor


class Measured(NamedTuple):
    """What `measure` kept."""

    kept: Out
    """each (tokens, ...), in the order of the text"""
    positions: Tensor
    """(tokens,) where in the text"""
    rows: int


def evaluate(
    model: LanguageModel,
    tokens: Tensor,
    config: EvalConfig,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a text.

    The model is put into eval mode and put back afterwards; no gradient is kept.

    Args:
        model: any model; where its parameters are is where the work is done.
        tokens: (n,) token ids of any integer type.
        config: how to cut the text; see `EvalConfig`.
        progress: called now and then with tokens done and tokens in all.

    Raises:
        DataError: too few tokens, or ids outside the vocabulary.
        ConfigError: `carried` for a model whose position codes restart at each segment.
    """
    begin = time.perf_counter()
    (nll,), positions, rows = measure(model, tokens, config, progress=progress)
    counted = len(tokens[: config.max_tokens]) // config.streams * config.streams
    return Evaluation(
        nll_nats=nll,
        positions=positions,
        method=config.method,
        context_len=config.memory_len if config.method == "streams" else config.context_len,
        tokens=len(nll),
        seconds=time.perf_counter() - begin,
        rows=rows,
        divisor=counted if config.average == "over_tokens" else len(nll),
        settings=config.describe(),
    )


def measure(
    model: LanguageModel,
    tokens: Tensor,
    config: EvalConfig,
    read: Read | None = None,
    *,
    progress: Progress | None = None,
) -> Measured:
    """Walk through a text as `evaluate` does, keeping what `read` says of each scored token.

    Args:
        model, tokens, config, progress: as for `evaluate`, which raises the same.
        read: from one segment to what is kept; None: the nats of each token.
    """
    check(model, tokens, config)
    tokens = tokens[: config.max_tokens]
    walks = {"windows": _windows, "carried": _carried, "streams": _streams}
    walk = _sentences if config.order == "sentences" else walks[config.method]
    with evaluating(model), computing(config.precision, model.device):
        read = read or _nll(model, config.cache)
        return Measured(*walk(model, tokens, config, read, progress or _silent))


def _nll(model: LanguageModel, cache: CacheConfig | None) -> Read:
    """Nats of each target, mixed with a continuous cache if there is one."""
    history: continuous_cache.History | None = None

    def plain(tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Out, Carry]:
        nll_BT, carry = model.nll(tokens_BT, targets_BT, carry)
        return (nll_BT,), carry

    def mixed(tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Out, Carry]:
        nonlocal history
        assert cache is not None
        hidden_BTD, carry = model.hidden(tokens_BT, targets_BT, carry)
        nll_BT = model.vocabulary.nll(hidden_BTD, targets_BT)
        nll_BT, history = continuous_cache.mix_nll(nll_BT, hidden_BTD, targets_BT, history, cache)
        return (nll_BT,), carry

    return plain if cache is None else mixed


def check(model: LanguageModel, tokens: Tensor, config: EvalConfig) -> None:
    """Refuse a text that cannot be scored so; see `evaluate`."""
    check_precision(config.precision, model.device, "eval.precision")
    check_length(tokens, config)
    # by numpy: PyTorch has no maximum of two unsigned bytes
    top = int(tokens[: config.max_tokens].cpu().numpy().max())
    if top >= model.vocab_size:
        raise DataError(
            f"got token id {top}, but the model knows {model.vocab_size} symbols (0 to "
            f"{model.vocab_size - 1}); encode the text with the vocabulary the model was trained on"
        )
    kind = model.config.restarting
    if config.method == "carried" and kind is not None:
        raise ConfigError(
            f"eval.method is carried, but the model's positions are {kind}, whose codes restart at "
            "each segment: the result would depend on segment_len. Write eval.method: windows"
        )


def check_length(tokens: Tensor, config: EvalConfig, name: str = "text") -> None:
    """Refuse a text that is too short to be scored so.

    Args:
        tokens: (n,) ids.
        name: of the text, for the message.
    """
    if tokens.ndim != 1 or len(tokens) < 2:
        raise DataError(
            f"{name}: got a text of shape {tuple(tokens.shape)}, expected one row of at least 2 "
            "tokens: the first is only read, every other is scored. Give a longer text, or a "
            "larger share of it (corpus.split)"
        )
    if (length := len(tokens[: config.max_tokens])) < config.least_tokens:
        field = "batch_size" if config.method == "streams" else "n_streams"
        raise DataError(
            f"{name}: got a text of {length:,} tokens for {config.streams} streams, expected at "
            f"least {config.least_tokens:,}; give a longer text, a larger share of it "
            f"(corpus.split) or a smaller eval.{field}"
        )
    if config.order == "sentences":
        streams = _sentence_streams(tokens[: config.max_tokens], config)
        if streams.take(config.segment_len) is None:
            raise DataError(
                f"{name}: got sentences of {length:,} tokens, too few for a segment of "
                f"{config.segment_len} in each of {config.batch_size} streams; give a longer text "
                "or a smaller eval.batch_size"
            )


def _silent(done: int, total: int) -> None:
    """No progress wanted."""


def _windows(
    model: LanguageModel, tokens: Tensor, config: EvalConfig, read: Read, progress: Progress
) -> tuple[Out, Tensor, int]:
    """The first window of a stream scores all its positions, each later one its last.

    Every window is a pass of its own from a fresh state, and what a token becomes depends on where
    its window begins. So above the first layer nothing is common to two windows: neither keys and
    values nor fast weights nor recurrent states could be cached, and a state carried on would be
    another evaluation. In the first layer projections of a token would be, where no position code
    comes before them; they are a twentieth of the work, and are not kept. What is left out is left
    out exactly: the last layer asks, mixes and writes out, and the softmax runs, for scored
    positions alone.
    """
    assert config.context_len is not None, "EvalConfig lets no window be without a length"
    streams_BN = _cut(tokens, config.streams)
    B, n = streams_BN.shape
    W = min(config.context_len, n - 1)
    # a limit on equal numbers of keys belongs to running text, not to a window of its own
    limits = Limits(same_length="off", clamp_len=config.clamp_len)
    device, total, done = model.device, B * (n - 1), 0
    rows = min(_rows(model, config.batch_size, W), B * (n - W))
    begin_B1, window_1S = torch.arange(B)[:, None] * n, torch.arange(W + 1)[None]

    def run(begin_BN: Tensor, n_scored: int) -> Out:
        """Windows that begin there; the last targets of each are scored, (B, N * n_scored, ...)."""
        nonlocal done
        parts = []
        for begin_R in begin_BN.flatten().split(rows):
            ids = tokens[begin_R[:, None] + window_1S].to(device).long()
            carry = model.initial_carry(len(ids), limits)
            out, _ = read(ids[:, :-1], ids[:, -n_scored:], carry)
            parts.append(tuple(x.cpu() for x in out))
            done += len(ids) * n_scored
            progress(done, total)
        whole = (torch.cat(x) for x in zip(*parts, strict=True))
        return tuple(x.unflatten(0, (B, -1)).flatten(1, 2) for x in whole)

    n_first = 1 if config.skip_first else W
    kept = run(begin_B1, n_first)
    if n > W + 1:
        later = run(begin_B1 + torch.arange(1, n - W), 1)
        kept = tuple(torch.cat(x, dim=1) for x in zip(kept, later, strict=True))
    return tuple(x.flatten(0, 1) for x in kept), _positions(B, n, n - kept[0].shape[1], n), rows


def _rows(model: LanguageModel, batch_size: int, W: int) -> int:
    """Windows to read side by side, `batch_size` at most."""
    in_turn = any(block.mixer.token_by_token for block in model.config.block_configs())
    if in_turn or model.device.type != "cpu":
        return batch_size
    # one window's tokens fill the cores by themselves, and many windows' leave the caches
    return min(batch_size, max(1, CACHED_TOKENS // W))


def _cut(tokens: Tensor, n_streams: int) -> Tensor:
    """Contiguous streams of equal length; the remainder is dropped."""
    length = len(tokens) // n_streams
    return tokens[: n_streams * length].view(n_streams, length)


def _positions(n_streams: int, length: int, first: int, stop: int) -> Tensor:
    """Where in the text the tokens `first` to `stop` of each stream stand."""
    return (torch.arange(n_streams)[:, None] * length + torch.arange(first, stop)).flatten()


def _streams(
    model: LanguageModel, tokens: Tensor, config: EvalConfig, read: Read, progress: Progress
) -> tuple[Out, Tensor, int]:
    """Streams side by side, each with its state, one segment after another."""
    streams_BN = _cut(tokens, config.streams)
    device, (B, n), T = model.device, streams_BN.shape, config.segment_len
    n_targets = (n - 1) // T * T if config.average == "of_blocks" else n - 1
    # a state that starts afresh never meets the repeated tokens twice
    repeated = 0 if config.carry == "reset" else config.ext_len
    limits = Limits(config.memory_len, config.same_length, config.clamp_len, repeated, True)
    carry, parts = model.initial_carry(B, limits), []
    for start in range(0, n_targets, T):
        stop, begin = min(start + T, n_targets), max(0, start - config.ext_len)
        ids = streams_BN[:, begin : stop + 1].to(device).long()
        if config.carry == "reset":
            carry = model.initial_carry(B, limits)
        out, carry = read(ids[:, :-1], ids[:, start - begin + 1 :], carry)
        parts.append(tuple(x.cpu() for x in out))
        progress(B * stop, B * n_targets)
    kept = tuple(torch.cat(x, dim=1).flatten(0, 1) for x in zip(*parts, strict=True))
    return kept, _positions(B, n, 1, n_targets + 1), B


def _sentence_streams(tokens: Tensor, config: EvalConfig) -> SentenceStreams:
    """The sentences of a text, in its order, for the streams of `config`."""
    ids = tokens.numpy()
    # what follows the last mark is no whole sentence
    stop = int(np.flatnonzero(ids == ids[0])[-1])
    if stop == 0:
        raise DataError(
            f"eval.order is sentences, but the token {ids[0]} that begins the text, and so should "
            "open and close each sentence, does not come again. Write eval.order: contiguous"
        )
    starts = bounds(ids, int(ids[0]), 0, stop)
    return SentenceStreams(starts, None, config.batch_size, config.ext_len)


def _sentences(
    model: LanguageModel, tokens: Tensor, config: EvalConfig, read: Read, progress: Progress
) -> tuple[Out, Tensor, int]:
    """Streams side by side, each with its state, filled with sentences in the order of the text."""
    ids, B, T = tokens.numpy(), config.batch_size, config.segment_len
    repeated = 0 if config.carry == "reset" else config.ext_len
    limits = Limits(config.memory_len, config.same_length, config.clamp_len, repeated, True)
    streams, places = _sentence_streams(tokens, config), []
    carry, parts = model.initial_carry(B, limits), []
    while (taken := streams.take(T)) is not None:
        inputs_BT, targets_BT = (torch.from_numpy(ids.take(x)).to(model.device) for x in taken)
        if config.carry == "reset":
            carry = model.initial_carry(B, limits)
        out, carry = read(inputs_BT.long(), targets_BT.long(), carry)
        parts.append(tuple(x.cpu() for x in out))
        places.append(torch.from_numpy(taken[1]))
        progress(B * T * len(parts), len(ids))
    # in the order of the text, as everywhere
    positions, order = torch.cat(places, dim=1).flatten().sort()
    kept = tuple(torch.cat(x, dim=1).flatten(0, 1)[order] for x in zip(*parts, strict=True))
    return kept, positions, B


def plan_rows(n_inputs: int, batch_size: int, reach: int | None) -> tuple[int, int, int]:
    """How `carried` cuts a text into rows that can be read side by side.

    Row b reads `warm_up + stride` inputs from position `b * stride`. Row 0 is scored throughout,
    the others after their warm-up: by then all that can influence them has been read.

    Args:
        n_inputs: positions to predict from, n - 1.
        batch_size: rows at most.
        reach: past positions that can influence a prediction; None where there is no bound.

    Returns:
        rows, stride and warm_up.
    """
    if reach is None or reach >= n_inputs or batch_size == 1:
        return 1, n_inputs, 0
    # not more warm-up than text: beyond that, more rows cost more than they save
    rows = min(batch_size, 1 + n_inputs // max(1, reach), n_inputs - reach)
    if rows < 2:
        return 1, n_inputs, 0
    stride = math.ceil((n_inputs - reach) / rows)
    return math.ceil((n_inputs - reach) / stride), stride, reach


def _carried(
    model: LanguageModel, tokens: Tensor, config: EvalConfig, read: Read, progress: Progress
) -> tuple[Out, Tensor, int]:
    """The state runs along the text, in rows that overlap by the model's reach."""
    device, n_scored = model.device, len(tokens) - 1
    # a cache looks back over rows' ends
    reach = None if config.cache else model.reach(config.context_len)
    rows, stride, warm_up = plan_rows(n_scored, config.batch_size, reach)
    row_len = stride + warm_up
    # the last row may end behind the text: it reads the last token again and is cut off below
    index_BT = torch.arange(rows)[:, None] * stride + torch.arange(row_len)
    limits = Limits(config.context_len, "beyond_self", config.clamp_len, constant_weights=True)
    carry = model.initial_carry(rows, limits)
    parts = []
    for start in range(0, row_len, config.segment_len):
        piece_BT = index_BT[:, start : start + config.segment_len].clamp(max=n_scored - 1)
        inputs_BT = tokens[piece_BT].to(device).long()
        targets_BT = tokens[piece_BT + 1].to(device).long()
        out, carry = read(inputs_BT, targets_BT, carry)
        parts.append(tuple(x.cpu() for x in out))
        done = start + piece_BT.shape[1]
        scored = done + (rows - 1) * max(0, done - warm_up)
        progress(min(n_scored, scored), n_scored)
    whole = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
    kept = tuple(torch.cat([x[0], x[1:, warm_up:].flatten(0, 1)])[:n_scored] for x in whole)
    return kept, _positions(1, n_scored + 1, 1, n_scored + 1), rows
