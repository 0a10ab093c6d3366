"""Exact evaluation: what every token of a text costs, by one of three ways to cut the text.

`windows`: each token is predicted from a fresh state that was given exactly the tokens of its
window (arXiv:2102.11174, the protocol of its code; cost grows with tokens times context).
`carried`: the state runs along the text and each attention layer sees exactly `context_len` past
positions (arXiv:1901.02860 section 4). Recurrent states reach back without a bound.
`streams`: the loops of the papers' codes. B streams side by side, segment by segment, each with its
own carried state: what a token sees depends on where its segment begins, as in the originals.

Several processes share the work (`world`): windows, rows or streams, each process its own. All of
them get the result, which is that of one process, to the last bit where the same rows are read
side by side (`windows`), and else up to the rounding of products of other sizes.

Shapes: B rows side by side, T segment, n tokens of text, n - 1 of them scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.carry import Carry
from workbench.errors import ConfigError, DataError
from workbench.models.base import evaluating
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.base import Limits
from workbench.train import continuous_cache, cutting
from workbench.train.config import CacheConfig, EvalConfig
from workbench.train.distributed import ALONE, World
from workbench.train.precision import check_precision, computing
from workbench.train.sharing import Out, Passes, Read, padded, share, together

CACHED_TOKENS = 1024
"""tokens of a pass over windows on a CPU, about: changes time and memory, not the result"""

Progress = Callable[[int, int], None]


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
    world: World = ALONE,
) -> Evaluation:
    """Score a text.

    The model is put into eval mode and put back afterwards; no gradient is kept.

    Args:
        model: any model; where its parameters are is where the work is done.
        tokens: (n,) token ids of any integer type.
        config: how to cut the text; see `EvalConfig`.
        progress: called now and then with tokens done and tokens in all.
        world: the processes that share the work, such as `run.world`; all of them must call this,
            with the same arguments.

    Raises:
        DataError: too few tokens, or ids outside the vocabulary.
        ConfigError: `carried` for a model whose position codes restart at each segment.
    """
    begin = time.perf_counter()
    measured = measure(model, tokens, config, progress=progress, world=world)
    return summary(measured, len(tokens), config, time.perf_counter() - begin)


def summary(measured: Measured, n: int, config: EvalConfig, seconds: float) -> Evaluation:
    """The evaluation of a text.

    Args:
        measured: what was kept, the nats of each token first.
        n: tokens of the text.
        config: how it was cut.
        seconds: that it took.
    """
    nll, *_ = measured.kept
    counted = min(n, config.max_tokens or n) // config.streams * config.streams
    return Evaluation(
        nll_nats=nll,
        positions=measured.positions,
        method=config.method,
        context_len=config.memory_len if config.method == "streams" else config.context_len,
        tokens=len(nll),
        seconds=seconds,
        rows=measured.rows,
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
    world: World = ALONE,
) -> Measured:
    """Walk through a text as `evaluate` does, keeping what `read` says of each scored token.

    Args:
        model, tokens, config, progress, world: as for `evaluate`, which raises the same.
        read: from one segment to what is kept; None: the nats of each token.
    """
    check(model, tokens, config)
    tokens = tokens[: config.max_tokens]
    walks = {"windows": _windows, "carried": _carried, "streams": _streams}
    walk = _sentences if config.order == "sentences" else walks[config.method]
    with evaluating(model), computing(config.precision, model.device):
        read = Passes(read or _nll(model, config.cache))
        return Measured(*walk(model, tokens, config, read, world, progress or _silent))


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
        streams = cutting.sentence_streams(tokens[: config.max_tokens], config)
        if streams.take(config.segment_len) is None:
            raise DataError(
                f"{name}: got sentences of {length:,} tokens, too few for a segment of "
                f"{config.segment_len} in each of {config.batch_size} streams; give a longer text "
                "or a smaller eval.batch_size"
            )


def _silent(done: int, total: int) -> None:
    """No progress wanted."""


def _windows(
    model: LanguageModel,
    tokens: Tensor,
    config: EvalConfig,
    read: Passes,
    world: World,
    progress: Progress,
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
    streams_BN = cutting.streams(tokens, config.streams)
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
        parts, before, pieces = [], read.number, begin_BN.flatten().split(rows)
        own = share(len(pieces), world).tolist()
        for i in own:
            ids = tokens[pieces[i][:, None] + window_1S].to(device).long()
            carry = model.initial_carry(len(ids), limits)
            read.number = before + i
            out, _ = read(ids[:, :-1], ids[:, -n_scored:], carry)
            parts.append(tuple(x.cpu() for x in out))
            done += len(ids) * n_scored * world.size
            progress(min(done, total), total)
        read.number = before + len(pieces)
        made = (torch.cat(x) for x in zip(*parts, strict=True))
        if world.size > 1:
            made = (padded(x, len(own) * rows) for x in made)
        whole = together(tuple(made), begin_BN.numel(), world)
        return tuple(x.unflatten(0, (B, -1)).flatten(1, 2) for x in whole)

    n_first = 1 if config.skip_first else W
    kept = run(begin_B1, n_first)
    if n > W + 1:
        later = run(begin_B1 + torch.arange(1, n - W), 1)
        kept = tuple(torch.cat(x, dim=1) for x in zip(kept, later, strict=True))
    return (
        tuple(x.flatten(0, 1) for x in kept),
        cutting.positions(B, n, n - kept[0].shape[1], n),
        rows,
    )


def _rows(model: LanguageModel, batch_size: int, W: int) -> int:
    """Windows to read side by side, `batch_size` at most."""
    in_turn = any(block.mixer.token_by_token for block in model.config.block_configs())
    if in_turn or model.device.type != "cpu":
        return batch_size
    # one window's tokens fill the cores by themselves, and many windows' leave the caches
    return min(batch_size, max(1, CACHED_TOKENS // W))


def _streams(
    model: LanguageModel,
    tokens: Tensor,
    config: EvalConfig,
    read: Passes,
    world: World,
    progress: Progress,
) -> tuple[Out, Tensor, int]:
    """Streams side by side, each with its state, one segment after another."""
    streams_BN = cutting.streams(tokens, config.streams)
    device, (B, n), T = model.device, streams_BN.shape, config.segment_len
    own_BN = streams_BN[own := share(B, world)]
    n_targets = (n - 1) // T * T if config.average == "of_blocks" else n - 1
    # a state that starts afresh never meets the repeated tokens twice
    repeated = 0 if config.carry == "reset" else config.ext_len
    limits = Limits(config.memory_len, config.same_length, config.clamp_len, repeated, True)
    carry, parts = model.initial_carry(len(own), limits), []
    for start in range(0, n_targets, T):
        stop, begin = min(start + T, n_targets), max(0, start - config.ext_len)
        ids = own_BN[:, begin : stop + 1].to(device).long()
        if config.carry == "reset":
            carry = model.initial_carry(len(own), limits)
        out, carry = read(ids[:, :-1], ids[:, start - begin + 1 :], carry)
        parts.append(tuple(x.cpu() for x in out))
        progress(B * stop, B * n_targets)
    kept = together(tuple(torch.cat(x, dim=1) for x in zip(*parts, strict=True)), B, world)
    where = cutting.positions(B, n, 1, n_targets + 1)
    return tuple(x.flatten(0, 1) for x in kept), where, B


def _sentences(
    model: LanguageModel,
    tokens: Tensor,
    config: EvalConfig,
    read: Passes,
    world: World,
    progress: Progress,
) -> tuple[Out, Tensor, int]:
    """Streams side by side, each with its state, filled with sentences in the order of the text."""
    ids, B, T = tokens.numpy(), config.batch_size, config.segment_len
    repeated = 0 if config.carry == "reset" else config.ext_len
    limits = Limits(config.memory_len, config.same_length, config.clamp_len, repeated, True)
    streams, places = cutting.sentence_streams(tokens, config), []
    own = share(B, world)
    carry, parts = model.initial_carry(len(own), limits), []
    while (taken := streams.take(T)) is not None:
        mine = (ids.take(x[own.numpy()]) for x in taken)
        inputs_BT, targets_BT = (torch.from_numpy(x).to(model.device) for x in mine)
        if config.carry == "reset":
            carry = model.initial_carry(len(own), limits)
        out, carry = read(inputs_BT.long(), targets_BT.long(), carry)
        parts.append(tuple(x.cpu() for x in out))
        places.append(torch.from_numpy(taken[1]))
        progress(B * T * len(parts), len(ids))
    # in the order of the text, as everywhere
    positions, order = torch.cat(places, dim=1).flatten().sort()
    kept = together(tuple(torch.cat(x, dim=1) for x in zip(*parts, strict=True)), B, world)
    return tuple(x.flatten(0, 1)[order] for x in kept), positions, B


def _carried(
    model: LanguageModel,
    tokens: Tensor,
    config: EvalConfig,
    read: Passes,
    world: World,
    progress: Progress,
) -> tuple[Out, Tensor, int]:
    """The state runs along the text, in rows that overlap by the model's reach."""
    device, n_scored = model.device, len(tokens) - 1
    # a cache looks back over rows' ends
    reach = None if config.cache else model.reach(config.context_len)
    rows, stride, warm_up = cutting.plan_rows(n_scored, config.batch_size * world.size, reach)
    row_len = stride + warm_up
    # the last row may end behind the text: it reads the last token again and is cut off below
    own = share(rows, world)
    index_BT = own[:, None] * stride + torch.arange(row_len)
    limits = Limits(config.context_len, "beyond_self", config.clamp_len, constant_weights=True)
    carry = model.initial_carry(len(own), limits)
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
    whole = together(tuple(torch.cat(x, dim=1) for x in zip(*parts, strict=True)), rows, world)
    kept = tuple(torch.cat([x[0], x[1:, warm_up:].flatten(0, 1)])[:n_scored] for x in whole)
    return kept, cutting.positions(1, n_scored + 1, 1, n_scored + 1), rows
