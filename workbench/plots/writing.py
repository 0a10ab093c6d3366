"""A text while it is written: what of the past the model uses and keeps, and one token's rivals.

Papers: arXiv:1905.07799 (spans), arXiv:2102.11174 sections 3.2 and 4.2 (capacity, write strength).
Shapes: n tokens written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from workbench.plots.style import (
    COLOURS,
    INK,
    QUIET,
    WIDTH,
    finish,
    float32,
    layer_colour,
    shown,
    thin,
)

ROW = 105
"""pixels of one row"""
NAMED_LAYERS = 8
"""most layers that the legend names; more are told by colour and by pointing at a line"""
UNITS = ("B", "kB", "MB", "GB", "TB")


def past_in_use(
    positions: Sequence[int],
    gauges: Mapping[str, Mapping[int, ArrayLike]],
    carry_bytes: Sequence[int],
    full_bytes: Sequence[int],
    ceilings: Mapping[str, float],
    *,
    width: int = WIDTH,
) -> go.Figure:
    """What each layer does with the past at every token, and what the past takes in memory.

    Lines of more than 600 tokens are means over equal runs of neighbours.

    Args:
        positions: (n,) of the tokens written, in tokens from the beginning of the text.
        gauges: what is measured, with its unit -> layer, from 0 -> (n,); NaN where it was not.
        carry_bytes: (n,) what the model kept.
        full_bytes: (n,) keys and values of all tokens, as full attention would keep.
        ceilings: what a gauge cannot exceed, drawn as a dashed line.
        width: in pixels.
    """
    names = [*gauges, "kept of the past"]
    fig = make_subplots(
        len(names),
        1,
        shared_xaxes=True,
        vertical_spacing=0.22 / len(names),
        subplot_titles=[name.partition(" (")[0] for name in names],
    )
    for row, (name, layers) in enumerate(gauges.items(), 1):
        for layer, values in layers.items():
            _line(fig, row, layer, positions, values, name, len(layers))
        if name in ceilings and layers:
            fig.add_hline(
                y=ceilings[name],
                line={"color": QUIET, "dash": "dash", "width": 1.5},
                row=row,
                col=1,
            )
        unit = name.partition("(")[2].rstrip(")")
        fig.update_yaxes(rangemode="tozero", title_text=unit, row=row, col=1)
    _bytes(fig, len(names), positions, carry_bytes, full_bytes)
    finish(
        fig,
        _finding(positions, carry_bytes, full_bytes),
        "Means over heads, a colour a layer; dashed: the most there can be",
        height=165 + ROW * len(names),
        caption="What the model does with its past at each written token, and what the past takes.",
    )
    fig.update_annotations(font_size=12, x=0, xanchor="left")
    fig.update_xaxes(title_text="position in the text (tokens)", row=len(names), col=1)
    fig.update_layout(
        width=width,
        margin={"l": 55, "r": 15, "b": 75},
        legend={"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"},
    )
    return fig


def _bytes(
    fig: go.Figure,
    row: int,
    positions: Sequence[int],
    carry_bytes: Sequence[int],
    full_bytes: Sequence[int],
) -> None:
    kept = {"full attention": (full_bytes, QUIET, "dot"), "this model": (carry_bytes, INK, "solid")}
    for name, (values, colour, dash) in kept.items():
        x, y = thin(positions, values)
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate="after %{x:.0f} tokens: %{y:,.0f} bytes<extra>" + name + "</extra>",
            row=row,
            col=1,
        )
    fig.update_yaxes(rangemode="tozero", exponentformat="SI", title_text="bytes", row=row, col=1)


def _line(
    fig: go.Figure,
    row: int,
    layer: int,
    positions: Sequence[int],
    values: ArrayLike,
    name: str,
    n_layers: int,
) -> None:
    measured = np.asarray(values, dtype=np.float64)
    known = np.isfinite(measured)
    x, y = thin(np.asarray(positions)[known], measured[known])
    label = f"layer {layer + 1}"
    fig.add_scatter(
        x=x,
        y=y,
        mode="lines",
        name=label,
        legendgroup=label,
        showlegend=row == 1 and n_layers <= NAMED_LAYERS,
        line={"color": layer_colour(layer), "width": 1.5},
        hovertemplate=f"token %{{x:.0f}}: %{{y:.3g}}<extra>{label}, {name}</extra>",
        row=row,
        col=1,
    )


def _finding(
    positions: Sequence[int], carry_bytes: Sequence[int], full_bytes: Sequence[int]
) -> str:
    if not len(positions):
        return "Nothing is written yet"
    return f"The past takes {size(carry_bytes[-1])}, in full attention {size(full_bytes[-1])}"


def size(n_bytes: float) -> str:
    """A number of bytes for people, in powers of 1000."""
    unit = 0
    while n_bytes >= 1000 and unit < len(UNITS) - 1:
        n_bytes, unit = n_bytes / 1000, unit + 1
    return f"{n_bytes:.3g} {UNITS[unit]}"


def rivals(
    labels: Sequence[str],
    probabilities: Sequence[float],
    chosen: str,
    probability: float,
    rank: int,
    *,
    width: int = WIDTH,
) -> go.Figure:
    """One written token beside those that were likeliest in its place.

    Args:
        labels: of the likeliest tokens, likeliest first.
        probabilities: of each.
        chosen: the token that was written.
        probability: of it, under the model itself.
        rank: of it, 1 for the likeliest.
        width: in pixels.
    """
    names, values = [shown(name) for name in labels], list(probabilities)
    if chosen and rank > len(names):
        names, values = [*names, f"{shown(chosen)} (rank {rank:,})"], [*values, probability]
    at = min(rank, len(names)) - 1
    fig = go.Figure(
        go.Bar(
            x=float32(values),
            y=list(range(1, len(names) + 1)),
            orientation="h",
            marker_color=[COLOURS[0] if i == at else QUIET for i in range(len(names))],
            text=[f"<b>{n}</b>  {p:.2%}" for n, p in zip(names, values, strict=True)],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{text}<extra></extra>",
        )
    )
    told = "was likeliest" if rank == 1 else f"had rank {rank:,}"
    finish(
        fig,
        f"{shown(chosen)} {told}: {probability:.2%}" if chosen else "Nothing is written yet",
        "Blue: what was written, under the model itself. Choose another token in the text",
        x="probability",
        y="likeliest first",
        height=260,
        caption="The likeliest tokens in the place of one that was written.",
    )
    # one scale for all tokens, with room for the words behind a sure one
    fig.update_xaxes(range=[0, 1.3], tickvals=[0, 0.25, 0.5, 0.75, 1])
    fig.update_yaxes(autorange="reversed", showticklabels=False, showgrid=False, ticks="")
    fig.update_layout(width=width, bargap=0.3, margin={"l": 40, "r": 15})
    return fig
