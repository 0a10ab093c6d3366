"""Generated text beside real text, and what a continuous cache changes.

Paper: arXiv:1904.09751 (how surprising drawn text is); arXiv:1612.04426 (continuous cache).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from workbench.plots.style import COLOURS, INK, MAGNITUDE, finish, float32, mark, thin


def surprise_by_temperature(
    temperatures: Sequence[float], bits: ArrayLike, real: float, unit: str = "character"
) -> go.Figure:
    """How surprising drawn text is to the model that drew it, beside real text.

    Args:
        temperatures: increasing.
        bits: mean bits per token of the text drawn at each, under the model itself.
        real: mean bits per token of held-out text under the same model.
        unit: what a token is.
    """
    cost = np.asarray(bits, dtype=np.float64)
    fig = go.Figure(
        go.Scatter(
            x=float32(temperatures),
            y=float32(cost),
            mode="lines+markers",
            line={"color": COLOURS[0], "width": 2},
            marker={"size": 8},
            hovertemplate="temperature %{x:.2f}: %{y:.3f} bits<extra></extra>",
        )
    )
    mark(fig, real, f"real text: {real:.2f}", end="left")
    nearest = temperatures[int(np.argmin(np.abs(cost - real)))]
    finish(
        fig,
        f"At temperature {nearest:g} drawn text surprises the model most like real text",
        "Every text costed under the model itself, at temperature 1",
        x="temperature",
        y=f"bits per {unit}",
        caption="Below the line text is more predictable than what people wrote, above it less.",
    )
    fig.update_yaxes(rangemode="tozero")
    return fig


def cache_grid(
    thetas: Sequence[float], lams: Sequence[float], bits: ArrayLike, plain: float, unit: str
) -> go.Figure:
    """Bits saved by a continuous cache at each sharpness and share.

    Args:
        thetas, lams: the rows and the columns of `bits`.
        bits: mean bits per token with the cache.
        plain: without.
        unit: what a token is.
    """
    saved = plain - np.asarray(bits, dtype=np.float64)
    row, column = divmod(int(saved.argmax()), len(lams))
    fig = go.Figure(
        go.Heatmap(
            x=[f"{x:g}" for x in lams],
            y=[f"{x:g}" for x in thetas],
            z=float32(saved),
            colorscale=MAGNITUDE,
            colorbar={"title": {"text": "bits saved"}, "thickness": 12},
            hovertemplate="theta %{y}, lam %{x}: %{z:.4f} bits saved<extra></extra>",
        )
    )
    best = saved[row, column]
    found = f"saves {best:.3f}" if best > 0 else f"costs {-best:.3f}"
    finish(
        fig,
        f"The best cache {found} bits per {unit}: theta {thetas[row]:g}, lam {lams[column]:g}",
        "On validation text; below zero the cache does harm",
        x="lam: share of the cache",
        y="theta: how sharply similar states are preferred",
        caption="Sharpness and share of the continuous cache, tuned on validation text.",
    )
    fig.update_xaxes(type="category")
    fig.update_yaxes(type="category")
    return fig


def cache_gain(plain: ArrayLike, cached: ArrayLike, unit: str = "character") -> go.Figure:
    """Where along a text the cache pays: bits saved so far.

    Args:
        plain, cached: bits of each token of the same text, without and with the cache.
        unit: what a token is.
    """
    gain = np.asarray(plain, dtype=np.float64) - np.asarray(cached, dtype=np.float64)
    x, y = thin(np.arange(1, len(gain) + 1), gain.cumsum())
    fig = go.Figure(go.Scatter(x=x, y=y, mode="lines", line={"color": COLOURS[2], "width": 2}))
    fig.add_hline(y=0, line={"color": INK, "width": 1})
    won = float((gain > 0).mean())
    return finish(
        fig,
        f"The cache saves {gain.mean():.4f} bits per {unit}, and helps {won:.0%} of the tokens",
        "Sum of the bits saved up to each token; it climbs where the text repeats itself",
        x="position in the text (tokens)",
        y="bits saved so far",
        caption="A cache of recent hidden states: it pays where a text comes back to its words.",
    )
