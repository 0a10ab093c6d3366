"""What a model expected at one token, and what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.plots.style import ACCENT, COLOURS, finish, float32, label, shown, visible


class Expected(NamedTuple):
    """What one model thought before one token."""

    symbol: str
    """the token that came"""
    nats: float
    """its cost"""
    rank: int
    """1 + how many tokens were strictly likelier"""
    symbols: Sequence[str]
    """(k,) the likeliest tokens, likeliest first"""
    probabilities: Sequence[float]
    """(k,) of those"""

    @property
    def probability(self) -> float:
        """Of the token that came."""
        return float(np.exp(-self.nats))


def tip(told: Expected) -> str:
    """All of it as lines of plain text; whoever makes HTML of it escapes it."""
    bits = told.nats / np.log(2)
    head = (
        f"{visible(told.symbol)}  {told.nats:.2f} nats ({bits:.2f} bits), "
        f"p = {told.probability:.3g}, rank {told.rank:,}"
    )
    pairs = zip(told.symbols, told.probabilities, strict=True)
    likely = "   ".join(f"{visible(symbol)} {p:.3f}" for symbol, p in pairs)
    return f"{head}\nlikeliest: {likely}" if likely else head


def likeliest(models: dict[str, Expected], context: str = "") -> go.Figure:
    """The likeliest tokens before one token, and the one that came, in bars; a column per model.

    Args:
        models: what to call each ("" for a single one) -> what it thought.
        context: the text around, as the subtitle.
    """
    fig = make_subplots(
        cols=len(models), subplot_titles=[label(name) for name in models], horizontal_spacing=0.14
    )
    most = max(len(told.symbols) for told in models.values()) + 1
    for column, told in enumerate(models.values(), 1):
        names, chances = [*told.symbols], [float(p) for p in told.probabilities]
        # ranks tell bars apart whose tokens look alike
        ranks = list(range(1, len(names) + 1))
        if told.rank > len(names) or told.symbol not in names:
            names, chances = [*names, told.symbol], [*chances, told.probability]
            ranks.append(told.rank)
        came = names.index(told.symbol)
        fig.add_bar(
            x=float32(chances),
            y=[
                f"{'→ ' if i == came else ''}{shown(name)}  {rank:,}"
                for i, (name, rank) in enumerate(zip(names, ranks, strict=True))
            ],
            orientation="h",
            marker_color=[ACCENT if i == came else COLOURS[0] for i in range(len(names))],
            text=[f"{p:.3f}" if p >= 0.0005 else f"{p:.1e}" for p in chances],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.4g}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
    fig.update_yaxes(type="category", autorange="reversed", showgrid=False, ticks="")
    first = next(iter(models.values()))
    places = " and ".join(f"{told.rank:,}" for told in models.values())
    costs = " and ".join(f"{told.nats:.2f}" for told in models.values())
    finish(
        fig,
        f"{shown(first.symbol)} came: rank {places}, {costs} nats",
        context,
        x="probability",
        height=150 + 28 * most + 30 * (len(models) > 1),
        caption="What the model held likeliest at a token, and the token that came (orange).",
    )
    if len(models) > 1:
        fig.update_annotations(font_size=12).update_layout(margin_t=110)
    fig.update_xaxes(range=[0, 1.12])
    fig.update_yaxes(title_text="token and its rank", col=1)
    fig.update_layout(bargap=0.3)
    return fig
