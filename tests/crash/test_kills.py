"""Runs killed by SIGKILL at random moments and started again end as if nobody had touched them.

Half of the processes kill themselves at a change to the disk that is drawn by lot (before it, after
a part of its bytes, or after it), half are killed from outside after a time drawn by lot. What is
compared, bit for bit: records, weights, optimizer, carry, position in the text, random numbers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crash import table
from crash.compare import differences, run_folder
from crash.conftest import Trainee
from crash.mixers import MIXERS

KILLS = 12
"""of each mixer's runs, by `make test-crash`"""


@pytest.fixture
def kill(
    trainee: Trainee, undisturbed: Any, tmp_path: Path, record_property: Callable[..., None]
) -> Callable[[str, int], None]:
    """`kill(mixer, n)`: n kills, and as many runs as that takes, each compared at its end."""

    def survive(mixer: str, n: int) -> None:
        draw = random.Random(f"{table.seed()} {mixer}")
        recipe, expected = undisturbed(mixer)
        place = tmp_path / mixer.replace(" ", "-")
        whole = trainee.forked(recipe, place / "whole")
        assert whole["status"] == 0, whole["told"]
        assert differences(run_folder(place / "whole"), expected) == []
        struck: Counter[str] = Counter()
        runs = 0
        while struck.total() < n:
            out = place / f"run-{runs}"
            struck += one_run(trainee, recipe, out, whole, draw, n - struck.total())
            assert differences(run_folder(out), expected) == [], f"--crash-seed {table.seed()}"
            runs += 1
        record_property(table.KEY, [mixer, dict(struck), runs])

    return survive


def one_run(
    trainee: Trainee,
    recipe: Path,
    out: Path,
    whole: dict[str, Any],
    draw: random.Random,
    most: int,
) -> Counter[str]:
    """Kill a run up to `most` times, until a process was quicker; where it was struck."""
    struck: Counter[str] = Counter()
    while True:
        blow, after_s = None, None
        if struck.total() < most:
            if draw.random() < 0.5:
                # its beginning is short, and matters
                share = 0.05 if draw.random() < 0.2 else 0.4
                call = 1 + int(draw.random() * share * int(whole["told"]))
                blow = [call, draw.random(), draw.choice(["before", "within", "after"])]
            else:
                after_s = draw.random() * 0.6 * whole["seconds"]
        ended = trainee.forked(recipe, out, blow, after_s)
        if ended["status"] == 0:
            return struck
        assert ended["status"] == -9, ended["told"]
        struck[_place(ended, out, blow is None)] += 1


def _place(ended: dict[str, Any], out: Path, by_clock: bool) -> str:
    told = ended["told"]
    if "/checkpoints" in told or ended["writing"]:
        return "checkpoint"
    if not (out / "recipe.yaml").exists():
        return "beginning"
    if "records" in told:
        return "records"
    return "by the clock" if by_clock else "elsewhere"


@pytest.mark.crash
@pytest.mark.parametrize("mixer", MIXERS)
def test_killed_runs_end_as_if_nobody_had_touched_them(
    mixer: str, kill: Callable[[str, int], None]
) -> None:
    kill(mixer, KILLS)


def test_some_kills(kill: Callable[[str, int], None]) -> None:
    """The short version, in one test: for each worker of pytest, two programs load PyTorch."""
    for mixer in ("transformer-xl", "qrnn, nt-asgd"):
        kill(mixer, 4)


@pytest.mark.crash
def test_the_recipes_hold_what_they_are_there_for(undisturbed: Any) -> None:
    """Averaging begins, and a scaled gradient overflows, in the middle of a run; a comparison finds
    what differs."""
    _, averaged = undisturbed("qrnn, nt-asgd")
    since = [row["averaged_from"] for row in averaged.records("eval")]
    assert since[0] is None and 0 < since[-1] < 24
    _, scaled = undisturbed("fp16, recomputed")
    assert any(row["skipped"] for row in scaled.records("train")[1:])
    _, other = undisturbed("transformer-xl")
    assert len(differences(averaged, other)) > 3
