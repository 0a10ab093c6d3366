"""Figures from plain arrays: the right numbers, titled axes, small, no upload button."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.distances import distances_TS
from workbench.plots import (
    benchmark,
    curves,
    evaluation,
    fast_weights,
    generation,
    recipes,
    retrieval,
    rules,
    spans,
    style,
    writing,
)

rng = np.random.default_rng(0)
SPANS = [[3.0, 5.0, 8.0, 12.0], [4.0, 20.0, 0.0, 2.0]]
PARTS = {"vocabulary": {"vocabulary": 50}, "mixer": {str(i): 100 for i in range(36)}}
TEXT = list("def f(x):\n    return x <b>bold</b> & more of the text that is read here")


def records(count: int = 60) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i in range(1, count + 1):
        train = {"kind": "train", "step": 10 * i, "loss_nats": 2.0 + 3.0 / i, "lr": 1e-3 / i}
        train |= {"grad_norm": 0.5, "tokens_per_s": 1000.0 + i}
        rows.append(train | {"readings": {"span": [[s * i / count for s in x] for x in SPANS]}})
    rows.append({"kind": "eval", "step": 300, "loss_nats": 2.5})
    return [*rows, {"kind": "eval", "step": 600, "loss_nats": 2.2}]


ONCE = retrieval.Example([2, 0, 1], [1, 2, 0], 0)
AGAIN = retrieval.Example([2, 0, 2, 1, 0, 2], [1, 2, 0, 1, 1, 2], 2)
PAIRS = {20: 0.001, 60: 0.4, 40: 0.002, 80: None}


LIMIT = {"group": "limits", "name": "limit: fp32 GEMM", "size": "2048", "way": "", "rate": 270.0}
LIMIT |= {"unit": "GFLOP/s", "device": "a processor", "threads": 2, "ours_ms": 60.0, "sweep": ""}
LIMIT |= {
    "dtype": "float32",
    "backend": "torch",
    "peer": None,
    "peer_ms": None,
    "ratio": None,
    "target": None,
}


def measured(T: int, target: float | None, **told: Any) -> dict[str, Any]:
    """A row in which the peer takes three times as long."""
    row = {"group": "g", "name": "delta", "size": f"T{T}", "way": "fwd+bwd", "backend": "cpp"}
    row |= {"dtype": "float32"}
    row |= {"peer": "loop", "ours_ms": T / 64, "peer_ms": 3 * T / 64, "ratio": 3.0, "note": ""}
    row |= {"target": target, "sweep": "T", "x": T, "disturbed": False, "gemm_fraction": 0.4}
    return row | {"ours_spread_ms": [0.9, 1.1]} | told


ROWS = [LIMIT, measured(64, 2.0), measured(256, 4.0), measured(1024, None)]
ROWS += [measured(64, 1.0, name="sum", peer_ms=1.5, gemm_fraction=None, memory_fraction=1.3)]


def matrices(T: int = len(TEXT), F: int = 16, V: int = 8) -> np.ndarray:
    return rng.normal(size=(T, F, V)).cumsum(0)


def probs(T: int = 32, S: int = 96) -> np.ndarray:
    gap = distances_TS(T, S)
    weight = np.exp(-np.clip(gap, 0, None) / 8.0) * (gap >= 0)
    return weight / weight.sum(-1, keepdims=True)


def both(make: Callable[[], Any]) -> dict[str, Any]:
    return {"delta": make(), "sum": make()}


FIGURES: dict[str, Callable[[], go.Figure]] = {
    "learning_curve": lambda: curves.learning_curve(records()),
    "training": lambda: curves.training(records()),
    "training, nothing yet": lambda: curves.training([]),
    "span_over_training": lambda: curves.span_over_training(records(5000)),
    "parameters_by_part": lambda: recipes.parameters_by_part(PARTS, "a-recipe"),
    "span_bars": lambda: spans.span_bars(SPANS),
    "span_bars log": lambda: spans.span_bars(SPANS, "log"),
    "span_bars dynamic": lambda: spans.span_bars(SPANS, spread=SPANS),
    "span_heatmap": lambda: spans.span_heatmap(SPANS),
    "span_heatmap ragged": lambda: spans.span_heatmap([[1.0], [2.0, 3.0]], "linear"),
    "soft_mask": lambda: spans.soft_mask_ramp([np.tile(np.linspace(1, 0, 8000), (8, 1))] * 12, 16),
    "attention_map": lambda: spans.attention_map(probs(512, 4096), layer=0, head=1),
    "attention_map, words": lambda: spans.attention_map(
        probs(), layer=0, head=1, symbols=(TEXT * 3)[:96], span=20.0, ramp=4
    ),
    "attention_by_distance": lambda: spans.attention_by_distance([np.stack([probs()] * 2)]),
    "matrix_over_time": lambda: fast_weights.matrix_over_time(
        matrices(F=128, V=64), TEXT, layer=0, head=0
    ),
    "film_strip": lambda: fast_weights.film_strip(matrices(F=200, V=90), TEXT, layer=0, head=0),
    "writes": lambda: fast_weights.writes(
        rng.random(len(TEXT)), rng.random(len(TEXT)), TEXT, layer=1, head=0
    ),
    "read_back": lambda: fast_weights.read_back(
        {3: rng.random(len(TEXT))}, TEXT, rule="delta", layer=0, head=0
    ),
    "delta_against_sum": lambda: rules.delta_against_sum(
        both(lambda: rng.random(30)), both(lambda: rng.normal(size=(16, 8)))
    ),
    "rank_over_time": lambda: rules.rank_over_time(both(matrices)),
    "comparison": lambda: evaluation.comparison_bars({"m": 2.0}, {"unigram": 4.5, "xz": 2.5}),
    "loss_by_context": lambda: evaluation.loss_by_context([1, 4, 16], [4.0, 3.0, 2.9], [0.1] * 3),
    "loss_by_pairs": lambda: retrieval.loss_by_pairs(
        {"a": PAIRS, "b": {}}, {"a": {20: 0.1, 60: 0.3}}, {"a": 30, "b": None}, "log"
    ),
    "task": lambda: retrieval.task({"capacity": ONCE, "update": AGAIN}),
    "retrieval training": lambda: retrieval.training(
        records(), "elu", 60, published=0.02, goal=0.001
    ),
    "retrieval training, none yet": lambda: retrieval.training([], "", 0),
    "past_in_use": lambda: writing.past_in_use(
        range(3, 5003), {"write strength": {0: rng.random(5000)}}, [64] * 5000, range(5000), {}
    ),
    "past_in_use, nothing yet": lambda: writing.past_in_use([], {"norm": {0: []}}, [], [], {}),
    "rivals": lambda: writing.rivals(["a", "<b>", "␣"], [0.5, 0.2, 0.1], "x", 0.01, 17),
    "rivals, nothing yet": lambda: writing.rivals([], [], "", 0.0, 1),
    "surprise": lambda: generation.surprise_by_temperature([0.5, 1.0, 2.0], [1.0, 2.0, 5.0], 2.2),
    "cache_grid": lambda: generation.cache_grid(
        [0.1, 1.0], [0.1, 0.2, 0.3], [[2.0, 1.9, 2.2], [2.1, 1.8, 2.3]], 2.0, "word"
    ),
    "cache_gain": lambda: generation.cache_gain(rng.random(9000) + 0.1, rng.random(9000)),
    "against_targets": lambda: benchmark.against_targets(ROWS),
    "fractions": lambda: benchmark.fractions(ROWS),
    "fractions, none": lambda: benchmark.fractions([LIMIT]),
    "growth": lambda: benchmark.growth(ROWS, "T"),
    "growth, none": lambda: benchmark.growth(ROWS, "span"),
    "loss_by_position": lambda: evaluation.loss_by_position(rng.random(300_000)),
}
by_figure = pytest.mark.parametrize("name", FIGURES)


def numbers(value: Any) -> np.ndarray:
    """A plotly array, however it was encoded."""
    if isinstance(value, dict):
        flat = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        shape = [int(s) for s in str(value.get("shape", len(flat))).split(",")]
        return flat.reshape(shape)
    return np.asarray(value, dtype=float)


@by_figure
def test_is_small_titled_and_has_titled_axes(name: str) -> None:
    fig = FIGURES[name]()
    text = fig.to_json()
    assert len(text) <= 500_000, f"{len(text):,} bytes"
    plain = json.loads(text)
    assert plain["layout"]["title"]["text"]
    axes = {k: v for k, v in plain["layout"].items() if re.fullmatch(r"[xy]axis\d*", k)}
    shown = [a for a in axes.values() if a.get("showticklabels", True) and "matches" not in a]
    assert any(a.get("title", {}).get("text") for a in shown)
    for letter in "xy":
        first = axes.get(f"{letter}axis", {})
        others = [a for k, a in axes.items() if k.startswith(letter) and k != f"{letter}axis"]
        titles = [a.get("title", {}).get("text") for a in (first, *others)]
        # a categorical axis of names says it all
        assert any(titles) or name == "comparison", f"{letter} axis of {name} has no title"


@by_figure
def test_uses_no_wide_floats_for_maps(name: str) -> None:
    for trace in json.loads(FIGURES[name]().to_json())["data"]:
        if trace["type"] == "heatmap":
            assert trace["z"]["dtype"] in ("f4", "u1", "i1")
            assert max(int(s) for s in trace["z"]["shape"].split(",")) <= style.MAX_SIDE


def test_pooling_keeps_the_largest_magnitude() -> None:
    big = np.zeros((1000, 30))
    big[501, 7] = -5.0
    big[500, 7] = 2.0
    small, rows, columns = style.pool(big, 256)
    assert (small.shape, rows, columns) == ((250, 30), 4, 1)
    assert small[125, 7] == -5.0 and np.count_nonzero(small) == 1
    with pytest.raises(ValueError, match="shape"):
        style.pool(np.zeros((0, 3)))


def test_thinning_keeps_the_mean() -> None:
    y = rng.random(6000)
    x, thinned = style.thin(np.arange(6000), y, 600)
    assert len(x) == len(thinned) == 600
    assert thinned.mean() == pytest.approx(y.mean(), rel=1e-5)


def test_kinks_draw_a_ramp_exactly() -> None:
    ramp = np.clip((20 + 4 + 1 - np.arange(1, 400)) / 4, 0, 1)
    kept = style.kinks(ramp)
    assert len(kept) == 4
    assert np.interp(np.arange(399), kept, ramp[kept]) == pytest.approx(ramp)


def test_learning_curve_is_in_bits() -> None:
    fig = curves.learning_curve(records())
    held = json.loads(fig.to_json())["data"][1]
    assert numbers(held["y"]) == pytest.approx([2.5 / np.log(2), 2.2 / np.log(2)], rel=1e-6)
    assert "3.174 bits per character at step 600" in fig.layout.title.text


def test_span_bars_hold_each_span_once_and_name_the_longest() -> None:
    fig = spans.span_bars(SPANS)
    values = sorted(float(v) for trace in fig.data for v in trace.y)
    assert values == sorted(s for heads in SPANS for s in heads)
    assert fig.layout.title.text.startswith("Head 2 of layer 2 looks furthest: 20.0 tokens")
    heads = [int(h) for trace in fig.data for h in np.asarray(trace.customdata)[:, 0]]
    assert heads == [1, 2, 3, 4, 3, 4, 1, 2]


def test_span_heatmap_hovers_tokens_and_colours_logarithms() -> None:
    trace = spans.span_heatmap(SPANS, "log").data[0]
    assert np.asarray(trace.customdata) == pytest.approx(np.array(SPANS))
    assert np.asarray(trace.z) == pytest.approx(np.log10(1 + np.array(SPANS)), rel=1e-5)


def test_mask_edge_lies_a_span_behind_the_query() -> None:
    fig = spans.attention_map(probs(), layer=2, head=0, span=20.0, ramp=4)
    span_line, end_line = fig.data[1:]
    assert list(np.asarray(span_line.y) - np.asarray(span_line.x)) == [20.0, 20.0]
    assert list(np.asarray(end_line.y) - np.asarray(end_line.x)) == [24.0, 24.0]
    # memory lies left of 0, as far as the mask reaches; the newest key is the newest query
    x, z = np.asarray(fig.data[0].x), np.asarray(fig.data[0].z)
    assert (x[0], x[-1]) == (-28.0, 31.0)
    gap = np.arange(32)[:, None] - x[None]
    assert (np.isnan(z) == ((gap < 0) | (gap > 24))).all()
    whole = spans.attention_map(probs(), layer=2, head=0).data[0]
    assert whole.x[0] == -64.0 and np.isnan(np.asarray(whole.z)).sum() == 32 * 31 / 2


def test_maps_name_the_two_tokens_of_a_cell() -> None:
    fig = spans.attention_map(np.eye(2, 4, 2), layer=0, head=0, symbols=["a", "b", " ", "<"])
    words = {"−2.0": "-2 “a”", "−1.0": "-1 “b”", "0.0": "0 “␣”", "1.0": "1 “&lt;”"}
    for axis in (fig.layout.xaxis, fig.layout.yaxis):
        # what stands at the ticks has no decimal, and stays a number
        assert axis.labelalias == words and (axis.hoverformat, axis.tickformat) == (".1f", "d")
    pooled = spans.attention_map(probs(512, 4096), layer=0, head=0, symbols=["a"] * 4096)
    assert pooled.layout.xaxis.labelalias is None


def test_mean_distance_of_a_head_that_looks_three_back() -> None:
    gap = distances_TS(5, 20)
    assert spans.mean_distance((gap == 3).astype(float)) == 3.0
    fig = spans.attention_by_distance([(gap == 3).astype(float)[None]])
    shares = dict(zip(fig.data[0].x, fig.data[0].y, strict=True))
    assert shares[3] == 1.0 and shares[4] == 0.0


def test_pairs_are_held_up_to_the_first_that_is_not() -> None:
    assert retrieval.held(PAIRS) == 40 and retrieval.held({20: None, 40: 0.0}) is None
    fig = FIGURES["loss_by_pairs"]()
    assert fig.layout.title.text == "Pairs retrieved (loss up to 0.01): a 40"
    ours, theirs = json.loads(fig.to_json())["data"][:2]
    assert ours["x"] == [20, 40, 60, 80] and theirs["x"] == [20, 60]
    assert numbers(ours["y"])[:3] == pytest.approx([0.001, 0.002, 0.4])
    assert [a.text for a in fig.layout.annotations] == ["a: d_dot = 30"]


def test_memories_of_one_size_share_a_line_and_words_do_not_overlap() -> None:
    curves = dict.fromkeys("abc", PAIRS)
    fig = retrieval.loss_by_pairs(curves, {}, {"a": 70, "b": 30, "c": 70})
    words = fig.layout.annotations
    assert [w.text for w in words] == ["b: d_dot = 30", "a, c: d_dot = 70"]
    assert words[0].yshift != words[1].yshift
    assert [w.xanchor for w in words] == ["left", "right"]


def test_matrix_slider_shows_one_matrix_at_a_time() -> None:
    W = matrices(T=10, F=4, V=3)
    fig = fast_weights.matrix_over_time(W, TEXT[:10], layer=0, head=0, count=5)
    assert [t.visible for t in fig.data] == [False] * 4 + [True]
    assert np.asarray(fig.data[-1].z) == pytest.approx(W[-1], rel=1e-5)
    for i, step in enumerate(fig.layout.sliders[0].steps):
        assert step.args[0]["visible"] == [j == i for j in range(5)]
    assert [s.label for s in fig.layout.sliders[0].steps][-1] == "10"


def test_by_age_averages_the_same_writes_at_every_age() -> None:
    reads = np.arange(16.0).reshape(4, 4)
    # writes 0, 1 and 2 are followed by at least one token
    assert rules.by_age(reads, 2) == pytest.approx([(0 + 5 + 10) / 3, (1 + 6 + 11) / 3])
    with pytest.raises(ValueError, match="1 to 4 ages"):
        rules.by_age(reads, 5)


def test_hardest_passages_do_not_overlap_and_come_hardest_first() -> None:
    bits = np.ones(100)
    bits[20:25], bits[70:75] = 9.0, 5.0
    assert evaluation.hardest_passages(bits, length=5, count=2) == [(20, 25), (70, 75)]
    found = evaluation.hardest_passages(rng.random(100), length=40, count=5)
    starts = sorted(s for s, _ in found)
    assert all(b - a >= 40 for a, b in pairwise(starts))
    assert evaluation.hardest_passages(np.array([]), length=5) == []


def test_coloured_text_escapes_the_corpus() -> None:
    page = evaluation.coloured_text(["<script>", "&", "\n", '"'], [1.0, 8.0, 0.0, 20.0])
    assert "<script>" not in page and "&lt;script&gt;" in page and "&amp;" in page
    assert "rgba(224,106,27,0.000)" in page and "rgba(224,106,27,0.800)" in page
    assert "p = 0.5" in page and "↵</span>\n" in page


def test_words_are_coloured_over_their_own_range() -> None:
    assert evaluation.full_colour([]) == evaluation.full_colour([1.0, 7.9]) == 8
    costs = [3.0, 9.0, 13.5, 13.5, 13.5]
    assert evaluation.full_colour(costs) == 16
    page = evaluation.coloured_text(["the ", "cat ", "sat ", "up ", "<eos> "], costs)
    assert "#e06a1b" not in page.split("</div>")[1] and ">16</span>" in page
    assert "↵</span>\n" in page and "word-break:normal" in page


def test_the_table_of_recipes_sorts_numbers_and_escapes_words() -> None:
    rows = [{"recipe": "a<b", "parameters": 1_000_000}, {"recipe": "c", "parameters": None}]
    page = recipes.recipe_table(rows)
    assert "a&lt;b" in page and "a<b" not in page and page.count("onclick=") == 2
    assert 'data-v="1000000">1,000,000</td>' in page and 'data-v="">-</td>' in page
    assert "src=" not in page and "<script" not in page


def test_text_of_the_corpus_cannot_style_a_figure() -> None:
    fig = fast_weights.writes(np.ones(4), np.ones(4), ["<b>", "x", " ", "\n"], layer=0, head=0)
    assert list(fig.data[0].text)[1] == "&lt;b&gt;[x]␣↵"


def test_context_curve_names_where_it_flattens() -> None:
    fig = evaluation.loss_by_context([1, 8, 64, 256], [4.0, 3.0, 2.5, 2.495])
    assert "buys 1.505 bits" in fig.layout.title.text
    assert "from 64" in fig.layout.annotations[0].text
    # plotly places words by the logarithm on a logarithmic axis, and lines by the value
    assert fig.layout.annotations[0].x == pytest.approx(np.log10(64))
    assert fig.layout.shapes[0].x0 == 64


def test_the_benchmark_is_drawn_as_measured() -> None:
    fig = benchmark.against_targets(ROWS)
    assert fig.layout.title.text == "2 of 3 targets are met"
    met, missed, asked = fig.data
    assert (list(met.x), list(missed.x), list(asked.x)) == ([3.0, 3.0], [3.0], [2.0, 4.0, 1.0])
    shares = benchmark.fractions(ROWS)
    assert shares.layout.title.text == "At most 1.30 of the limit"
    assert [list(trace.x) for trace in shares.data] == [[0.4] * 3, [1.3]]
    lines = benchmark.growth(ROWS, "T")
    assert lines.layout.title.text == "delta: 3 times as fast as loop at 1,024"
    assert [trace.name for trace in lines.data][:2] == ["delta: ours, cpp", "delta: loop"]
    assert list(lines.data[0].x) == [64, 256, 1024] and list(lines.data[0].y) == [1.0, 4.0, 16.0]
    assert not benchmark.growth(ROWS, "T", "fwd").data
    assert "270 GFLOP/s" in benchmark.limits(ROWS) and "a processor, 2" in benchmark.limits(ROWS)
    first, second, third, _ = benchmark.table(ROWS)
    assert (first["met"], second["met"], third["met"]) == ("met", "missed", None)
    assert first["ms"] == "1 (0.9 to 1.1)" and first["note"] is None


def test_spans_over_training_needs_spans() -> None:
    with pytest.raises(ValueError, match="no training record carries spans"):
        curves.span_over_training([{"kind": "train", "step": 1, "readings": {}}])
