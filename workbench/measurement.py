"""What `evaluate.ipynb` measures of a run, or of two on the same text, and keeps as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from workbench import notebook, paired
from workbench.calibration import Reliability, reliability
from workbench.detail import Detail
from workbench.errors import ConfigError, DataError
from workbench.metrics import bits_per_token
from workbench.notebook import View
from workbench.probe import ContextPoint
from workbench.train import checkpoint

Array = NDArray[np.float64]


def step(view: View, which: str) -> int:
    """After which update the weights of a view were kept.

    Args:
        view: a run, opened.
        which: `last` or `best`, as it was opened.
    """
    found = (checkpoint.newest if which == "last" else checkpoint.best)(view.folder.checkpoints)
    assert found is not None, "what was opened has a checkpoint"
    return found.step


def open_other(
    view: View, checkpoint: str, other: str | None, other_checkpoint: str | None, split: str
) -> View | None:
    """The second model of a parameters cell, to compare on the same text; None: there is none.

    Args:
        view: the run of the notebook.
        checkpoint: which weights of it are open.
        other: folder of another run; None: the same one.
        other_checkpoint: `last` or `best` weights of that; None: `last` of another run.
        split: that both are to score.

    Raises:
        ConfigError: the very same weights, or a model that reads other tokens than this one.
        DataMissing, CheckpointError: no run there, or no checkpoint of it yet.
    """
    if other is None and other_checkpoint is None:
        return None
    which = other_checkpoint or "last"
    path = notebook.place(other) if other is not None else view.folder.path
    if path.resolve() == view.folder.path.resolve() and which == checkpoint:
        raise ConfigError(
            f"parameters other and other_checkpoint: got the {which} weights of {path}, which are "
            "the ones that are compared; choose another run, or the other checkpoint of this one"
        )
    found = notebook.open_run(path, which, parameter="other")
    check_same_text(view, found, split)
    return found


def check_same_text(view: View, other: View, split: str) -> None:
    """Refuse to compare models token by token that do not read the same tokens.

    Raises:
        ConfigError: tokens of another level, other symbols, or another text.
    """
    a, b = view.corpus, other.corpus
    if a.level != b.level:
        raise ConfigError(
            f"parameter other: its tokens are of level {b.level}, those of this run of level "
            f"{a.level}. What a token costs is then the cost of another piece of text, so that no "
            "two losses belong together; compare bits per byte of the whole text in compare.ipynb"
        )
    ours, theirs = a.vocabulary, b.vocabulary
    if ours.size != theirs.size or ours.symbols() != theirs.symbols():
        raise ConfigError(
            f"parameter other: its vocabulary of {theirs.size:,} symbols is not that of this run, "
            f"of {ours.size:,}; a token would mean two things. Choose a run on the same corpus"
        )
    first, second = a.splits[split], b.splits[split]
    if not torch.equal(first, second):
        raise ConfigError(
            f"parameter other: its {split} text ({len(second):,} tokens of sha256 "
            f"{b.info['sha256']:.12}) is not that of this run ({len(first):,} of "
            f"{a.info['sha256']:.12}); choose a run on the same corpus with the same split"
        )


def names(view: View, checkpoint: str, other: View, other_checkpoint: str | None) -> list[str]:
    """What to call two models, by what tells them apart: recipe, run folder, or weights."""
    which = [checkpoint, other_checkpoint or "last"]
    views = (view, other)
    for told in (
        [v.recipe.name for v in views],
        [v.folder.path.name for v in views],
        which,
        ["A", "B"],
    ):
        if told[0] != told[1]:
            break
    steps = (step(v, w) for v, w in zip(views, which, strict=True))
    return [f"{name} (step {n:,})" for name, n in zip(told, steps, strict=True)]


class Pair(NamedTuple):
    """Two evaluations, where both scored the same tokens of the text."""

    at: tuple[NDArray[np.intp], NDArray[np.intp]]
    """(n,) each: which of the first's, and of the second's scored tokens"""
    positions: NDArray[np.int64]
    """(n,) where in the text"""
    bits: tuple[Array, Array]
    """(n,) each: bits of each token under the first and the second"""
    compared: paired.Comparison
    """in bits"""


def pair(a: Detail, b: Detail) -> Pair:
    """Compare two evaluations of one text, each as its own recipe says, token by token.

    Raises:
        DataError: hardly a token was scored by both.
    """
    first, second = (d.evaluation for d in (a, b))
    where, at_a, at_b = np.intersect1d(
        first.positions.numpy(), second.positions.numpy(), return_indices=True
    )
    if len(where) < 2:
        raise DataError(
            f"got {len(where)} tokens that both models scored, expected at least 2; give "
            "max_tokens, or recipes that measure the same part of the text"
        )
    bits = (
        bits_per_token(1.0) * first.nll_nats.double().numpy()[at_a],
        bits_per_token(1.0) * second.nll_nats.double().numpy()[at_b],
    )
    return Pair((at_a, at_b), where, bits, paired.compare(*bits))


def calibration(detail: Detail, bins: int) -> Reliability:
    """How sure the model was against how often it was right, over all scored tokens.

    Raises:
        ConfigError: no bin.
    """
    if bins < 1:
        raise ConfigError(f"parameter bins: got {bins}, expected 1 or more")
    return reliability(detail.confidence.numpy(), detail.correct.numpy(), bins)


def save_evaluation(
    view: View,
    details: Mapping[str, Detail],
    baselines: Mapping[str, float],
    points: Sequence[ContextPoint],
    bins: int = 15,
    compared: Mapping[str, Any] | None = None,
) -> None:
    """Keep what `evaluate.ipynb` measured, as `evaluation.json` in the run folder.

    Args:
        view: the run.
        details: split -> evaluation in detail.
        baselines: name -> bits per token on the last of these splits.
        points: loss by context length.
        bins: of the calibration.
        compared: with another model; see `comparison_data`.
    """
    scores = {split: detail.evaluation for split, detail in details.items()}
    result = {
        "recipe": view.recipe.name,
        "n_parameters": view.model.n_parameters,
        "unit": view.corpus.unit,
        "comparable": notebook.comparable(view.corpus, scores),
        "splits": {
            split: {
                "loss_nats": score.mean_nats,
                "tokens": score.tokens,
                "bytes_per_token": notebook.bytes_per_token(
                    view.corpus, view.corpus.splits[split][score.positions]
                ),
                "method": score.method,
                "context_len": score.context_len,
                "seconds": round(score.seconds, 3),
                "rows": score.rows,
                "reach": view.model.reach(score.context_len),
            }
            for split, score in scores.items()
        },
        "baselines_bits": dict(baselines),
        "by_context": [point._asdict() for point in points],
        "calibration": {split: _calibration_data(d, bins) for split, d in details.items()},
        "paired": compared,
    }
    text = json.dumps(result, indent=1, allow_nan=False)
    view.folder.artefact("evaluation.json").write_text(text + "\n", encoding="utf-8")


def _calibration_data(detail: Detail, bins: int) -> dict[str, Any]:
    found = calibration(detail, bins)
    columns = {
        "low": found.edges[:-1],
        "high": found.edges[1:],
        "tokens": found.tokens,
        "confidence": found.confidence,
        "accuracy": found.accuracy,
        "standard_error": found.standard_error,
    }
    plain = {name: [_number(x) for x in column.tolist()] for name, column in columns.items()}
    return {
        "binning": found.binning,
        "ece": found.ece,
        "ece_by_chance": found.chance,
        "overconfidence": found.overconfidence,
        "accuracy": float(detail.correct.double().mean()),
        "among_five": detail.within(5),
        "bins": [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)],
    }


def _number(x: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(x) else x


def comparison_data(
    found: Pair, called: Sequence[str], other: View, other_checkpoint: str | None, split: str
) -> dict[str, Any]:
    """A paired comparison as plain data: bits per token that the other model saves.

    Args:
        found: what was compared.
        called: the names of both.
        other: the second model.
        other_checkpoint: which weights of it.
        split: of the text.
    """
    mean, told = found.compared.mean, found.compared
    return {
        "a": called[0],
        "b": called[1],
        "other": str(other.folder.path),
        "other_recipe": other.recipe.name,
        "other_checkpoint": other_checkpoint or "last",
        "split": split,
        "tokens": len(found.positions),
        "a_bits": float(found.bits[0].mean()),
        "b_bits": float(found.bits[1].mean()),
        "saved_bits": mean.mean,
        "standard_error_bits": mean.standard_error,
        "low_bits": mean.low,
        "high_bits": mean.high,
        "method": mean.method,
        "b_better": told.better,
        "b_worse": told.worse,
        "verdict": told.verdict,
    }
