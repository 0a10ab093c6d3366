"""Figures of spans over time, under text, against use and cost: the numbers that were given."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from test_plots import SPANS, TEXT, numbers, probs, records

from workbench.distances import distances_TS
from workbench.plots import head_mask, span_history, span_use, style, token_spans

rng = np.random.default_rng(0)
ALLOWED = [[7, 9, 12, 16], [8, 24, 4, 6]]
WITHIN = [[[1, 4, 6]] * 4, [[2, 3, 4]] * 4]
DYNAMIC = [rng.random((2, 500)) * 30, rng.random((3, 500)) * 8]

FIGURES: dict[str, Callable[[], go.Figure]] = {
    "span_evolution": lambda: span_history.span_evolution(records(5000)),
    "context_used": lambda: span_use.context_used(ALLOWED, WITHIN, SPANS, [None, None]),
    "context_used, persistent": lambda: span_use.context_used(
        ALLOWED, WITHIN, SPANS, [None, [0.1, 0.2, 0.3, 0.4]], [1, 3]
    ),
    "head_mask": lambda: head_mask.head_mask(
        probs(), layer=1, head=2, learned=(20.0, 4), limit=64, tried=(30.5, 8)
    ),
    "token_spans": lambda: token_spans.token_spans(DYNAMIC, (TEXT * 8)[:500], [0, 2]),
    "span_costs": lambda: span_use.costs([(9.0, 6.0, 3.0)] * 2, [(8.0, 4.0, 2.0)] * 2, [0, 2]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_is_small_titled_and_has_titled_axes(name: str) -> None:
    text = FIGURES[name]().to_json()
    assert len(text) <= 500_000, f"{len(text):,} bytes"
    plain = json.loads(text)
    assert plain["layout"]["title"]["text"] and plain["layout"]["meta"]["caption"]
    for letter in "xy":
        axes = [v for k, v in plain["layout"].items() if k.startswith(f"{letter}axis")]
        assert any(axis.get("title", {}).get("text") for axis in axes)
    for trace in plain["data"]:
        if trace["type"] == "heatmap":
            assert trace["z"]["dtype"] == "f4"
            assert max(numbers(trace["z"]).shape) <= style.MAX_SIDE


def test_a_mask_lies_over_the_attention_by_distance() -> None:
    gap = distances_TS(5, 20)
    weights = 0.75 * (gap == 3) + 0.25 * (gap == 9)
    fig = head_mask.head_mask(weights, layer=0, head=1, learned=(7.5, 4), limit=16)
    mass, learned, tried = fig.data
    assert dict(zip(mass.x, mass.y, strict=True)) == {
        d: {3: 0.75, 9: 0.25}.get(d, 0) for d in range(1, len(mass.x) + 1)
    }
    at = np.interp([1, 8, 9, 10, 11, 12], learned.x, learned.y)
    assert at == pytest.approx([1, 1, 0.875, 0.625, 0.375, 0.125], abs=1e-6)
    assert tried.visible == "legendonly"
    assert "may see 12 tokens; 90% of its attention lies within 9" in fig.layout.title.text


def test_context_used_shows_what_was_given() -> None:
    fig = FIGURES["context_used, persistent"]()
    allowed = [t for t in fig.data if t.name and "allowed" in t.name]
    assert [list(t.y) for t in allowed] == ALLOWED
    assert [t.name for t in allowed] == ["layer 2: allowed", "layer 4: allowed"]
    assert [t.marker.color for t in allowed] == [style.layer_colour(1), style.layer_colour(3)]
    marks = [t for t in fig.data if t.name == "90% of the attention"]
    assert [list(t.y) for t in marks] == [[4.0] * 4, [3.0] * 4]
    # 4/7, 4/9, 4/12, 4/16, 3/8, 3/24, 3/4, 3/6 have the median (3/8 + 4/9) / 2
    assert "in the nearest 41%" in fig.layout.title.text
    shares = fig.data[-1]
    assert list(shares.y) == pytest.approx([0.1, 0.2, 0.3, 0.4]) and shares.yaxis == "y2"


def test_spans_of_tokens_stand_under_their_text() -> None:
    fig = FIGURES["token_spans"]()
    lines = [np.asarray(trace.z) for trace in fig.data]
    whole = np.concatenate([np.concatenate(DYNAMIC)[:, :256]])
    assert np.concatenate(lines, axis=1) == pytest.approx(whole, rel=1e-6)
    written = "".join(w for i in range(1, 5) for w in _axis(fig, "x", i).ticktext)
    assert written == "".join(map(style.shown, (TEXT * 8)[:256])) and "&lt;b&gt;" in written
    assert list(_axis(fig, "y", 1).ticktext) == ["1.1", "1.2", "3.1", "3.2", "3.3"]
    # words are longer, and fewer of them stand in a line
    words = token_spans.token_spans(DYNAMIC, ["longer "] * 500)
    assert [len(trace.x) for trace in words.data] == [9] * 4


def _axis(fig: go.Figure, letter: str, number: int) -> Any:
    return fig.layout[f"{letter}axis{number if number > 1 else ''}"]


def test_each_frame_holds_the_spans_of_its_step() -> None:
    fig = span_history.span_evolution(records())
    assert [f.name for f in fig.frames] == [str(10 * i) for i in range(1, 61)]
    final = [sorted(heads) for heads in SPANS]
    bars = fig.data[-1]
    assert list(bars.y) == pytest.approx([z for heads in final for z in heads])
    assert np.asarray(bars.customdata).tolist() == [
        *([1, 1], [1, 2], [1, 3], [1, 4]),
        *([2, 3], [2, 4], [2, 1], [2, 2]),
    ]
    for i in (0, 29, 59):
        frame = fig.frames[i]
        line, heights = frame.data
        assert list(line.x) == [10 * (i + 1)] * 2 and list(frame.traces) == [10, 11]
        part = [z * (i + 1) / 60 for heads in final for z in heads]
        assert list(heights.y) == pytest.approx(part, rel=1e-6)
    assert "At step 300 the mean span is 3.4" in fig.frames[29].layout.title.text
    steps = fig.layout.sliders[0].steps
    assert [s.args[0] for s in steps] == [(f.name,) for f in fig.frames]
    assert len(span_history.span_evolution(records(5000)).frames) == span_history.MOST_FRAMES
