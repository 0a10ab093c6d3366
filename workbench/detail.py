"""An evaluation in detail: beside the loss of each token how sure the model was, and of what.

    detail = evaluate_in_detail(model, tokens, config)
    reliability(detail.confidence, detail.correct).ece

What is kept of a token is a few numbers, never the distribution over all classes.
Shapes: B rows side by side, T segment, N = B * T tokens, C classes, k alternatives.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.carry import Carry
from workbench.models.language_model import LanguageModel
from workbench.train import continuous_cache
from workbench.train.config import CacheConfig, EvalConfig
from workbench.train.distributed import ALONE, World
from workbench.train.evaluate import Evaluation, Out, Progress, Read, measure, summary

PIECE_ENTRIES = 1 << 22
"""log-probabilities held at a time; changes memory, not the result"""


@dataclass(frozen=True)
class Detail:
    """What a text cost, and what the model thought of each token. Arrays are on the CPU."""

    evaluation: Evaluation
    confidence: Tensor
    """(tokens,) probability of the predicted token, the likeliest one."""
    correct: Tensor
    """(tokens,) 1 where the predicted token came, 0 where another did. Where m tokens are equally
    likely, each is predicted once in m times: 1 / m if one of them came."""
    rank: Tensor
    """(tokens,) 1 + how many tokens were strictly likelier than the one that came."""
    alternatives: Tensor
    """(tokens, k) ids of the likeliest tokens, likeliest first."""
    alternative_log_probs: Tensor
    """(tokens, k) of those, in nats."""

    def within(self, k: int) -> float:
        """Share of tokens that were among the k likeliest."""
        return float((self.rank <= k).double().mean())


def evaluate_in_detail(
    model: LanguageModel,
    tokens: Tensor,
    config: EvalConfig,
    alternatives: int = 5,
    *,
    progress: Progress | None = None,
    world: World = ALONE,
) -> Detail:
    """Score a text as `evaluate` does, and keep more of each token.

    Args:
        model, tokens, config, progress, world: as for `evaluate`, which raises the same.
        alternatives: how many of the likeliest tokens to keep; all where there are fewer.
    """
    begin = time.perf_counter()
    read = _reader(model, config.cache, min(alternatives, model.vocab_size))
    measured = measure(model, tokens, config, read, progress=progress, world=world)
    _, confidence, correct, rank, log_probs, ids = measured.kept
    evaluation = summary(measured, len(tokens), config, time.perf_counter() - begin)
    return Detail(evaluation, confidence, correct, rank, ids, log_probs)


def _reader(model: LanguageModel, cache: CacheConfig | None, k: int) -> Read:
    """Keeps the nats of each target, then what `_told` says of it."""
    history: continuous_cache.History | None = None

    def plain(tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Out, Carry]:
        hidden_BTD, carry = model.hidden(tokens_BT, targets_BT, carry)
        nll_BT = model.vocabulary.nll(hidden_BTD, targets_BT)
        size = max(1, PIECE_ENTRIES // model.vocab_size)
        pieces = zip(
            hidden_BTD.flatten(0, 1).split(size), targets_BT.flatten().split(size), strict=True
        )
        told = [_told(model.vocabulary.log_probs(h_ND[None])[0], t_N, k) for h_ND, t_N in pieces]
        whole = (torch.cat(x).unflatten(0, targets_BT.shape) for x in zip(*told, strict=True))
        return (nll_BT, *whole), carry

    def mixed(tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Out, Carry]:
        nonlocal history
        assert cache is not None
        hidden_BTD, carry = model.hidden(tokens_BT, targets_BT, carry)
        logp_BTC, history = continuous_cache.mix_log_probs(
            model.vocabulary.log_probs(hidden_BTD), hidden_BTD, targets_BT, history, cache
        )
        nll_BT = -logp_BTC.gather(-1, targets_BT[..., None])[..., 0]
        return (nll_BT, *_told(logp_BTC, targets_BT, k)), carry

    return plain if cache is None else mixed


def _told(logp_C: Tensor, target: Tensor, k: int) -> Out:
    """Confidence, correctness, rank and the k likeliest classes of each target.

    Args:
        logp_C: (..., C) log-probabilities.
        target: (...) ids.
    """
    own = logp_C.gather(-1, target[..., None])
    best = logp_C.amax(-1, keepdim=True)
    equal = (logp_C == best).sum(-1)
    log_probs, ids = logp_C.topk(k, dim=-1)
    return (
        best[..., 0].exp(),
        (own == best)[..., 0].to(logp_C.dtype) / equal,
        (1 + (logp_C > own).sum(-1)).int(),
        log_probs,
        ids.int(),
    )
