"""Calibration against a plain loop over tokens, with ties, and under perfect predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.calibration import edges, reliability


def naive(confidence: list[float], correct: list[float], bins: int) -> tuple[float, list[int]]:
    """Expected calibration error and tokens of each bin, token by token; bins (low, high]."""
    inside: list[list[int]] = [[] for _ in range(bins)]
    for t, p in enumerate(confidence):
        at = next(i for i in range(bins) if p <= (i + 1) / bins)
        inside[at].append(t)
    total = 0.0
    for tokens in inside:
        if tokens:
            sure = sum(confidence[t] for t in tokens) / len(tokens)
            right = sum(correct[t] for t in tokens) / len(tokens)
            total += len(tokens) / len(confidence) * abs(right - sure)
    return total, [len(tokens) for tokens in inside]


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_error_is_that_of_a_plain_loop(bins: int) -> None:
    rng = np.random.default_rng(bins)
    # many ties, some of them on the borders of bins
    sure = np.concatenate([rng.integers(1, 9, 300) / 8, rng.random(300), [1.0, 1e-9]])
    right = (rng.random(len(sure)) < sure**1.5).astype(float)
    right[:40] = 0.5
    error, tokens = naive(list(sure), list(right), bins)
    found = reliability(sure, right, bins)
    assert found.ece == pytest.approx(error, rel=1e-12)
    assert list(found.tokens) == tokens and found.tokens.sum() == len(sure)
    assert found.overconfidence == pytest.approx(sure.mean() - right.mean())
    assert found.binning.startswith(f"{bins} bins of equal width")
    # the order of the tokens, and so any batching, is no matter
    order = rng.permutation(len(sure))
    again = reliability(sure[order], right[order], bins)
    assert again.ece == pytest.approx(found.ece, rel=1e-12)
    assert list(again.tokens) == tokens


def test_bins_of_equally_many_tokens_keep_ties_together() -> None:
    sure = np.array([0.2] * 50 + [0.4] * 10 + list(np.linspace(0.5, 0.9, 40)))
    border = edges(sure, 5, "count")
    assert list(border) == sorted(set(border)) and len(border) < 6
    found = reliability(sure, np.ones(100), 5, "count")
    # the fifty alike, then the rest in fifths of all tokens
    assert list(found.tokens) == [50, 10, 20, 20] and found.binning.startswith("4 bins")
    shuffled = np.random.default_rng(0).permutation(100)
    assert list(reliability(sure[shuffled], np.ones(100), 5, "count").tokens) == [50, 10, 20, 20]
    spread = np.random.default_rng(1).random(900)
    assert set(reliability(spread, np.ones(900), 9, "count").tokens) == {100}


def test_a_model_that_is_right_as_often_as_it_says_has_the_error_of_chance() -> None:
    rng, errors, gaps = np.random.default_rng(5), [], []
    sure = rng.beta(2, 1, size=2000)
    for _ in range(200):
        found = reliability(sure, (rng.random(2000) < sure).astype(float))
        errors.append(found.ece)
        gaps.append((found.accuracy - found.confidence) / found.standard_error)
    assert np.mean(errors) == pytest.approx(found.chance, rel=0.05)
    # each bin's standard error fits how far its gap strays, where it has tokens enough
    full = found.tokens > 60
    assert np.std(np.array(gaps)[:, full], axis=0) == pytest.approx(np.ones(full.sum()), abs=0.25)


def test_empty_bins_are_gaps_and_count_nothing() -> None:
    found = reliability([0.9, 0.9, 0.95], [1, 0, 1], 10)
    assert found.tokens.tolist() == [0] * 8 + [2, 1]
    assert np.isnan(found.accuracy[:8]).all() and found.accuracy[8] == 0.5
    expected = 2 / 3 * 0.4 + 1 / 3 * 0.05
    assert math.isclose(found.ece, expected, rel_tol=1e-9)
    for wrong in (([], []), ([0.5], [1, 0])):
        with pytest.raises(ValueError, match="equally many tokens"):
            reliability(*wrong)
