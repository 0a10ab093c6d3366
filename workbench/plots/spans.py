"""How far back attention looks: learned spans, soft masks, attention maps.

Paper: arXiv:1905.07799 section 2.2 (adaptive span, eq. 3 to 7).
Layers and heads are counted from 1 in pictures and from 0 in arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from workbench.distances import distances_TS, mass_by_distance
from workbench.plots.style import (
    ACCENT,
    MAGNITUDE,
    QUIET,
    finish,
    float32,
    kinks,
    layer_colour,
    mark,
    pool,
    shown,
)

Spans = Sequence[Sequence[float]]
Scale = Literal["linear", "log"]


def _longest(spans: Spans) -> tuple[int, int, float]:
    return max(
        ((i, j, float(s)) for i, heads in enumerate(spans) for j, s in enumerate(heads)),
        key=lambda found: found[2],
    )


def _finding(spans: Spans) -> str:
    layer, head, most = _longest(spans)
    mean = float(np.mean([s for heads in spans for s in heads]))
    return (
        f"Head {head + 1} of layer {layer + 1} looks furthest: {most:.1f} tokens; "
        f"the mean is {mean:.1f}"
    )


def span_bars(spans: Spans, scale: Scale = "linear", spread: Spans | None = None) -> go.Figure:
    """A bar a head, layer by layer, each layer's heads from short to long.

    Args:
        spans: per layer, the span of each head in tokens; the mean of dynamic spans.
        spread: as `spans`, how far dynamic spans differ from token to token (standard deviation).
        scale: of the span axis; `log` shows spans of 0 at 0.1.
    """
    fig = go.Figure()
    place = 0
    for layer, heads in enumerate(spans):
        order = np.argsort(heads, kind="stable")
        values = float32(heads)[order]
        fig.add_bar(
            x=np.arange(place, place + len(heads)),
            y=np.maximum(values, 0.1) if scale == "log" else values,
            name=f"layer {layer + 1}",
            marker_color=layer_colour(layer),
            error_y={"array": float32(spread[layer])[order]} if spread else None,
            customdata=np.stack([order + 1, values], axis=1),
            hovertemplate=(
                f"layer {layer + 1}, head %{{customdata[0]:.0f}}: "
                "%{customdata[1]:.2f} tokens<extra></extra>"
            ),
        )
        place += len(heads) + 1
    mean = float(np.mean([s for heads in spans for s in heads]))
    mark(fig, max(mean, 0.1), f"mean {mean:.1f}", log=scale == "log")
    finish(
        fig,
        _finding(spans),
        "Heads of a layer from the shortest span to the longest"
        + ("; mean and standard deviation over tokens" if spread else ""),
        x="heads, layer by layer",
        y="span (tokens)",
        caption="Learned span of every head. Most heads look close by; a few pay for looking far."
        + (" Whiskers: how much it differs from token to token." if spread else ""),
    )
    fig.update_xaxes(showticklabels=False, ticks="", showgrid=False)
    fig.update_yaxes(type=scale)
    fig.update_layout(bargap=0.12)
    return fig


def span_heatmap(
    spans: Spans,
    scale: Scale = "log",
    *,
    chosen: tuple[int, int] | None = None,
    top: float | None = None,
    step: int | None = None,
) -> go.Figure:
    """Layers as rows, heads as columns, the span as colour and number.

    Args:
        spans: per layer, the span of each head in tokens; layers may differ in heads.
        scale: of the colour; `log` is `log10(1 + span)`.
        chosen: layer and head to put a frame around, from 0.
        top: span of the last colour, to compare several maps; None: the longest of these.
        step: of the training, for the title.
    """
    grid, colour, words = _cells(spans, scale)
    width = grid.shape[1]
    ticks = np.array([0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000])
    top = max(1.0, float(np.nanmax(grid)) if top is None else top)
    ticks = ticks[ticks <= top]
    bar = {"title": "tokens", "thickness": 12, "outlinewidth": 0}
    if scale == "log":
        bar |= {"tickvals": np.log10(1 + ticks), "ticktext": [str(t) for t in ticks]}
    few = grid.size <= 160
    fig = go.Figure(
        go.Heatmap(
            z=colour,
            x=np.arange(1, width + 1),
            y=np.arange(1, len(spans) + 1),
            customdata=grid,
            text=words,
            texttemplate="%{text}" if few else None,
            colorscale=MAGNITUDE,
            colorbar=bar,
            zmin=0,
            zmax=float(np.log10(1 + top)) if scale == "log" else top,
            xgap=2,
            ygap=2,
            hovertemplate="layer %{y}, head %{x}: %{customdata:.2f} tokens<extra></extra>",
        )
    )
    if chosen is not None:
        fig.add_shape(chosen_frame(*chosen))
    finish(
        fig,
        _deepest(spans, step),
        f"Learned span in tokens; {'logarithmic' if scale == 'log' else 'linear'} colour",
        x="head",
        y="layer",
        height=max(300, 150 + 34 * len(spans)),
        caption="The same spans as a map: where in the stack the long ones are.",
    )
    fig.update_xaxes(dtick=1 if width <= 20 else None, showgrid=False, ticks="")
    fig.update_yaxes(dtick=1 if len(spans) <= 20 else None, showgrid=False, ticks="")
    return fig


def change_spans(fig: go.Figure, spans: Spans, scale: Scale, step: int) -> None:
    """Turn a figure of `span_heatmap` to the spans of another step; colours mean the same."""
    grid, colour, words = _cells(spans, scale)
    fig.data[0].update(z=colour, customdata=grid, text=words)
    fig.layout.title.text = _deepest(spans, step)


def _cells(
    spans: Spans, scale: Scale
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[list[str]]]:
    """Spans, colours and words of a map of layers by heads."""
    grid = np.full((len(spans), max(len(heads) for heads in spans)), np.nan)
    for layer, heads in enumerate(spans):
        grid[layer, : len(heads)] = heads
    colour = np.log10(1 + grid) if scale == "log" else grid
    words = [["" if np.isnan(v) else f"{v:.0f}" for v in row] for row in grid]
    return float32(grid), float32(colour), words


def _deepest(spans: Spans, step: int | None) -> str:
    averages = [float(np.mean(heads)) for heads in spans]
    layer = int(np.argmax(averages))
    begin = "Layer" if step is None else f"Step {step:,}: layer"
    return f"{begin} {layer + 1} looks furthest on average: {averages[layer]:.1f} tokens a head"


def chosen_frame(layer: int, head: int) -> dict[str, Any]:
    """The frame around one head of `span_heatmap`, counted from 0."""
    corners = {"x0": head + 0.5, "x1": head + 1.5, "y0": layer + 0.5, "y1": layer + 1.5}
    return {"type": "rect", **corners, "line": {"color": ACCENT, "width": 3}}


def soft_mask_ramp(
    masks_LHD: Sequence[ArrayLike], ramp: int | None = None, dynamic: bool = False
) -> go.Figure:
    """How much of a past token each head lets through, by its distance.

    Args:
        masks_LHD: per layer, (heads, distances) in [0, 1] at distances 1, 2, ...
        ramp: width R of the soft edge in tokens, for the subtitle.
        dynamic: these are the masks of mean spans; a single token may see further.
    """
    fig = go.Figure()
    reach = 1
    for layer, mask_HD in enumerate(masks_LHD):
        mask = np.asarray(mask_HD, dtype=np.float64)
        for head, weight in enumerate(mask):
            open_ = np.flatnonzero(weight > 0)
            reach = max(reach, int(open_[-1]) + 1 if len(open_) else 1)
            corners = kinks(weight)
            fig.add_scatter(
                x=corners + 1,
                y=float32(weight[corners]),
                mode="lines",
                line={"color": layer_colour(layer), "width": 1.5},
                opacity=0.8,
                name=f"layer {layer + 1}",
                legendgroup=f"{layer}",
                showlegend=head == 0,
                hovertemplate=(
                    f"layer {layer + 1}, head {head + 1}<br>"
                    "distance %{x:.0f}: %{y:.2f}<extra></extra>"
                ),
            )
    edge = f"falling over R = {ramp} tokens beyond the span" if ramp else "with its soft edge"
    finish(
        fig,
        f"{'With its mean span no' if dynamic else 'No'} head sees beyond {reach} tokens",
        f"Mask of each head, {edge}; distance 1 is the token before",
        x="distance to the past token (tokens)",
        y="share let through",
        caption="The soft mask that multiplies the attention weights (arXiv:1905.07799, eq. 3).",
    )
    fig.update_yaxes(range=[-0.03, 1.05])
    fig.update_xaxes(
        range=[0, min(reach * 1.1 + 2, max(np.asarray(m).shape[1] for m in masks_LHD))]
    )
    return fig


def attention_map(
    probs_TS: ArrayLike,
    *,
    layer: int,
    head: int,
    symbols: Sequence[str] | None = None,
    span: float | None = None,
    ramp: float = 0.0,
) -> go.Figure:
    """Where each token of a segment looks, memory to the left, with the edge of the head's mask.

    Args:
        probs_TS: attention of T queries over memory and segment, S = memory + T.
        layer, head: of the title, counted from 0.
        symbols: the S tokens as text, for hover labels of maps that are not pooled.
        span: learned span in tokens; None where the head has no mask of its own.
        ramp: width of the soft edge in tokens.
    """
    probs = float32(probs_TS)
    T, S = probs.shape
    memory = S - T
    left = memory if span is None else min(memory, int(np.ceil(span + ramp)) + 4)
    small, step_r, step_c = pool(probs[:, memory - left :])
    x = (np.arange(small.shape[1]) + 0.5) * step_c - 0.5 - left
    y = (np.arange(small.shape[0]) + 0.5) * step_r - 0.5
    top = float(np.quantile(small[small > 0], 0.995)) if (small > 0).any() else 1.0
    # blank, not dark: what no weight could reach
    gap = distances_TS(T, T + left)
    open_ = (gap >= 0) & (gap < (S if span is None else span + ramp + 1))
    small[pool(open_)[0] == 0] = np.nan
    fig = go.Figure(
        go.Heatmap(
            z=small,
            x=x,
            y=y,
            zmin=0,
            zmax=top,
            colorscale=MAGNITUDE,
            colorbar={"title": "weight", "thickness": 12, "outlinewidth": 0},
            hoverongaps=False,
            hovertemplate="query %{y:.0f} at key %{x:.0f}: %{z:.3f}<extra></extra>",
        )
    )
    if symbols is not None and step_r == step_c == 1:
        _name_places(fig, symbols, memory, left)
    _edges(fig, T, memory, span, ramp)
    lines = "" if span is None else "; lines: span (dashed) and end of the soft edge (dotted)"
    back = mean_distance(probs)
    finish(
        fig,
        f"Layer {layer + 1}, head {head + 1} looks back {back:.1f} tokens on average",
        f"Below 0 lies the memory of earlier segments{lines}",
        x="key position in the segment (tokens)",
        y="query position in the segment (tokens)",
        height=480,
        caption="Attention of one head over a segment of held-out text, under its mask.",
    )
    fig.update_yaxes(range=[T - 0.5, -0.5], showgrid=False)
    fig.update_xaxes(range=[-left - 0.5, T - 0.5], showgrid=False)
    return fig.update_layout(showlegend=False)


def _name_places(fig: go.Figure, symbols: Sequence[str], memory: int, left: int) -> None:
    """Let hover labels tell the two tokens of a cell, and not only their positions.

    The axes know the words. Each cell knowing its two would make the figure three times as large.

    Args:
        fig: the map, whose axes count from the first token of the segment.
        symbols: the tokens of memory and segment.
        memory: how many of them are memory.
        left: how many of those are drawn.
    """
    # words stand in place of numbers with a decimal, as hover labels have and ticks have not
    words = {
        f"{i:.1f}".replace("-", "\N{MINUS SIGN}"): f"{i} “{shown(symbols[memory + i])}”"
        for i in range(-left, len(symbols) - memory)
    }
    for axis in (fig.layout.xaxis, fig.layout.yaxis):
        axis.hoverformat, axis.labelalias, axis.tickformat = ".1f", words, "d"
    fig.data[0].hovertemplate = "query %{y}<br>key %{x}: %{z:.3f}<extra></extra>"


def _edges(fig: go.Figure, T: int, memory: int, span: float | None, ramp: float) -> None:
    queries = np.array([0.0, T - 1.0])
    lines = [] if span is None else [(span, "dash"), (span + ramp, "dot")]
    for back, dash in lines:
        fig.add_scatter(
            x=queries - back,
            y=queries,
            mode="lines",
            line={"color": ACCENT, "width": 1.5, "dash": dash},
            hoverinfo="skip",
        )
    if memory:
        fig.add_vline(-0.5, line={"color": QUIET, "width": 1.5})


def mean_distance(probs_TS: ArrayLike) -> float:
    """Mean distance that attention looks back, in tokens, weighted by attention."""
    probs = np.asarray(probs_TS, dtype=np.float64)
    total = probs.sum()
    return float((probs * distances_TS(*probs.shape)).sum() / total) if total > 0 else 0.0


def attention_by_distance(probs_LHTS: Sequence[ArrayLike]) -> go.Figure:
    """Share of attention that reaches at least so far back, a line a head.

    Args:
        probs_LHTS: per layer, attention (heads, T, S) with S = memory + T.
    """
    fig = go.Figure()
    far: tuple[float, int, int] = (-1.0, 0, 0)
    last = 1.0
    for layer, probs_HTS in enumerate(probs_LHTS):
        for head, mass in enumerate(mass_by_distance(probs_HTS)):
            beyond = mass[::-1].cumsum()[::-1]
            far = max(far, (float(mass @ np.arange(len(mass))), layer, head))
            last = max(last, float((beyond > 1e-3).sum()))
            # logarithmic places: the eye reads near and far alike
            places = np.unique(np.geomspace(1, len(beyond), 80).astype(int)) - 1
            fig.add_scatter(
                x=places[1:],
                y=float32(beyond[places[1:]]),
                mode="lines",
                line={"color": layer_colour(layer), "width": 1.5},
                opacity=0.8,
                name=f"layer {layer + 1}",
                legendgroup=f"{layer}",
                showlegend=head == 0,
                hovertemplate=(
                    f"layer {layer + 1}, head {head + 1}<br>"
                    "%{y:.1%} at distance %{x:.0f} or more<extra></extra>"
                ),
            )
    finish(
        fig,
        f"Head {far[2] + 1} of layer {far[1] + 1} uses the furthest context: "
        f"{far[0]:.1f} tokens on average",
        "Share of a head's attention that goes to tokens at least this far back",
        x="distance (tokens)",
        y="share of attention",
        caption="What heads use, as opposed to what their spans allow.",
    )
    fig.update_xaxes(type="log", range=[0, np.log10(1.2 * last)])
    fig.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
    return fig
