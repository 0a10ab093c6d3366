"""Exact evaluation: every token but the first scored once, whatever the batch and segment sizes.

`windows`: each token is predicted from a fresh state that was given exactly the tokens of its
window (arXiv:2102.11174, the protocol of its code; cost grows with tokens times context).
`carried`: the state runs along the text and each attention layer sees exactly `context_len` past
positions (arXiv:1901.02860 section 4). Recurrent states reach back without a bound.

Shapes: B rows side by side, T segment, n tokens of text, n - 1 of them scored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import ConfigError, DataError
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.base import Limits
from workbench.train.config import EvalConfig

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What a text cost under a model."""

    nll_nats: Tensor
    """(n - 1,) nats of token 1, 2, ..., n - 1, in the order of the text, on the CPU."""
    method: str
    context_len: int | None
    tokens: int
    """Tokens scored, n - 1."""
    seconds: float
    rows: int
    """Pieces of the text that were read side by side; 1 where a state reaches back to the start."""

    @property
    def mean_nats(self) -> float:
        """Nats per token."""
        return float(self.nll_nats.double().mean())


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
        DataError: fewer than two tokens, or ids outside the vocabulary.
        ConfigError: `carried` for a model whose position codes restart at each segment.
    """
    _check(model, tokens, config)
    tokens = tokens[: config.max_tokens]
    begin = time.perf_counter()
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            run = _windows if config.method == "windows" else _carried
            nll, rows = run(model, tokens, config, progress or _silent)
    finally:
        model.train(was_training)
    return Evaluation(
        nll_nats=nll.clone(),
        method=config.method,
        context_len=config.context_len,
        tokens=len(nll),
        seconds=time.perf_counter() - begin,
        rows=rows,
    )


def _check(model: LanguageModel, tokens: Tensor, config: EvalConfig) -> None:
    if tokens.ndim != 1 or len(tokens) < 2:
        raise DataError(
            f"got a text of shape {tuple(tokens.shape)}, expected one row of at least 2 tokens: "
            "the first is only read, every other is scored. Give a longer text"
        )
    top = int(tokens[: config.max_tokens].max())
    if top >= model.vocab_size:
        raise DataError(
            f"got token id {top}, but the model knows {model.vocab_size} symbols (0 to "
            f"{model.vocab_size - 1}); encode the text with the vocabulary the model was trained on"
        )
    kind = model.config.positions.kind
    if config.method == "carried" and kind != "none":
        raise ConfigError(
            f"eval.method is carried, but the model's positions are {kind}, whose codes restart at "
            "each segment: the result would depend on segment_len. Write eval.method: windows"
        )


def _silent(done: int, total: int) -> None:
    """No progress wanted."""


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device


def _windows(
    model: LanguageModel, tokens: Tensor, config: EvalConfig, progress: Progress
) -> tuple[Tensor, int]:
    """The first window scores all its positions, each later one its last."""
    device, n_scored = _device(model), len(tokens) - 1
    assert config.context_len is not None, "EvalConfig lets no window be without a length"
    context_len = min(config.context_len, n_scored)

    def score(windows_BT: Tensor, last_only: bool) -> Tensor:
        ids = windows_BT.to(device).long()
        # a limit on equal numbers of keys belongs to running text, not to a window of its own
        carry = model.initial_carry(len(ids), Limits(same_length="off"))
        nll_BT, _ = model.nll(ids[:, :-1], ids[:, 1:], carry)
        return nll_BT[:, -1].cpu() if last_only else nll_BT[0].cpu()

    parts = [score(tokens[None, : context_len + 1], last_only=False)]
    progress(context_len, n_scored)
    # row s holds tokens s to s + context_len: the window and the token after it
    windows = tokens.unfold(0, context_len + 1, 1)
    for start in range(1, len(windows), config.batch_size):
        stop = min(start + config.batch_size, len(windows))
        parts.append(score(windows[start:stop], last_only=True))
        progress(context_len + stop - 1, n_scored)
    return torch.cat(parts), min(config.batch_size, max(1, len(windows) - 1))


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
    model: LanguageModel, tokens: Tensor, config: EvalConfig, progress: Progress
) -> tuple[Tensor, int]:
    """The state runs along the text, in rows that overlap by the model's reach."""
    device, n_scored = _device(model), len(tokens) - 1
    reach = model.reach(config.context_len)
    rows, stride, warm_up = plan_rows(n_scored, config.batch_size, reach)
    row_len = stride + warm_up
    # the last row may end behind the text: it reads the last token again and is cut off below
    index_BT = torch.arange(rows)[:, None] * stride + torch.arange(row_len)
    limits = Limits(memory_len=config.context_len, same_length="beyond_self")
    carry = model.initial_carry(rows, limits)
    parts = []
    for start in range(0, row_len, config.segment_len):
        piece_BT = index_BT[:, start : start + config.segment_len].clamp(max=n_scored - 1)
        inputs_BT = tokens[piece_BT].to(device).long()
        targets_BT = tokens[piece_BT + 1].to(device).long()
        nll_BT, carry = model.nll(inputs_BT, targets_BT, carry)
        parts.append(nll_BT.cpu())
        done = start + piece_BT.shape[1]
        scored = done + (rows - 1) * max(0, done - warm_up)
        progress(min(n_scored, scored), n_scored)
    nll_BT = torch.cat(parts, dim=1)
    return torch.cat([nll_BT[0], nll_BT[1:, warm_up:].flatten()])[:n_scored], rows
