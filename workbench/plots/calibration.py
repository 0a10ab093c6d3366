"""Whether a model is right as often as it says."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.calibration import Reliability
from workbench.plots.style import COLOURS, QUIET, finish, float32


def reliability_diagram(found: Reliability, unit: str = "character") -> go.Figure:
    """Accuracy over confidence in bins, and below how many tokens each bin has.

    Args:
        found: bins with their tokens.
        unit: what a token is.
    """
    fig = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.06)
    line = {"color": QUIET, "dash": "dash", "width": 1.5}
    fig.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="as often as said", line=line)
    full = found.tokens > 0
    low, high, hover = found.edges[:-1][full], found.edges[1:][full], _told(found)
    fig.add_scatter(
        x=float32(found.confidence[full]),
        y=float32(found.accuracy[full]),
        error_y={"array": float32(1.96 * found.standard_error[full]), "thickness": 1},
        mode="lines+markers",
        name="right",
        line={"color": COLOURS[0], "width": 2},
        marker={"size": 8},
        text=hover,
        hovertemplate="%{text}<extra></extra>",
    )
    share = found.tokens[full] / found.tokens.sum()
    fig.add_bar(
        x=float32((low + high) / 2),
        y=float32(share),
        # a little air between bins
        width=float32((high - low) * 0.94),
        marker_color=COLOURS[0],
        text=hover,
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        row=2,
        col=1,
    )
    over = found.overconfidence
    claim = "claims too much" if over > 0 else "claims too little"
    accuracy = float(np.nansum(found.accuracy * found.tokens) / found.tokens.sum())
    finish(
        fig,
        f"Right for {accuracy:.1%} of the {unit}s, says {accuracy + over:.1%}: "
        f"{claim} by {abs(over):.1%}",
        f"Expected calibration error {found.ece:.4f} in {found.binning.split(',')[0]}; "
        f"{found.chance:.4f} would be chance",
        height=520,
        caption="Below the dashed line the model is less often right than it says. Error bars: "
        "1.96 standard errors that count in the dependence of neighbouring tokens.",
    )
    fig.update_yaxes(title_text="right (share of the bin)", range=[0, 1.02], row=1)
    fig.update_yaxes(title_text="share of tokens", rangemode="tozero", row=2)
    fig.update_xaxes(title_text="probability of the likeliest token", row=2)
    fig.update_xaxes(range=[0, 1], showticklabels=True)
    fig.update_layout(legend={"x": 0.02, "y": 0.99})
    return fig


def _told(found: Reliability) -> list[str]:
    """What each bin with tokens says under the mouse."""
    told = []
    for i in np.flatnonzero(found.tokens):
        low, high = found.edges[i], found.edges[i + 1]
        line = f"{found.tokens[i]:,} tokens said {low:.3f} to {high:.3f}, "
        line += f"{found.confidence[i]:.3f} on average<br>{found.accuracy[i]:.3f} were right"
        if np.isfinite(found.standard_error[i]):
            line += f" (standard error {found.standard_error[i]:.3f})"
        told.append(line)
    return told
