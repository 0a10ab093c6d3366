"""What a key would read from a fast-weight memory now, and the memory it would read.

Paper: arXiv:2102.11174 sections 3 (reading and writing) and 4.2 (delta rule).
Layers, heads and tokens are counted from 1 in pictures and from 0 in arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from plotly.subplots import make_subplots

from workbench.fast_weight_measures import Answer
from workbench.plots.fast_weights import FRAME_SIDE
from workbench.plots.feature_maps import BARE
from workbench.plots.style import (
    ACCENT,
    COLOURS,
    INK,
    QUIET,
    SIGNED,
    around,
    finish,
    float32,
    pool,
    shown,
)

LIKENESS, OWN, OTHER = COLOURS[0], ACCENT, QUIET
STEM = 5
"""points of a line that stands like a bar, with the gap after it"""
TIED = 1e-3
"""cosines this close are one: tokens of one kind may write the same value"""


class Moment(NamedTuple):
    """What the picture shows after one token was written, for one key."""

    z: NDArray[np.float32]
    """the matrix, pooled"""
    likeness_T: NDArray[np.float32]
    share_T: NDArray[np.float32]
    """per cent; the first entry is what was in the memory before"""
    title: str
    subtitle: str


def moment(W_FV: ArrayLike, answer: Answer, symbols: Sequence[str], t: int, where: str) -> Moment:
    """The part of `laboratory` that changes with time; the title names the value most alike.

    Args:
        W_FV: the matrix after token `t`.
        answer: what the chosen token's key reads, over time.
        symbols: the T tokens as text.
        t: from 0.
        where: layer and head in words.
    """
    likeness, key = answer.likeness_TT[t], answer.token
    best, before = int(np.nanargmax(likeness)), answer.share_before_T[t]
    asked = f"After token {t + 1} the key of '{shown(symbols[key])}' ({key + 1}) reads"
    if key <= t and likeness[key] >= likeness[best] - TIED:
        found = f"its own value, cosine {likeness[key]:.2f}"
    else:
        found = f"that of '{shown(symbols[best])}' ({best + 1}), cosine {likeness[best]:.2f}"
    own = f"cosine with its own value {answer.own_T[t]:.2f}"
    own += "" if key <= t else ", which is written later"
    subtitle = f"{where}; {own}; {before:.0%} of what it reads was there before the stretch"
    shares = 100 * np.concatenate([[before], np.nan_to_num(answer.share_TT[t])])
    z = pool(W_FV, FRAME_SIDE)[0]
    return Moment(z, float32(likeness), float32(shares), f"{asked} {found}", subtitle)


class OverTime(NamedTuple):
    """The part of `laboratory` that changes with the key."""

    own_T: NDArray[np.float32]
    """cosine of what is read and the key's own value"""
    best_T: NDArray[np.float32]
    """greatest cosine with another token's value"""


def over_time(answer: Answer) -> OverTime:
    """What one key reads, over the whole stretch."""
    others, key = np.nan_to_num(answer.likeness_TT, nan=-1.0), answer.token
    others[:, key] = -1.0
    best = others.max(1)
    if key == 0:
        # no other token has written yet
        best[0] = np.nan
    return OverTime(float32(answer.own_T), float32(best))


def laboratory(now: Moment, line: OverTime, symbols: Sequence[str], key: int, t: int) -> go.Figure:
    """The memory at one moment, and what one token's key reads from it.

    Left the matrix; right, from above, how alike what is read is to the value that each token
    wrote, how much of what is read comes from each write, and how the reading changes over time.

    Args:
        now: by `moment`.
        line: by `over_time`.
        symbols: the T tokens as text.
        key, t: from 0: whose key is asked, and after which token.
    """
    place = np.arange(len(symbols)) + 1
    fig = make_subplots(
        3,
        2,
        specs=[[{"rowspan": 3}, {}], [None, {}], [None, {}]],
        column_widths=[0.26, 0.74],
        row_heights=[0.36, 0.28, 0.36],
        horizontal_spacing=0.17,
        vertical_spacing=0.09,
    )
    _matrix(fig, now.z)
    _stems(fig, place, symbols)
    _lines(fig, line, place)
    finish(
        fig,
        now.title,
        now.subtitle,
        height=600,
        caption="A fast-weight memory at one moment of the text, and what one token's key reads "
        "from it: which stored values come back, and which writes they come from.",
    )
    _axes(fig, symbols)
    _raise(fig, now, key)
    fig.update_layout(
        shapes=vertical(key, t),
        legend={"x": 1, "xanchor": "right", "y": 0.0, "yanchor": "bottom", "orientation": "h"},
        margin={"t": 84, "b": 56},
    )
    return fig


def _matrix(fig: go.Figure, z: NDArray[np.float32]) -> None:
    limit = _limit(z)
    fig.add_heatmap(
        z=z,
        zmin=-limit,
        zmax=limit,
        colorscale=SIGNED,
        showscale=False,
        hovertemplate="feature %{y}, value entry %{x}: %{z:.3g}<extra></extra>",
        row=1,
        col=1,
    )


