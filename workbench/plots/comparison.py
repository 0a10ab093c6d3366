"""Several runs in one picture: learning curves, and what a setting does to the result."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.metrics import bits_per_token
from workbench.plots.curves import Row, column, rows
from workbench.plots.style import COLOURS, MAX_POINTS, QUIET, finish, float32, thin

AXES = {
    "tokens": "tokens read",
    "step": "update (step)",
    "elapsed_s": "training time (s)",
}
DASHES = ("solid", "dash", "dot", "dashdot")


MOST_POINTS = 40_000
"""of all lines together, so that a figure of many runs stays below 1 MB"""


def run_style(place: int) -> tuple[str, str]:
    """Colour and dash of a run by its place among all: the same in every figure and table."""
    # colours first; where there are more runs than colours, dashes tell them apart
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def learning_curves(
    records: Mapping[str, Sequence[Row]], over: str = "tokens", order: Sequence[str] = ()
) -> go.Figure:
    """Loss in bits of several runs: thin lines in training, thick ones on held-out text.

    Args:
        records: run -> rows of its folder, any kinds.
        over: `tokens`, `step` or `elapsed_s`.
        order: all runs, of which these may be some, for colours that stay; empty: these.

    Raises:
        ValueError: `over` is none of these.
    """
    if over not in AXES:
        raise ValueError(f"over: got '{over}', expected one of {', '.join(AXES)}")
    fig = go.Figure()
    best: dict[str, float] = {}
    places = {name: i for i, name in enumerate(order or records)}
    points = min(MAX_POINTS, MOST_POINTS // max(1, len(records)))
    for name, own in records.items():
        train, held = rows(own, "train"), rows(own, "eval")
        colour, dash = run_style(places[name])
        label = html.escape(name)
        style = {"legendgroup": label, "mode": "lines"}
        x, y = thin(_along(train, train, over), _bits(train), points)
        fig.add_scatter(
            x=x,
            y=y,
            line={"color": colour, "width": 1, "dash": dash},
            opacity=0.45,
            showlegend=not held,
            name=label,
            hovertemplate=f"%{{x:,.0f}}: %{{y:.3f}} bits<extra>{label}, training</extra>",
            **style,
        )
        if not held:
            continue
        bits = _bits(held)
        if np.isfinite(bits).any():
            best[name] = float(np.nanmin(bits))
        style["mode"] = "lines+markers"
        fig.add_scatter(
            x=float32(_along(held, train, over)),
            y=float32(bits),
            line={"color": colour, "width": 2.5, "dash": dash},
            marker={"size": 6},
            name=label,
            hovertemplate=f"%{{x:,.0f}}: %{{y:.3f}} bits<extra>{label}, validation</extra>",
            **style,
        )
    _height(fig, records)
    return finish(
        fig,
        _finding(best),
        "Thin: on the text being trained on; thick: on held-out text; lower is better",
        x=AXES[over],
        y="bits per token",
        height=460,
        caption="The loss of all runs during training.",
    )


def _bits(records: Sequence[Row]) -> Any:
    return np.array([bits_per_token(x) for x in column(records, "loss_nats")])


def _along(records: Sequence[Row], train: Sequence[Row], over: str) -> Any:
    """Where records stand on the axis; validations count no tokens, their step tells."""
    if over != "tokens":
        return column(records, over)
    if not train:
        return np.zeros(len(records))
    # from nothing read before the first update
    steps = np.concatenate([[0.0], column(train, "step")])
    tokens = np.concatenate([[0.0], column(train, "tokens")])
    return np.interp(column(records, "step"), steps, tokens)


def _height(fig: go.Figure, records: Mapping[str, Sequence[Row]]) -> None:
    """Cut off the height of the first updates, and of a run that diverged."""
    later = [_bits(rows(own, kind)) for own in records.values() for kind in ("train", "eval")]
    bits = np.concatenate([[], *later])
    bits = bits[np.isfinite(bits)]
    if len(bits) >= 10:
        low, high = float(bits.min()), float(np.quantile(bits, 0.95))
        margin = 0.06 * max(high - low, 0.1)
        fig.update_layout(yaxis={"range": [low - margin, high + margin]})


def _finding(best: Mapping[str, float]) -> str:
    if not best:
        return "No validation yet"
    name = min(best, key=best.__getitem__)
    return f"{html.escape(name)} is best: {best[name]:.3f} bits per token"


def by_field(path: str, values: Mapping[str, Any], best: Mapping[str, float]) -> go.Figure:
    """The best validation of each run over a field of their recipes.

    Args:
        path: of the field.
        values: run -> its value; numbers make an axis, anything else categories.
        best: run -> bits per token.
    """
    runs = [run for run in values if run in best]
    numbers = [values[run] for run in runs]
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
    if numeric:
        runs.sort(key=values.__getitem__)
    xs = [values[run] if numeric else str(values[run]) for run in runs]
    ys = float32([best[run] for run in runs])
    fig = go.Figure()
    fig.add_scatter(
        x=xs,
        y=ys,
        mode="markers",
        marker={"size": 9, "color": COLOURS[0]},
        text=[html.escape(run) for run in runs],
        hovertemplate="%{text}<br>%{x}: %{y:.3f} bits<extra></extra>",
        showlegend=False,
    )
    groups = dict.fromkeys(xs)
    lowest = [min(y for x, y in zip(xs, ys, strict=True) if x == group) for group in groups]
    fig.add_scatter(
        x=list(groups),
        y=lowest,
        mode="lines",
        line={"color": QUIET, "width": 1.5, "dash": "dash"},
        hoverinfo="skip",
        showlegend=False,
    )
    name = path.rpartition(".")[2]
    winner = min(runs, key=best.__getitem__)
    finish(
        fig,
        f"{html.escape(name)} {html.escape(str(values[winner]))} is best: {best[winner]:.3f} bits",
        "A point a run, its best validation; the line joins the best of each value",
        x=html.escape(path),
        y="bits per token",
        caption=f"What {html.escape(path)} does to the result.",
    )
    if not numeric:
        fig.update_xaxes(type="category")
    elif min(numbers) > 0 and max(numbers) >= 8 * min(numbers):
        fig.update_xaxes(type="log")
    return fig
