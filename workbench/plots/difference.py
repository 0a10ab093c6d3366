"""Two models on the same text: where one is better, and by how much."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from workbench.paired import Comparison, Mean
from workbench.plots import page
from workbench.plots.evaluation import text_html
from workbench.plots.style import COLOURS, INK, QUIET, finish, float32, label

BETTER, WORSE = COLOURS[0], COLOURS[1]


def verdict(found: Comparison, names: Sequence[str], unit: str = "character") -> str:
    """The finding in a sentence, of two models by name."""
    mean = found.mean
    if mean.low > 0 or mean.high < 0:
        winner = names[1] if mean.low > 0 else names[0]
        return f"{winner} saves {abs(mean.mean):.3f} bits per {unit}"
    return f"No difference is proven: {names[1]} saves {mean.mean:+.4f} bits per {unit}"


def interval(found: Comparison) -> str:
    """How sure the finding is: of what the second model saves, in bits."""
    mean = found.mean
    return f"{mean.low:+.4f} to {mean.high:+.4f} bits saved, {mean.method}"


def difference_histogram(
    found: Comparison, names: Sequence[str], unit: str = "character", bins: int = 80
) -> go.Figure:
    """How the differences of single tokens are spread.

    The outermost bars hold all tokens beyond them: one in a thousand.

    Args:
        found: two models, compared in bits.
        names: of both.
        unit: what a token is.
        bins: bars, an even number, so that none holds tokens of both signs.
    """
    reach = max(float(np.quantile(np.abs(found.saved), 0.999)), 1e-3)
    edges = np.linspace(-reach, reach, bins + 1)
    inside = np.clip(found.saved, -reach, reach)
    count, _ = np.histogram(inside, edges)
    middle, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    fig = go.Figure()
    sides = (
        (names[0], middle < 0, WORSE, found.worse),
        (names[1], middle > 0, BETTER, found.better),
    )
    for name, side, colour, share in sides:
        fig.add_bar(
            x=float32(middle[side]),
            y=float32(count[side] / len(found.saved)),
            width=width,
            name=f"{label(name)} is better: {share:.1%} of tokens",
            marker_color=colour,
            hovertemplate="%{x:+.2f} bits: %{y:.3%} of tokens<extra></extra>",
        )
    finish(
        fig,
        label(verdict(found, names, unit)),
        f"{interval(found)}; {len(found.saved):,} tokens",
        x=f"bits that {label(names[1])} saves on a token",
        y="share of tokens (log)",
        caption="Differences token by token; the outermost bars hold all tokens beyond them.",
    )
    fig.update_yaxes(type="log", exponentformat="power", dtick=1)
    fig.update_layout(bargap=0, legend={"x": 0.01, "y": 0.99})
    return fig


def difference_along(
    saved: ArrayLike, mean: Mean, names: Sequence[str], unit: str = "character", bins: int = 150
) -> go.Figure:
    """The difference along the text: means of equal stretches, and over all that came before.

    Args:
        saved: (n,) bits that the second model saves on each token, in text order.
        mean: of them, with its interval.
        names: of both.
        unit: what a token is.
        bins: stretches.
    """
    every = np.asarray(saved, dtype=np.float64)
    edges = np.linspace(0, len(every), min(bins, len(every)) + 1).astype(int)
    sums = np.add.reduceat(every, edges[:-1])
    here = sums / np.diff(edges)
    fig = go.Figure()
    fig.add_hrect(y0=mean.low, y1=mean.high, fillcolor=QUIET, opacity=0.3, line_width=0)
    fig.add_bar(
        x=float32((edges[:-1] + edges[1:]) / 2),
        y=float32(here),
        width=float32(np.diff(edges)),
        marker_color=[BETTER if value > 0 else WORSE for value in here],
        name="here",
        hovertemplate="near token %{x:,.0f}: %{y:+.3f} bits<extra></extra>",
    )
    fig.add_scatter(
        x=float32(edges[1:]),
        y=float32(sums.cumsum() / edges[1:]),
        mode="lines",
        name="mean so far",
        line={"color": INK, "width": 2},
    )
    ahead = float((here > 0).mean())
    finish(
        fig,
        f"{label(names[1])} is ahead in {ahead:.0%} of {len(here)} stretches",
        f"Means over stretches of {max(1, len(every) // len(here)):,} tokens; grey: 95% interval "
        "of the mean over all",
        x="position in the text (tokens)",
        y=f"bits saved per {unit}",
        caption="Above zero the second model is better, below it the first.",
    )
    fig.update_layout(bargap=0)
    return fig


def full_colour(saved: ArrayLike) -> float:
    """Where the colour of a difference is full: one token in a hundred lies above; 1 bit at least.

    Args:
        saved: bits that one model saves on each token, of either sign.
    """
    values = np.abs(np.asarray(saved, dtype=np.float64))
    return max(1.0, float(np.ceil(np.quantile(values, 0.99)))) if len(values) else 1.0


def coloured_difference(
    symbols: Sequence[str],
    saved: ArrayLike,
    tips: Sequence[str],
    names: Sequence[str],
    top: float = 4.0,
    title: str = "",
) -> str:
    """Text whose background tells which model is better at each token, as HTML that loads nothing.

    Args:
        symbols: the tokens as text.
        saved: bits that the first model saves on each, below zero those that the second saves.
        tips: what hovering tells of each.
        names: of both models.
        top: bits at which the colour is full.
        title: a line above.
    """
    shades = [_shade(value, top) for value in np.asarray(saved, dtype=np.float64)]
    scale = " ".join(
        f'<span style="background:{_shade(sign * top, top)};padding:0 .5em">'
        f"{html.escape(name)} is better</span>"
        for sign, name in zip((1, -1), names, strict=True)
    )
    head = f'<div style="color:{page.MUTED}">{html.escape(title)} &nbsp; {scale}</div>'
    return text_html(symbols, shades, tips, head)


def _shade(saved: float, top: float) -> str:
    """Background from the page's own (0) to vermilion (the first is better) or blue."""
    colour = "224,106,27" if saved > 0 else "0,114,178"
    return f"rgba({colour},{0.8 * min(abs(saved) / top, 1.0):.3f})"
