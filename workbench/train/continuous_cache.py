"""The continuous cache: a softmax over the recent past, mixed with the model's own.

Paper: arXiv:1612.04426 equations 2 and 3; the AWD-LSTM code calls it pointer (arXiv:1708.02182
section 5). At time t, with the state h_t that predicts token t + 1:

    cache(w) = sum_i softmax_i(theta h_i . h_t) [token i + 1 is w]     t - window <= i < t
    p(w) = lam cache(w) + (1 - lam) p_model(w)

Any model's last hidden states will do, and nothing is trained.
Shapes: B streams, T segment, M entries held, S = M + T, D hidden width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.train.config import CacheConfig

PIECE = 128
"""queries at a time; changes memory, not the result"""


class History(NamedTuple):
    """The newest entries of the cache, oldest first."""

    hidden_BMD: Tensor
    next_BM: Tensor
    """the token that followed each"""


class _Piece(NamedTuple):
    """Some queries of a segment, and what they find."""

    where: slice
    weights_BTS: Tensor
    """over the entries; rows of queries without any are meaningless, and their share is 0"""
    next_BS: Tensor
    share_T: Tensor
    """of the cache in the mixture"""


def _pieces(
    hidden_BTD: Tensor, targets_BT: Tensor, history: History | None, config: CacheConfig
) -> Iterator[_Piece]:
    history = history or History(hidden_BTD[:, :0], targets_BT[:, :0])
    all_BSD = torch.cat([history.hidden_BMD, hidden_BTD], dim=1)
    next_BS = torch.cat([history.next_BM, targets_BT], dim=1)
    M, T, window = history.next_BM.shape[1], hidden_BTD.shape[1], config.window
    for begin in range(0, T, PIECE):
        end = min(begin + PIECE, T)
        oldest = max(0, M + begin - window)
        held_T = torch.arange(M + begin, M + end, device=hidden_BTD.device)
        age_TS = held_T[:, None] - torch.arange(oldest, M + end, device=hidden_BTD.device)
        keys_BSD = all_BSD[:, oldest : M + end]
        scores_BTS = config.theta * torch.einsum("btd,bsd->bts", hidden_BTD[:, begin:end], keys_BSD)
        unseen_TS = (age_TS < 1) | (age_TS > window)
        scores_BTS = scores_BTS.masked_fill(unseen_TS, torch.finfo(scores_BTS.dtype).min)
        used_T = held_T > (window if config.wait == "for_window" else 0)
        yield _Piece(
            slice(begin, end),
            scores_BTS.softmax(-1),
            next_BS[:, oldest : M + end],
            config.lam * used_T.to(scores_BTS.dtype),
        )


def _mix(logp: Tensor, cache: Tensor, share: Tensor) -> Tensor:
    """log(share cache + (1 - share) p), all of one shape or broadcast to it."""
    return torch.logaddexp(share.log() + cache.log(), torch.log1p(-share) + logp)


def _remember(
    hidden_BTD: Tensor, targets_BT: Tensor, history: History | None, window: int
) -> History:
    if history is not None:
        hidden_BTD = torch.cat([history.hidden_BMD, hidden_BTD], dim=1)
        targets_BT = torch.cat([history.next_BM, targets_BT], dim=1)
    return History(hidden_BTD[:, -window:], targets_BT[:, -window:])


def mix_nll(
    nll_BT: Tensor,
    hidden_BTD: Tensor,
    targets_BT: Tensor,
    history: History | None,
    config: CacheConfig,
) -> tuple[Tensor, History]:
    """Nats of each target under the mixture.

    Args:
        nll_BT: nats of each target under the model.
        hidden_BTD: the hidden state that predicted it.
        targets_BT: ids.
        history: what the segment before left behind; None at the start of a text.
        config: window, theta, lam.

    Returns:
        (B, T) nats, and the history for the next segment.
    """
    parts = []
    for where, weights_BTS, next_BS, share_T in _pieces(hidden_BTD, targets_BT, history, config):
        same_BTS = next_BS[:, None, :] == targets_BT[:, where, None]
        cache_BT = (weights_BTS * same_BTS).sum(-1).to(nll_BT.dtype)
        parts.append(-_mix(-nll_BT[:, where], cache_BT, share_T.to(nll_BT.dtype)))
    return torch.cat(parts, dim=1), _remember(hidden_BTD, targets_BT, history, config.window)


def mix_log_probs(
    logp_BTC: Tensor,
    hidden_BTD: Tensor,
    targets_BT: Tensor,
    history: History | None,
    config: CacheConfig,
) -> tuple[Tensor, History]:
    """Log-probabilities of all classes under the mixture; otherwise as `mix_nll`."""
    parts = []
    for where, weights_BTS, next_BS, share_T in _pieces(hidden_BTD, targets_BT, history, config):
        index_BTS = next_BS[:, None, :].expand_as(weights_BTS)
        own_BTC = logp_BTC[:, where]
        cache_BTC = torch.zeros_like(own_BTC).scatter_add_(
            -1, index_BTS, weights_BTS.to(own_BTC.dtype)
        )
        parts.append(_mix(own_BTC, cache_BTC, share_T.to(own_BTC.dtype)[:, None]))
    return torch.cat(parts, dim=1), _remember(hidden_BTD, targets_BT, history, config.window)
