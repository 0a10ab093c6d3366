"""The soft mask of one head over its attention, and another one that is tried out.

Paper: arXiv:1905.07799 section 2.2, equation 3.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

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
    last = _extent(learned, limit)
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
    # there also where nothing is tried, so that a redrawn figure has the same traces
    _mask_line(fig, "tried mask", learned, last, ACCENT, "dash")
    fig.data[-1].visible = "legendonly"
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
    _second_axis(fig, float(fig.data[0].y.max()))
    fig.update_xaxes(range=[0, last + 1])
    if tried is not None:
        try_mask(fig, tried, limit)
    return fig


def try_mask(fig: go.Figure, tried: tuple[float, int], limit: int) -> None:
    """Draw another mask into a figure of `head_mask`, in place of the last one that was tried.

    Args:
        fig: changed in place.
        tried: z and R, in tokens.
        limit: the longest span there may be.
    """
    last = _extent(tried, limit)
    x, y = _corners(tried, last)
    fig.data[-1].update(x=x, y=y, name=_named("tried mask", tried), visible=True)
    # nothing of the attention lies beyond the learned mask, so that the bars may end there
    fig.layout.xaxis.range = [0, max(last, fig.data[0].x[-1]) + 1]


def _extent(mask: tuple[float, int], limit: int) -> int:
    """How far the axis goes: a little beyond the end of the soft edge."""
    return max(2, int(min(limit, np.ceil(1.15 * sum(mask)) + 2)))


def _corners(mask: tuple[float, int], last: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Distances at which a mask bends, up to `last`, and its values there."""
    span, ramp = mask
    distance = np.arange(1, last + 1)
    weight = np.clip((ramp + span + 1 - distance) / ramp, 0, 1)
    corners = kinks(weight)
    return distance[corners], float32(weight[corners])


def _named(name: str, mask: tuple[float, int]) -> str:
    return f"{name}: z = {mask[0]:.1f}, R = {mask[1]}"


def _mask_line(
    fig: go.Figure, name: str, mask: tuple[float, int], last: int, colour: str, dash: str
) -> None:
    x, y = _corners(mask, last)
    fig.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": colour, "width": 2.5, "dash": dash},
        name=_named(name, mask),
        visible=True,
        hovertemplate=f"{name}<br>distance %{{x}}: %{{y:.2f}}<extra></extra>",
    )


def _second_axis(fig: go.Figure, top: float) -> None:
    # its ticks stand beside those of the first axis, every 0.2, and are to be round, too
    tick = next((t for t in (0.005, 0.01, 0.02, 0.05, 0.1) if 5 * t >= top), 0.2)
    fig.update_layout(
        yaxis={"range": [0, 1.05], "dtick": 0.2},
        yaxis2={
            "title": {"text": "share of attention", "font": {"size": 13}},
            "overlaying": "y",
            "side": "right",
            "range": [0, 5.25 * tick],
            "dtick": tick,
            "tickformat": ".1%" if tick < 0.01 else ".0%",
            "showgrid": False,
        },
        bargap=0.1,
        margin={"r": 75},
        legend={"orientation": "h", "y": -0.28, "x": 0},
    )
