"""What heads make of their spans: context used, and what it costs.

Papers: arXiv:1905.07799 (spans), arXiv:1907.01470 (persistent vectors).
Layers and heads are counted from 1 in pictures and from 0 in arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from workbench.distances import QUANTILES
from workbench.plots.style import (
    INK,
    QUIET,
    finish,
    float32,
    layer_colour,
)

SHORTEST = 0.5
"""where logarithmic axes show the distance 0, in tokens"""

COSTS = ("full span", "cut at the layer's longest span", "what is needed")


def _places(counts: Sequence[int]) -> list[np.ndarray]:
    """Where the heads of each layer stand on an axis, with a gap between layers."""
    starts = np.cumsum([0, *(n + 1 for n in counts[:-1])])
    return [start + np.arange(n) for start, n in zip(starts, counts, strict=True)]


def context_used(
    allowed: Sequence[ArrayLike],
    reach: Sequence[ArrayLike],
    mean: Sequence[ArrayLike],
    persistent: Sequence[ArrayLike | None],
    layers: Sequence[int] | None = None,
) -> go.Figure:
    """Where attention lies, against how far it may look: a bar and four marks a head.

    Args:
        allowed: per layer, (H,) the farthest distance that each head may see, in tokens.
        reach: per layer, (H, 3) within which distance 50, 90 and 99 % of the attention lie.
        mean: per layer, (H,) mean distance of the attention.
        persistent: per layer, (H,) share of attention that goes to persistent vectors, or None;
            a second panel, unless no layer has any.
        layers: which layers these are, from 0; None: 0, 1, ...
    """
    shares = [x for x in persistent if x is not None]
    fig = make_subplots(
        2 if shares else 1,
        1,
        shared_xaxes=True,
        vertical_spacing=0.09,
        row_heights=[0.72, 0.28] if shares else None,
    )
    places = _places([len(np.asarray(a)) for a in allowed])
    numbers = range(len(places)) if layers is None else layers
    for i, x in enumerate(places):
        _allowed_bars(fig, numbers[i], x, np.asarray(allowed[i]))
    for i, x in enumerate(places):
        _used_marks(fig, numbers[i], x, np.asarray(reach[i]), np.asarray(mean[i]), named=i == 0)
        if (share := persistent[i]) is not None:
            _persistent_bars(fig, numbers[i], x, share)
    every = np.concatenate([np.asarray(a, dtype=float).ravel() for a in allowed])
    within = np.concatenate([np.asarray(r, dtype=float)[:, 1] for r in reach])
    used = float(np.median(within / np.maximum(every, 1)))
    finish(
        fig,
        f"Half of the heads find 90% of what they use in the nearest {used:.0%} "
        "of the context they may see",
        "Bar: what span and ramp allow. Marks: within which distance 50, 90 and 99% of the "
        "attention to the text lie",
        y="distance (tokens, logarithmic)",
        height=540 if shares else 420,
        caption="Effective against allowed context: a head may look further than it does.",
    )
    fig.update_layout(bargap=0.2, barmode="overlay")
    ticks = [d * 10**e for e in range(6) for d in (1, 2, 5)]
    ends = [np.log10(0.8 * SHORTEST), np.log10(1.3 * max(every.max(), 1))]
    fig.update_yaxes(
        type="log", tickvals=ticks, ticktext=[f"{t:,}" for t in ticks], range=ends, row=1, col=1
    )
    _layer_ticks(fig, places, numbers)
    return fig


def _persistent_bars(fig: go.Figure, layer: int, x: np.ndarray, share: ArrayLike) -> None:
    fig.add_bar(
        x=x,
        y=float32(share),
        marker_color=layer_colour(layer),
        showlegend=False,
        customdata=np.arange(1, len(x) + 1),
        hovertemplate=(
            f"layer {layer + 1}, head %{{customdata}}<br>"
            "%{y:.1%} to persistent vectors<extra></extra>"
        ),
        row=2,
        col=1,
    )
    fig.update_yaxes(
        title_text="to persistent<br>vectors", tickformat=".0%", rangemode="tozero", row=2, col=1
    )


def _allowed_bars(fig: go.Figure, layer: int, x: np.ndarray, allowed: np.ndarray) -> None:
    fig.add_bar(
        x=x,
        y=np.maximum(allowed, SHORTEST),
        marker_color=layer_colour(layer),
        opacity=0.35,
        name=f"layer {layer + 1}: allowed",
        showlegend=False,
        customdata=np.stack([np.arange(1, len(x) + 1), allowed], axis=1),
        hovertemplate=(
            f"layer {layer + 1}, head %{{customdata[0]}}<br>may see %{{customdata[1]:.0f}} tokens"
            "<extra></extra>"
        ),
        row=1,
        col=1,
    )


def _used_marks(
    fig: go.Figure,
    layer: int,
    x: np.ndarray,
    reach: np.ndarray,
    mean: np.ndarray,
    named: bool,
) -> None:
    heads = np.arange(1, len(x) + 1)
    symbols = ("circle", "diamond", "line-ew-open")
    marks = [
        (f"{q:.0%} of the attention", reach[:, i], symbols[i], layer_colour(layer))
        for i, q in enumerate(QUANTILES)
    ]
    marks.append(("mean distance", mean, "x-thin-open", INK))
    for name, values, symbol, colour in marks:
        fig.add_scatter(
            x=x,
            y=float32(np.maximum(values, SHORTEST)),
            mode="markers",
            marker={
                "symbol": symbol,
                "size": 9,
                "color": colour,
                "line": {"width": 2, "color": colour},
            },
            name=name,
            legendgroup=name,
            showlegend=named,
            customdata=np.stack([heads, values], axis=1),
            hovertemplate=(
                f"layer {layer + 1}, head %{{customdata[0]:.0f}}<br>{name}: "
                "%{customdata[1]:.1f} tokens<extra></extra>"
            ),
            row=1,
            col=1,
        )


def _layer_ticks(fig: go.Figure, places: Sequence[np.ndarray], numbers: Sequence[int]) -> None:
    """Name the layers, not the heads: the lowest axis alone has words."""
    names = [f"layer {i + 1}" if len(places) <= 12 else str(i + 1) for i in numbers]
    fig.update_xaxes(
        tickvals=[float(np.mean(x)) for x in places], ticktext=names, ticks="", showgrid=False
    )
    # the last axis is the lowest
    last = fig.layout[f"xaxis{2 if 'xaxis2' in fig.layout else ''}"]
    last.title.text = "heads, layer by layer"


def costs(
    flops: Sequence[Sequence[float]], stored: Sequence[Sequence[float]], layers: Sequence[int]
) -> go.Figure:
    """What attention computes and remembers, in full and with learned spans, layer by layer.

    Args:
        flops: per layer, FLOPs of one token: of the full span, of the layer's longest span in
            steps, of each head's own span.
        stored: per layer, bytes for one row of text: of all memory, of what is carried, of what the
            longest span needs.
        layers: which layers these are, from 0.
    """
    work, room = np.asarray(flops, dtype=float), np.asarray(stored, dtype=float)
    fig = make_subplots(1, 2, horizontal_spacing=0.13)
    names = [str(layer + 1) for layer in layers]
    told: tuple[tuple[np.ndarray, float, str, tuple[str, str, str]], ...] = (
        (work, 1e6, "MFLOP", ("full span", "layer cut at its longest span", "each head alone")),
        (room, 1e3, "kB", ("all of the memory", "carried", "longest span alone")),
    )
    for column, (values, unit, unit_name, words) in enumerate(told):
        for i, word in enumerate(words):
            colour: Any = QUIET if i == 0 else [layer_colour(layer) for layer in layers]
            fig.add_bar(
                x=names,
                y=float32(values[:, i] / unit),
                name=COSTS[i],
                legendgroup=COSTS[i],
                showlegend=column == 0,
                marker={"color": colour, "pattern": {"shape": "/" if i == 1 else ""}},
                hovertemplate=f"layer %{{x}}: %{{y:.4g}} {unit_name}<extra>{word}</extra>",
                row=1,
                col=column + 1,
            )
    left = work[:, 2].sum() / work[:, 0].sum(), room[:, 1].sum() / room[:, 0].sum()
    finish(
        fig,
        f"Learned spans leave {left[0]:.0%} of the attention's FLOPs and "
        f"{left[1]:.0%} of the memory that is carried",
        "Grey: full span. Hatched: cut at the longest span of the layer, in steps. Plain: no more "
        "than the spans ask for",
        x="layer",
        height=380,
        caption="FLOPs of attention for one token, and bytes of memory for one row of text.",
    )
    fig.update_yaxes(title_text="attention of one token (MFLOP)", row=1, col=1)
    fig.update_yaxes(title_text="memory of one row of text (kB)", row=1, col=2)
    fig.update_xaxes(type="category")
    fig.update_layout(barmode="group", legend={"orientation": "h", "y": -0.22, "x": 0})
    return fig