def _stems(fig: go.Figure, place: NDArray[np.int64], symbols: Sequence[str]) -> None:
    """Thick lines that stand like bars, `_raise` says how high: all tokens', then the key's own.

    Hundreds of bars would be hundreds of things to a browser, and half of the time that it takes
    to answer a slider.
    """
    for row, told, colours in (
        (1, "%{x}: cosine %{customdata:.2f}<extra></extra>", (LIKENESS, OWN)),
        (2, "%{x}: %{customdata:.0f}% of what is read<extra></extra>", (LIKENESS, OWN, INK)),
    ):
        for colour in colours:
            fig.add_scatter(
                x=np.repeat(place, STEM),
                mode="lines",
                line={"color": colour, "width": float(np.clip(400 / len(place), 1, 12))},
                showlegend=False,
                hovertemplate=told,
                row=row,
                col=2,
            )
    fig.data[5].x = np.zeros(STEM)
    # the axes know the words, which stand in place of numbers with a decimal: hover labels have
    # one, ticks have none
    words = {f"{s + 1:.1f}": f"value of token {s + 1}: {around(symbols, s, 8)}" for s in place - 1}
    for axis in (fig.layout.xaxis2, fig.layout.xaxis3):
        axis.hoverformat, axis.tickformat = ".1f", "d"
        axis.labelalias = {"0.0": "before the stretch", **words}


def _raise(fig: go.Figure, now: Moment, key: int) -> None:
    """Give the stems their heights, and the key's own its place."""
    one = slice(key, key + 1)
    for trace, y_T in ((fig.data[1], now.likeness_T), (fig.data[3], now.share_T[1:])):
        others = y_T.copy()
        others[one] = np.nan
        _stand(trace, others)
    for trace, y_T in ((fig.data[2], now.likeness_T), (fig.data[4], now.share_T[1:])):
        trace.x = [key + 1] * STEM
        _stand(trace, y_T[one])
    _stand(fig.data[5], now.share_T[:1])


def _stand(trace: go.Scatter, y_T: NDArray[np.float32]) -> None:
    # points all along a stem, for a mouse to find; the last is missing and ends it
    y_TP = y_T[:, None] * np.append(np.linspace(0, 1, STEM - 1), np.nan)
    trace.y, trace.customdata = float32(y_TP.ravel()), float32(np.repeat(y_T, STEM))


def _lines(fig: go.Figure, line: OverTime, place: NDArray[np.int64]) -> None:
    told = "after token %{x}: %{y:.2f}<extra></extra>"
    for y, name, colour, width in (
        (line.best_T, "most alike of the others", OTHER, 1.5),
        (line.own_T, "its own value", OWN, 2.5),
    ):
        fig.add_scatter(
            x=place,
            y=y,
            mode="lines",
            name=name,
            line={"color": colour, "width": width},
            hovertemplate=told,
            row=3,
            col=2,
        )


def _axes(fig: go.Figure, symbols: Sequence[str]) -> None:
    fig.update_yaxes(title_text="key feature", autorange="reversed", row=1, col=1, **BARE)
    fig.update_xaxes(title_text="value entry", row=1, col=1, **BARE)
    fig.update_yaxes(title_text="cosine with<br>value written", range=[-1.05, 1.05], row=1, col=2)
    fig.update_yaxes(title_text="share of what<br>is read (%)", row=2, col=2)
    fig.update_yaxes(title_text="cosine,<br>over time", range=[-1.05, 1.05], row=3, col=2)
    for row in (1, 2, 3):
        # the lowest axis tells the tokens of all three
        fig.update_xaxes(range=[-0.5, len(symbols) + 1], showticklabels=row == 3, row=row, col=2)
    # what need not be measured on the page is not: a slider waits for it
    for axes in (fig.update_xaxes, fig.update_yaxes):
        axes(automargin=False, ticklabeloverflow="allow")
    fig.update_xaxes(title_text="token of the stretch (0: before it)", row=3, col=2)


def vertical(key: int, t: int) -> list[dict[str, Any]]:
    """Lines at the key's own write and at the moment, across what is drawn over tokens."""
    both = ((key + 1, OWN, "dot"), (t + 1, INK, "dash"))
    return [
        {
            "type": "line",
            "xref": "x4",
            "yref": "y4 domain",
            "x0": x,
            "x1": x,
            "y0": 0,
            "y1": 1,
            "line": {"color": colour, "dash": dash, "width": 1.5},
        }
        for x, colour, dash in both
    ]


def change(fig: go.Figure, now: Moment, line: OverTime | None, key: int, t: int) -> None:
    """Turn a figure of `laboratory` to another moment, and to another key if `line` is given.

    Nothing else of it depends on them, so that little is sent to a browser.
    """
    matrix, *_, best, own = fig.data
    limit = _limit(now.z)
    matrix.update(z=now.z, zmin=-limit, zmax=limit)
    _raise(fig, now, key)
    if line is not None:
        best.y, own.y = line.best_T, line.own_T
    fig.layout.title.text, fig.layout.title.subtitle.text = now.title, now.subtitle
    fig.layout.shapes = vertical(key, t)


def _limit(z: NDArray[np.float32]) -> float:
    return float(np.quantile(np.abs(z), 0.998)) or 1.0
