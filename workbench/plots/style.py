"""One look for all figures: light, colour-blind safe, units on the axes, a title that says it.

Figures take plain numbers (lists or numpy arrays) and return a `plotly.graph_objects.Figure`, so
that they need neither a model nor a browser. Large maps are pooled before they are drawn.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

CONFIG: dict[str, Any] = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
"""Of every shown figure; plotly 7 would offer to upload the data otherwise."""

# Okabe and Ito's palette, without its yellow, which vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D5D5D", "#000000")
QUIET = "#9AA3AD"
INK = "#1F2933"
GRID = "#E4E7EB"
MAGNITUDE = "Viridis"
"""for quantities from zero up"""
SIGNED = "RdBu"
"""for quantities around zero; use with `zmid=0`"""
WIDTH = 860
"""of a figure in a notebook, in pixels"""
MAX_SIDE = 256
"""cells of a map along either axis"""
MAX_POINTS = 600
"""points of a line"""

_AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": GRID,
    "linecolor": QUIET,
    "showline": True,
    "ticks": "outside",
    "tickcolor": QUIET,
    "ticklen": 4,
    "title": {"font": {"size": 13}, "standoff": 8},
    "automargin": True,
}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Inter, Helvetica, Arial, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": COLOURS,
        "title": {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "yref": "container",
            "font": {"size": 16},
            "subtitle": {"font": {"size": 12, "color": "#52606D"}},
        },
        "margin": {"l": 70, "r": 30, "t": 80, "b": 60},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"bgcolor": "rgba(255,255,255,0.8)", "font": {"size": 11}},
        "hoverlabel": {"font": {"family": "ui-monospace, Menlo, Consolas, monospace", "size": 12}},
        "coloraxis": {"colorbar": {"thickness": 12, "outlinewidth": 0}},
        "width": WIDTH,
    }
)


def finish(
    fig: go.Figure,
    title: str,
    subtitle: str = "",
    *,
    x: str = "",
    y: str = "",
    height: int = 400,
    caption: str = "",
) -> go.Figure:
    """Give a figure the common look.

    Args:
        fig: the figure with its traces; changed in place.
        title: the finding, in a short sentence.
        subtitle: how to read the picture.
        x, y: titles of the axes, with units; empty for those that the figure set itself.
        height: in pixels.
        caption: what the report writes below it; kept in `layout.meta`.

    Returns:
        the same figure.
    """
    fig.update_layout(template=TEMPLATE, height=height)
    fig.update_layout(title={"text": title, "subtitle": {"text": subtitle}})
    fig.update_layout(title={"y": 1 - 14 / height, "yanchor": "top"})
    if x:
        fig.update_xaxes(title_text=x)
    if y:
        fig.update_yaxes(title_text=y)
    if caption:
        fig.update_layout(meta={"caption": caption})
    return fig


def mark(
    fig: go.Figure,
    value: float,
    text: str,
    *,
    axis: str = "y",
    log: bool = False,
    end: str = "right",
    row: int = 0,
) -> None:
    """A dashed line at a value of one axis, with a word at its end.

    Args:
        end: of the line on the y axis; on the x axis, which side of the word the line is.
        row: on the x axis, how many words lower, where lines stand close together.

    Plotly places words, unlike lines, by the logarithm on a logarithmic axis; hence `log`.
    """
    at = float(np.log10(value)) if log else value
    style = {"color": QUIET, "dash": "dash", "width": 1.5}
    word: dict[str, Any] = {
        "bgcolor": "rgba(255,255,255,0.7)",
        "text": text,
        "showarrow": False,
        "font": {"size": 11, "color": "#52606D"},
    }
    if axis == "y":
        fig.add_shape(type="line", xref="paper", x0=0, x1=1, y0=value, y1=value, line=style)
        fig.add_annotation(
            word, xref="paper", x=float(end == "right"), y=at, xanchor=end, yanchor="bottom"
        )
    else:
        fig.add_shape(type="line", yref="paper", y0=0, y1=1, x0=value, x1=value, line=style)
        fig.add_annotation(
            word,
            yref="paper",
            y=1,
            x=at,
            xanchor=end,
            yanchor="top",
            yshift=-16 * row,
            xshift=6 if end == "left" else -6,
        )


def float32(values: ArrayLike | Sequence[Any]) -> NDArray[np.float32]:
    """Numbers as plotly sends them smallest; None becomes NaN, a gap in a line."""
    return np.asarray(values, dtype=np.float64).astype(np.float32)


def pool(matrix: ArrayLike, max_side: int = MAX_SIDE) -> tuple[NDArray[np.float32], int, int]:
    """Shrink a map by taking the entry of largest magnitude of each cell.

    A mean would wash out what is looked for: thin diagonals and single bright columns.

    Args:
        matrix: (rows, columns).
        max_side: most rows and most columns of the result.

    Returns:
        the smaller map, and how many rows and columns one of its cells covers.
    """
    full = float32(matrix)
    if full.ndim != 2 or not full.size:
        raise ValueError(f"expected a matrix with at least one entry, got shape {full.shape}")
    step_r, step_c = (-(-side // max_side) for side in full.shape)
    padded = np.pad(full, ((0, -full.shape[0] % step_r), (0, -full.shape[1] % step_c)))
    cells = padded.reshape(padded.shape[0] // step_r, step_r, -1, step_c).swapaxes(1, 2)
    flat = cells.reshape(*cells.shape[:2], -1)
    chosen = np.abs(flat).argmax(-1)
    return np.take_along_axis(flat, chosen[..., None], -1)[..., 0], step_r, step_c


def thin(
    x: ArrayLike, y: ArrayLike, max_points: int = MAX_POINTS
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A line with at most `max_points` points: means over equal runs of neighbours."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) > max_points:
        edges = np.linspace(0, len(xs), max_points + 1).astype(int)
        xs, ys = (np.add.reduceat(v, edges[:-1]) / np.diff(edges) for v in (xs, ys))
    return xs.astype(np.float32), ys.astype(np.float32)


def kinks(y: ArrayLike) -> NDArray[np.int64]:
    """Which points of a line of straight pieces must be kept to draw it exactly."""
    bend = np.abs(np.diff(np.asarray(y, dtype=np.float64), 2)) > 1e-6
    return np.flatnonzero(np.concatenate([[True], bend, [True]]))


def label(text: str) -> str:
    """Text of a corpus inside a figure: plotly would read `<b>` in it as bold."""
    return html.escape(text, quote=False)


def shown(symbol: str) -> str:
    """One token as visible text."""
    return label({" ": "␣", "\n": "↵", "\t": "⇥"}.get(symbol, symbol))


def around(symbols: Sequence[str], t: int, width: int = 12) -> str:
    """The text near token `t`, which stands in brackets: for hover labels."""
    before = "".join(shown(s) for s in symbols[max(0, t - width) : t])
    after = "".join(shown(s) for s in symbols[t + 1 : t + 1 + width])
    return f"{before}[{shown(symbols[t])}]{after}"
