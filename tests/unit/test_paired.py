"""Paired comparison: the standard error by definition, intervals that hold what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from workbench import paired

Array = NDArray[np.float64]


def naive_error(x: Array, width: int) -> float:
    """Newey and West's estimate, lag by lag."""
    n, d = len(x), x - x.mean()
    total = sum(d[t] ** 2 for t in range(n)) / n
    for lag in range(1, width):
        gamma = sum(d[t] * d[t - lag] for t in range(lag, n)) / n
        total += 2 * (1 - lag / width) * gamma
    return math.sqrt(total / n)


def dependent(n: int, rho: float, rng: np.random.Generator) -> Array:
    """A row in which each number keeps a share `rho` of the one before; its mean is 0."""
    noise, x = rng.standard_normal(n), np.empty(n)
    x[0] = noise[0] / math.sqrt(1 - rho**2)
    for t in range(1, n):
        x[t] = rho * x[t - 1] + noise[t]
    return x


@pytest.mark.parametrize(("n", "width"), [(2, 1), (7, 3), (40, 9), (40, 40)])
def test_the_standard_error_is_that_of_the_definition(n: int, width: int) -> None:
    x = dependent(n, 0.6, np.random.default_rng(n))
    assert paired.standard_error(x, width) == pytest.approx(naive_error(x, width), rel=1e-9)
    found = paired.mean(x)
    assert found.bandwidth == min(n, math.ceil(1.3 * math.sqrt(n)))
    assert found.standard_error == pytest.approx(naive_error(x, found.bandwidth), rel=1e-9)
    assert found.mean == pytest.approx(x.mean())
    assert found.high - found.mean == pytest.approx(found.mean - found.low)


def test_resampling_blocks_gives_the_same_standard_error() -> None:
    """The moving-block bootstrap, another way to the same quantity."""
    rng = np.random.default_rng(3)
    x, width = dependent(2000, 0.7, rng), 40
    blocks = np.lib.stride_tricks.sliding_window_view(x, width).mean(-1)
    picks = rng.integers(len(blocks), size=(4000, len(x) // width))
    resampled = blocks[picks].mean(-1).std()
    assert paired.standard_error(x, width) == pytest.approx(resampled, rel=0.06)
    assert paired.standard_error(x, 1) < 0.6 * resampled, "dependence must show here"


@pytest.mark.parametrize(("n", "rho"), [(600, 0.0), (600, 0.5), (1200, 0.8), (50, 0.0)])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int, rho: float) -> None:
    rng, count = np.random.default_rng(17), 400
    hits, as_if_independent = 0, 0
    for _ in range(count):
        x = dependent(n, rho, rng)
        found = paired.mean(x)
        hits += found.low <= 0 <= found.high
        as_if_independent += abs(x.mean()) <= 1.96 * x.std() / math.sqrt(n)
    # three standard deviations of so many throws, and a little for strong dependence
    assert 0.95 - 0.033 - 0.02 * (rho > 0.7) <= hits / count <= 0.95 + 0.033
    if rho >= 0.5:
        assert as_if_independent / count < 0.82, "this interval must fail where neighbours agree"


def test_a_comparison_says_who_wins_and_where() -> None:
    a, b = np.array([3.0, 1.0, 2.0, 2.0] * 50), np.array([1.0, 2.0, 2.0, 1.0] * 50)
    found = paired.compare(a, b)
    assert list(found.saved[:4]) == [2.0, -1.0, 0.0, 1.0]
    assert (found.better, found.worse) == (0.5, 0.25)
    assert (found.won, found.lost) == (0.75, 0.25)
    assert found.mean.mean == pytest.approx(found.won - found.lost)
    assert found.verdict == "B is better" and paired.compare(b, a).verdict == "A is better"
    assert paired.compare(b, a).mean.mean == -found.mean.mean
    noise = np.random.default_rng(0).standard_normal(500)
    assert paired.compare(noise, noise[::-1]).verdict == "no difference is proven"
    same = paired.compare(a, a)
    assert same.verdict == "no difference is proven" and same.mean[:4] == (0, 0, 0, 0)
    assert "Newey-West over 19 tokens" in found.mean.method


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="same tokens"):
        paired.compare(np.ones(5), np.ones(6))
    with pytest.raises(ValueError, match="at least 2"):
        paired.mean([1.0])
