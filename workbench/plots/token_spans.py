"""Dynamic spans: how far back each head looks from each token, drawn under the text.

Paper: arXiv:1905.07799, the end of section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from workbench.plots.style import MAGNITUDE, finish, float32, shown

LINE_SYMBOLS = 64
"""characters of a line of text in `token_spans`, in the mean"""
MOST_LINES = 4


def token_spans(
    spans_LHT: Sequence[ArrayLike], symbols: Sequence[str], layers: Sequence[int] | None = None
) -> go.Figure:
    """How far each head looks back from each token, under the text itself.

    The first `MOST_LINES` lines of the text are drawn: 64 tokens each, fewer where they are words.

    Args:
        spans_LHT: per layer, (H, T) span of each head at each token, in tokens.
        symbols: the T tokens as text.
        layers: which layers these are, from 0; None: 0, 1, ...
    """
    numbers = list(range(len(spans_LHT))) if layers is None else list(layers)
    grid = np.concatenate([np.atleast_2d(np.asarray(z, dtype=float)) for z in spans_LHT])
    names = [
        f"layer {layer + 1}, head {head + 1}"
        for layer, z in zip(numbers, spans_LHT, strict=True)
        for head in range(len(np.asarray(z)))
    ]
    words = [shown(s) for s in symbols]
    width = max(8, LINE_SYMBOLS // -(-sum(map(len, symbols)) // len(symbols)))
    T = min(grid.shape[1], MOST_LINES * width)
    lines = -(-T // width)
    height = 150 + lines * (40 + 16 * len(names))
    fig = make_subplots(lines, 1, vertical_spacing=min(44 / (height - 150), 0.9 / lines))
    top = float(np.quantile(grid[:, :T], 0.995)) or 1.0
    for line in range(lines):
        places = np.arange(line * width, min(T, (line + 1) * width))
        _line_of_spans(fig, line, places, grid[:, places], names, words)
        # a short last line keeps the width of its cells
        fig.update_xaxes(range=[places[0] - 0.5, places[0] + width - 0.5], row=line + 1, col=1)
    spread, mean = grid[:, :T].std(1), grid[:, :T].mean(1)
    most = int(spread.argmax())
    furthest = int(grid[most, :T].argmax())
    finish(
        fig,
        f"{names[most][0].upper()}{names[most][1:]} changes its span most: {mean[most]:.1f} "
        f"± {spread[most]:.1f} tokens, longest at “{words[furthest]}” (token {furthest})",
        "Each column is a token, each row a head; colour: how far it looks back from there",
        height=height,
        caption="Dynamic spans: how far back each head looks, token by token, under the text.",
    )
    colours = {"colorscale": MAGNITUDE, "cmin": 0, "cmax": top}
    fig.update_layout(coloraxis={**colours, "colorbar": {"title": {"text": "tokens"}}})
    fig.update_xaxes(title_text="token of the text", row=lines, col=1)
    fig.update_yaxes(title_text="head", row=1, col=1)
    return fig


def _line_of_spans(
    fig: go.Figure,
    line: int,
    places: np.ndarray,
    spans: np.ndarray,
    names: Sequence[str],
    words: Sequence[str],
) -> None:
    here = [words[i] for i in places]
    fig.add_trace(
        go.Heatmap(
            z=float32(spans),
            x=places,
            y=np.arange(len(names)),
            coloraxis="coloraxis",
            text=[[f"{word}<br>{name}" for word in here] for name in names],
            hovertemplate="token %{x}: %{text}: %{z:.1f} tokens<extra></extra>",
            xgap=1,
            ygap=1,
        ),
        row=line + 1,
        col=1,
    )
    fig.update_xaxes(
        tickvals=places,
        ticktext=here,
        tickangle=0,
        ticks="",
        tickfont={"family": "ui-monospace, Menlo, Consolas, monospace", "size": 11},
        showgrid=False,
        row=line + 1,
        col=1,
    )
    fig.update_yaxes(
        tickvals=np.arange(len(names)),
        ticktext=[n.replace("layer ", "").replace(", head ", ".") for n in names],
        autorange="reversed",
        showgrid=False,
        ticks="",
        row=line + 1,
        col=1,
    )
