"""Figures of an evaluation: calibration, what was expected, two models side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench import kept, paired
from workbench.calibration import reliability
from workbench.plots import alternatives, calibration, difference, evaluation
from workbench.plots.alternatives import Expected
from workbench.plots.passages import Passage, plain, render

rng = np.random.default_rng(0)
SURE = rng.beta(2, 1, size=5000)
RIGHT = (rng.random(5000) < SURE**2).astype(float)
SAVED = paired.compare(2 + rng.standard_normal(300_000), 1.5 + rng.standard_normal(300_000))
NAMES = ["a <b>", "b"]
TOLD = Expected("<i>", 4.0, 9, ["e", " ", "\x1b"], [0.5, 0.25, 0.01])

FIGURES = {
    "calibration": lambda: calibration.reliability_diagram(reliability(SURE, RIGHT)),
    "one token": lambda: alternatives.likeliest({"": TOLD}),
    "one token, two models": lambda: alternatives.likeliest({"a <b>": TOLD, "b": TOLD}),
    "spread": lambda: difference.difference_histogram(SAVED, NAMES),
    "along": lambda: difference.difference_along(SAVED.saved, SAVED.mean, NAMES),
}


@pytest.mark.parametrize("name", FIGURES)
def test_is_small_titled_has_units_and_escapes(name: str) -> None:
    fig = FIGURES[name]()
    text = fig.to_json()
    assert len(text) < 100_000 and "<b>" not in text and "<i>" not in text
    plain = json.loads(text)
    assert plain["layout"]["title"]["text"] and plain["layout"]["meta"]["caption"]
    axes = {k: v for k, v in plain["layout"].items() if re.fullmatch(r"[xy]axis\d*", k)}
    for letter in "xy":
        told = [a.get("title", {}).get("text") for k, a in axes.items() if k.startswith(letter)]
        assert any(told)


def test_the_diagram_shows_each_bin() -> None:
    found = reliability(SURE, RIGHT, 10)
    fig = calibration.reliability_diagram(found)
    line, bars = fig.data[1], fig.data[2]
    assert np.allclose(line.x, found.confidence, atol=1e-6)
    assert np.allclose(line.y, found.accuracy, atol=1e-6)
    assert np.allclose(np.asarray(bars.y).sum(), 1) and list(fig.data[0].x) == [0, 1]
    assert "claims too much" in fig.layout.title.text
    assert f"{found.ece:.4f} in 10 bins" in fig.layout.title.subtitle.text


def test_the_token_that_came_is_among_the_bars_once() -> None:
    fig = alternatives.likeliest({"": TOLD})
    assert list(fig.data[0].y) == ["e  1", "␣  2", "␛  3", "→ &lt;i&gt;  9"]
    assert np.allclose(fig.data[0].x, [0.5, 0.25, 0.01, np.exp(-4)])
    assert fig.layout.title.text == "&lt;i&gt; came: rank 9, 4.00 nats"
    hit = alternatives.likeliest({"": TOLD._replace(symbol=" ", rank=2)})
    assert list(hit.data[0].y) == ["e  1", "→ ␣  2", "␛  3"]
    assert alternatives.tip(TOLD).split("\n") == [
        "<i>  4.00 nats (5.77 bits), p = 0.0183, rank 9",
        "likeliest: e 0.500   ␣ 0.250   ␛ 0.010",
    ]


def test_the_spread_holds_every_token_on_its_side() -> None:
    fig = difference.difference_histogram(SAVED, NAMES)
    for trace, share in zip(fig.data, (SAVED.worse, SAVED.better), strict=True):
        assert np.asarray(trace.y).sum() == pytest.approx(share, abs=1e-4)
    assert max(fig.data[0].x) < 0 < min(fig.data[1].x)
    assert fig.layout.title.text == f"b saves {SAVED.mean.mean:.3f} bits per character"
    nothing = paired.compare([1.0, 2.0], [1.0, 2.0])
    assert "No difference" in difference.difference_histogram(nothing, NAMES).layout.title.text


def test_the_difference_along_a_text() -> None:
    saved = np.concatenate([np.full(500, -1.0), np.full(500, 2.0)])
    fig = difference.difference_along(saved, paired.mean(saved), NAMES, bins=10)
    assert list(fig.data[0].y) == [-1.0] * 5 + [2.0] * 5
    assert fig.data[1].y[-1] == pytest.approx(0.5)
    assert len(set(fig.data[0].marker.color)) == 2 and "50% of 10" in fig.layout.title.text


def test_a_difference_is_kept_and_drawn_as_text(tmp_path: Path) -> None:
    passage = Passage("t<b>", ["<", "x", "\n"], [2.0, -4.0, 0.0], None, ("a<i>", "b"))
    file = tmp_path / "differences.json"
    file.write_text(json.dumps(plain([passage])), encoding="utf-8")
    (back,) = kept.read(file).passages
    assert back.models == ("a<i>", "b") and list(back.values or ()) == [2.0, -4.0, 0.0]
    page = render([back])
    assert page == render([passage]) and "<b>" not in page and "<i>" not in page
    assert "a&lt;i&gt; is better" in page and "b is better" in page
    # of 4 bits in full: half of vermilion for the first, all of blue for the second
    assert 'rgba(224,106,27,0.400)">&lt;' in page and 'rgba(0,114,178,0.800)">x' in page


def test_the_curve_of_contexts_tells_what_the_longest_saves() -> None:
    told = [(1.0, 0.9, 1.1), (0.0, 0.0, 0.0)]
    fig = evaluation.loss_by_context([1, 64], [3.0, 2.0], [0.1, 0.1], saved=told)
    assert "buys 1.000 bits per character (0.900 to 1.100" in fig.layout.title.text
    assert "saves 1.000 more" in fig.data[0].text[0] and fig.data[0].text[1] == ""


def test_names_of_models_are_text_in_the_bars() -> None:
    fig: go.Figure = evaluation.comparison_bars({"<b>x": 2.0}, {"xz": 2.5})
    assert "<b>" not in fig.to_json() and "&lt;b&gt;x" in fig.to_json()
