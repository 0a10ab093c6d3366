"""Scores: what every token of any text costs under a model.

    workbench.score("runs/mine", "def f(x):\\n    return x\\n").bits_per_character

Shapes: n tokens of text, k alternatives, C classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.carry import Carry
from workbench.data.corpus import Corpus
from workbench.data.vocabulary import Vocabulary
from workbench.errors import ConfigError
from workbench.metrics import bits_per_token
from workbench.models.language_model import LanguageModel
from workbench.reading import Source, Subject, Text, open_source, reading
from workbench.train import continuous_cache
from workbench.train.config import CacheConfig, EvalConfig
from workbench.train.evaluate import Out, Progress, Read, measure

logger = logging.getLogger("workbench")


@dataclass(frozen=True)
class Score:
    """A text, token by token. The arrays over scored tokens are on the CPU and of one length."""

    ids: Tensor
    """(n,) the text, unknown symbols as `<unk>`."""
    symbols: list[str]
    """(n,) a printable label of each; the numbers of a bare model."""
    positions: Tensor
    """(scored,) which tokens of the text were scored: all, or all but the first of the text (or
    stream) where nothing comes before it."""
    nll_nats: Tensor
    """(scored,) nats of each."""
    characters: int | None
    """Unicode characters that the scored tokens stand for; None for a bare model, and where one is
    a word that the vocabulary lacks."""
    n_bytes: int | None
    """Bytes that they stand for, in UTF-8; None where `characters` is."""
    unknown: int
    """How many tokens of the text are `<unk>`."""
    settings: str
    """The method with everything that changes the result."""
    log_probs: Tensor | None
    """(scored, C) of all classes, where asked for."""
    alternatives: Tensor | None
    """(scored, k) ids of the likeliest tokens, likeliest first, where asked for."""
    alternative_log_probs: Tensor | None
    """(scored, k) of those."""

    @property
    def cumulative_nats(self) -> Tensor:
        """(scored,) nats up to and with each token, float64."""
        return self.nll_nats.double().cumsum(0)

    @property
    def total_nats(self) -> float:
        return float(self.nll_nats.double().sum())

    @property
    def mean_nats(self) -> float:
        """Nats per scored token."""
        return self.total_nats / len(self.nll_nats)

    @property
    def bits_per_character(self) -> float | None:
        """Bits of the scored tokens over the characters that they stand for."""
        return bits_per_token(self.total_nats) / self.characters if self.characters else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits of the scored tokens over the bytes that they stand for: the same unit at every
        level."""
        return bits_per_token(self.total_nats) / self.n_bytes if self.n_bytes else None


def score(
    source: Source,
    text: Text,
    *,
    before: Text = "",
    config: EvalConfig | None = None,
    log_probs: bool = False,
    alternatives: int = 0,
    vocabulary: Vocabulary | Corpus | None = None,
    progress: Progress | None = None,
) -> Score:
    """What each token of a text costs.

    The model is left as it was, and no gradient is kept. Symbols that the vocabulary lacks are
    scored as `<unk>` and counted, with a warning in the log (none at byte and BPE level).

    Args:
        source: a run, its folder, or a model.
        text: text, bytes or ids, at least two tokens, or one where something comes `before`.
        before: read first and not scored; then the first token of `text` is scored too.
        config: how the text is cut, such as the recipe's `eval`. None: from its start on, with the
            context that `generate` has (see `reading.reading`).
        log_probs: keep the distribution at each token.
        alternatives: keep so many of the likeliest tokens at each.
        vocabulary: for a bare model.
        progress: called now and then with tokens done and tokens in all.

    Raises:
        ConfigError: text for a bare model, or a method that the model cannot be measured by.
        DataError: the text is too short, or has ids that the model does not know.
        DataMissing, CheckpointError: text without the run's corpus; see `open_source`.
    """
    subject = open_source(source, vocabulary)
    ids, ahead = subject.encode(text), subject.encode(before)
    config = config or reading(subject)
    if alternatives < 0:
        raise ConfigError(f"alternatives: got {alternatives}, expected 0 or more")
    k = min(alternatives, subject.model.vocab_size)
    read = _reader(subject.model, config.cache, log_probs, k) if log_probs or k else None
    whole = torch.cat([ahead, ids])
    kept, positions, _ = measure(subject.model, whole, config, read, progress=progress)
    scored = positions >= len(ahead)
    (nll, *more), positions = (x[scored] for x in kept), positions[scored] - len(ahead)
    known = subject.vocabulary
    characters, n_bytes = _lengths(known, ids[positions])
    return Score(
        ids=ids,
        symbols=subject.labels(ids),
        positions=positions,
        nll_nats=nll,
        characters=characters,
        n_bytes=n_bytes,
        unknown=_unknown(subject, text, ids),
        settings=config.describe(),
        log_probs=more.pop(0) if log_probs else None,
        alternatives=more[1] if k else None,
        alternative_log_probs=more[0] if k else None,
    )


def _unknown(subject: Subject, text: Text, ids: Tensor) -> int:
    """How many ids are `<unk>`; warns of symbols that became so."""
    count = ids.tolist().count(subject.vocabulary.unknown) if subject.vocabulary else 0
    if lacking := subject.unknown(text):
        logger.warning("%d tokens scored as <unk>: %s", count, lacking[:8])
    return count


def _lengths(known: Vocabulary | None, ids: Tensor) -> tuple[int | None, int | None]:
    """Characters and bytes that tokens stand for; None where that cannot be told."""
    if known is None or (known.level == "word" and known.unknown in ids.tolist()):
        return None, None
    return len(known.decode(ids)), len(known.raw(ids))


def _reader(model: LanguageModel, cache: CacheConfig | None, log_probs: bool, k: int) -> Read:
    """Keeps nats, then log-probabilities and the k likeliest tokens as they are asked for."""
    history: continuous_cache.History | None = None

    def read(tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Out, Carry]:
        nonlocal history
        hidden_BTD, carry = model.hidden(tokens_BT, targets_BT, carry)
        logp_BTC = model.vocabulary.log_probs(hidden_BTD)
        if cache is not None:
            logp_BTC, history = continuous_cache.mix_log_probs(
                logp_BTC, hidden_BTD, targets_BT, history, cache
            )
        out: Out = (-logp_BTC.gather(-1, targets_BT[..., None])[..., 0],)
        if log_probs:
            out += (logp_BTC,)
        if k:
            out += tuple(logp_BTC.topk(k, dim=-1))
        return out, carry

    return read
