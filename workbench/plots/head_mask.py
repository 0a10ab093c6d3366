"""The soft mask of one head over its attention, and another one that is tried out.

Paper: arXiv:1905.07799 section 2.2, equation 3.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from workbench.distances import mass_by_distance
from workbench.plots.style import ACCENT, finish, float32, kinks, layer_colour


def head_mask(
    probs_TS: ArrayLike,
    *,
    layer: int,
    head: int,
    learned: tuple[float, int],
    limit: int,
    tried: tuple[float, int] | None = None,
) -> go.Figure:
    """The mask of one head over where its attention lies, and another mask that is tried out.

    Args:
        probs_TS: attention of T queries over memory and segment.
        layer, head: of the title, from 0.
        learned: span z and ramp R, in tokens.
        limit: the longest span there may be.
        tried: z and R of the mask that is tried out; None draws the learned one alone.
    """
    mass = mass_by_distance(np.asarray(probs_TS)[None])[0]
    within = mass.cumsum()
    z, ramp = learned
    ends = [sum(pair) for pair in (learned, tried) if pair is not None]
    last = max(2, int(min(limit, np.ceil(1.15 * max(ends)) + 2)))
    fig = go.Figure()
    fig.add_bar(
        x=np.arange(1, last + 1),
        y=float32(np.pad(mass, (0, max(0, last + 1 - len(mass))))[1 : last + 1]),
        marker={"color": layer_colour(layer), "line": {"width": 0}},
        opacity=0.45,
        name="attention at this distance",
        yaxis="y2",
        hovertemplate="distance %{x}: %{y:.2%} of the attention<extra></extra>",
    )
    _mask_line(fig, "learned mask", learned, last, layer_colour(layer), "solid")
    # drawn also where nothing is tried, so that a redrawn figure has the same traces
    _mask_line(fig, "tried mask", tried or learned, last, ACCENT, "dash")
    fig.data[-1].visible = True if tried else "legendonly"
    ninety = int(np.argmax(within >= 0.9 * within[-1] - 1e-9))
    finish(
        fig,
        f"Layer {layer + 1}, head {head + 1} may see {min(limit, int(np.ceil(z)) + ramp)} tokens; "
        f"90% of its attention lies within {ninety}",
        "Lines: share that the mask lets through, 1 up to the span z, 0 after the ramp R. "
        "Bars: attention by distance",
        x="distance to the past token (tokens)",
        y="share let through",
        height=360,
        caption="The soft mask of one head (arXiv:1905.07799, eq. 3), and what lies under it.",
    )
    _second_axis(fig)
    fig.update_xaxes(range=[0, last + 1])
    return fig


def _mask_line(
    fig: go.Figure, name: str, mask: tuple[float, int], last: int, colour: str, dash: str
) -> None:
    span, ramp = mask
    distance = np.arange(1, last + 1)
    weight = np.clip((ramp + span + 1 - distance) / ramp, 0, 1)
    corners = kinks(weight)
    fig.add_scatter(
        x=distance[corners],
        y=float32(weight[corners]),
        mode="lines",
        line={"color": colour, "width": 2.5, "dash": dash},
        name=f"{name}: z = {span:.1f}, R = {ramp}",
        visible=True,
        hovertemplate=f"{name}<br>distance %{{x}}: %{{y:.2f}}<extra></extra>",
    )


def _second_axis(fig: go.Figure) -> None:
    fig.update_layout(
        yaxis={"range": [0, 1.05]},
        yaxis2={
            "title": {"text": "share of attention", "font": {"size": 13}},
            "overlaying": "y",
            "side": "right",
            "rangemode": "tozero",
            "tickformat": ".1%",
            "showgrid": False,
        },
        bargap=0.1,
        margin={"r": 75},
        legend={"orientation": "h", "y": -0.28, "x": 0},
    )
