"""The life of a fast-weight matrix: what is written, how strongly, and what can be read back.

Papers: arXiv:2102.11174 sections 4.1 (capacity) and 4.2 (delta rule, write strength beta).
Layers and heads are counted from 1 in pictures and from 0 in arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from plotly.subplots import make_subplots

from workbench.plots.style import (
    COLOURS,
    SIGNED,
    around,
    finish,
    float32,
    pool,
    shown,
)

FRAME_SIDE = 64
"""cells of a matrix along either side where many are shown in one figure"""
MOST_CELLS = 70_000
"""of all matrices of one figure: some 0.4 MB"""


def _frames(W_TFV: ArrayLike, count: int) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
    matrices = np.asarray(W_TFV)
    cells = min(FRAME_SIDE, matrices.shape[1]) * min(FRAME_SIDE, matrices.shape[2])
    count = max(2, min(count, MOST_CELLS // cells))
    when = np.unique(np.linspace(0, len(matrices) - 1, count).round().astype(int))
    return when, [pool(matrices[t], FRAME_SIDE)[0] for t in when]


def colour_limit(frames: Sequence[ArrayLike]) -> float:
    """Colour range: the largest entries would leave the rest white."""
    size = np.abs(np.stack([np.asarray(f) for f in frames]))
    return float(np.quantile(size, 0.998)) or float(size.max()) or 1.0


def matrix_over_time(
    W_TFV: ArrayLike, symbols: Sequence[str], *, layer: int, head: int, count: int = 24
) -> go.Figure:
    """One head's fast-weight matrix after each of some tokens, with a slider over them.

    Args:
        W_TFV: the matrix after each token's write.
        symbols: the T tokens as text.
        layer, head: of the title, counted from 0.
        count: how many moments the slider offers.
    """
    when, frames = _frames(W_TFV, count)
    limit = colour_limit(frames)
    norms = [float(np.linalg.norm(np.asarray(W_TFV)[t])) for t in when]
    fig = go.Figure()
    for i, frame in enumerate(frames):
        fig.add_heatmap(
            z=frame,
            zmin=-limit,
            zmax=limit,
            colorscale=SIGNED,
            visible=i == len(frames) - 1,
            colorbar={"title": "weight", "thickness": 12, "outlinewidth": 0},
            hovertemplate="feature %{y}, value %{x}: %{z:.3g}<extra></extra>",
        )
    steps = [
        {
            "method": "update",
            "label": str(int(t) + 1),
            "args": [
                {"visible": [j == i for j in range(len(frames))]},
                {"xaxis.title.text": _moment(symbols, int(t), norms[i])},
            ],
        }
        for i, t in enumerate(when)
    ]
    growth = norms[-1] / norms[0] if norms[0] else float("inf")
    finish(
        fig,
        f"The memory of layer {layer + 1}, head {head + 1} grows {growth:.1f}-fold in norm "
        f"over {int(when[-1] - when[0])} writes",
        "Rows are key features, columns entries of the value; move the slider through the text",
        x=_moment(symbols, int(when[-1]), norms[-1]),
        y="key feature",
        height=560,
        caption="A fast-weight matrix while the model reads: W after each token's write.",
    )
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(showgrid=False)
    slider = {"active": len(frames) - 1, "steps": steps, "pad": {"t": 55}}
    slider["currentvalue"] = {"prefix": "after token "}
    fig.update_layout(sliders=[slider], margin={"b": 110})
    return fig


def _moment(symbols: Sequence[str], t: int, norm: float) -> str:
    return f"entry of the value &nbsp; (norm {norm:.2f}, text: {around(symbols, t, 16)})"


def film_strip(
    W_TFV: ArrayLike, symbols: Sequence[str], *, layer: int, head: int, count: int = 8
) -> go.Figure:
    """The same matrix as a row of still pictures, for paper and for the report.

    Args:
        W_TFV: the matrix after each token's write.
        symbols: the T tokens as text.
        layer, head: of the title, counted from 0.
        count: pictures.
    """
    when, frames = _frames(W_TFV, count)
    limit = colour_limit(frames)
    columns = min(4, len(frames))
    lines = -(-len(frames) // columns)
    titles = [f"token {t + 1}: {around(symbols, int(t), 6)}" for t in when]
    fig = make_subplots(
        lines,
        columns,
        subplot_titles=titles,
        horizontal_spacing=0.03,
        vertical_spacing=0.12,
        shared_xaxes=True,
        shared_yaxes=True,
    )
    for i, frame in enumerate(frames):
        fig.add_heatmap(
            z=frame,
            coloraxis="coloraxis",
            hovertemplate="feature %{y}, value %{x}: %{z:.3g}<extra></extra>",
            row=1 + i // columns,
            col=1 + i % columns,
        )
    matrices = np.asarray(W_TFV)
    change = float(np.linalg.norm(matrices[-1] - matrices[len(matrices) // 2]))
    final = float(np.linalg.norm(matrices[-1])) or 1.0
    finish(
        fig,
        f"Layer {layer + 1}, head {head + 1}: the second half of the text rewrites "
        f"{change / final:.0%} of the memory",
        "W after some tokens (rows: key features, columns: value entries); one colour scale for "
        "all; % = norm of the change over norm of the end",
        height=130 + 230 * lines,
        caption="The fast-weight matrix of one head at moments along the text.",
    )
    fig.update_annotations(font={"size": 11, "family": "ui-monospace, Menlo, monospace"})
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    fig.update_xaxes(showgrid=False, ticks="")
    fig.update_xaxes(title_text="value entry", row=lines)
    fig.update_yaxes(title_text="key feature", col=1)
    bar = {"title": "weight", "thickness": 12, "outlinewidth": 0}
    fig.update_layout(
        coloraxis={"colorscale": SIGNED, "cmin": -limit, "cmax": limit, "colorbar": bar},
        margin={"t": 100},
    )
    return fig


def writes(
    strength_T: ArrayLike,
    update_norm_T: ArrayLike,
    symbols: Sequence[str],
    *,
    layer: int,
    head: int,
) -> go.Figure:
    """How strongly each token is written, and how much it changes the memory.

    Args:
        strength_T: beta of each token; 1 under the sum rule.
        update_norm_T: Frobenius norm of each write.
        symbols: the T tokens as text.
        layer, head: of the title, counted from 0.
    """
    strength, size = float32(strength_T), float32(update_norm_T)
    place = np.arange(len(strength))
    text = [around(symbols, t) for t in range(len(strength))]
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    quantities = ((strength, "strength", COLOURS[0]), (size, "size of the write", COLOURS[1]))
    for row, (values, name, colour) in enumerate(quantities, 1):
        fig.add_bar(
            x=place,
            y=values,
            marker_color=colour,
            marker_line_width=0,
            text=text,
            textposition="none",
            hovertemplate=f"%{{text}}<br>token %{{x}}: {name} %{{y:.3g}}<extra></extra>",
            row=row,
            col=1,
        )
    finish(
        fig,
        _strongest(strength, symbols, layer, head),
        "Hover for the text; a write is what its key did not know yet, times its strength",
        height=440,
        caption="Write strength and size of the update over a stretch of held-out text.",
    )
    fig.update_layout(showlegend=False, bargap=0.05)
    fig.update_yaxes(title_text="write strength (beta)", range=[0, 1.05], row=1)
    fig.update_yaxes(title_text="update (Frobenius norm)", row=2)
    fig.update_xaxes(title_text="position in the segment (tokens)", row=2)
    if len(place) <= 140:
        names = [shown(s) for s in symbols]
        fig.update_xaxes(tickvals=place, ticktext=names, tickangle=0, tickfont={"size": 9}, row=2)
    return fig


def _strongest(strength: NDArray[np.float32], symbols: Sequence[str], layer: int, head: int) -> str:
    """A sentence on the tokens that are written most and least, among those seen twice."""
    found: dict[str, list[float]] = {}
    for symbol, value in zip(symbols, strength, strict=True):
        found.setdefault(symbol, []).append(float(value))
    means = {s: float(np.mean(v)) for s, v in found.items() if len(v) >= 3}
    where = f"Layer {layer + 1}, head {head + 1}"
    if len(means) < 2 or np.ptp(strength) < 1e-6:
        return f"{where} writes with strength {float(strength.mean()):.2f} on average"
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    quoted = [shown(s) for s in (most, least)]
    return (
        f"{where} writes '{quoted[0]}' most strongly ({means[most]:.2f}) "
        f"and '{quoted[1]}' least ({means[least]:.2f})"
    )


def read_back(
    reads: Mapping[int, ArrayLike], symbols: Sequence[str], *, rule: str, layer: int, head: int
) -> go.Figure:
    """What some keys read before they are written, just after, and while others are written.

    Args:
        reads: position t of a write -> (T,) cosine between the value written at t and what its
            key reads after every token.
        symbols: the T tokens as text.
        rule: `delta` or `sum`, for the title.
        layer, head: of the subtitle, counted from 0.
    """
    fig = go.Figure()
    after, end = [], []
    for i, (t, cosine) in enumerate(reads.items()):
        line = float32(cosine)
        colour = COLOURS[i % len(COLOURS)]
        after.append(float(line[t]))
        end.append(float(line[-1]))
        fig.add_scatter(
            x=np.arange(len(line)),
            y=line,
            mode="lines",
            name=f"{t}: {around(symbols, t, 5)}",
            line={"color": colour, "width": 1.5},
            hovertemplate=f"key of token {t}, after token %{{x}}: %{{y:.2f}}<extra></extra>",
        )
        fig.add_scatter(
            x=[t],
            y=[line[t]],
            mode="markers",
            marker={"color": colour, "size": 10, "line": {"color": "white", "width": 1.5}},
            showlegend=False,
            hovertemplate=f"written here: {around(symbols, t)}<extra></extra>",
        )
    finish(
        fig,
        f"Under the {rule} rule, similarity falls from {np.mean(after):.2f} at the write "
        f"to {np.mean(end):.2f} at the end"
        if np.mean(after) >= np.mean(end)
        else f"Under the {rule} rule, similarity goes from {np.mean(after):.2f} at the write "
        f"to {np.mean(end):.2f} at the end",
        f"Layer {layer + 1}, head {head + 1}; dots mark the writes; 1 = the key reads exactly "
        "the direction of the value it stored",
        x="after so many tokens of the segment",
        y="cosine of value read and value written",
        caption="What a key reads back before its write, at it, and after later writes.",
    )
    fig.update_yaxes(range=[-1.05, 1.05])
    fig.update_layout(legend={"title": {"text": "written at"}, "font": {"family": "monospace"}})
    return fig
