"""A sweep as parallel axes: each run a line through its settings to its result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from workbench.plots.style import COLOURS, QUIET, finish, label

SCALE = (COLOURS[0], COLOURS[2], COLOURS[4], COLOURS[1])
"""from the best run to the worst; each readable on a light and on a dark page"""
MOST_RUNS = 200
"""lines; of more runs the best"""
MOST_TICKS = 8
"""of an axis"""
BITS = "bits per token"

Ticks = list[tuple[float, str]]
"""place on an axis from 0 to 1 -> what stands there"""


def parallel(
    fields: Mapping[str, Mapping[str, Any]],
    best: Mapping[str, float],
    names: Mapping[str, str] | None = None,
) -> go.Figure:
    """Settings of runs, and what came of them: a line a run, coloured by its bits.

    Not plotly's own parallel axes, whose hairlines and axes fade on a dark page, and which need
    WebGL: these print, and are drawings as SVG.

    Args:
        fields: dotted path -> run -> value; numbers that span a factor of eight stand on a
            logarithmic axis, other numbers on a linear one, anything else evenly.
        best: run -> bits per token; runs without are left out.
        names: dotted path -> what the axis is called; None: its last word.

    Raises:
        ValueError: no run has bits.
    """
    if not best:
        raise ValueError("best: no run was validated yet, so there is nothing to draw")
    runs = sorted(best, key=best.__getitem__)[:MOST_RUNS]
    columns = {
        (names or {}).get(path) or path.rpartition(".")[2]: [own.get(run) for run in runs]
        for path, own in fields.items()
    }
    columns[BITS] = [best[run] for run in runs]
    placed = {name: places(values) for name, values in columns.items()}
    colours = sample_colorscale(list(SCALE), [p or 0.0 for p in placed[BITS][0]])
    fig = go.Figure()
    # the best last, on top of the others
    for i in reversed(range(len(runs))):
        told = [_told(values[i]) for values in columns.values()]
        lines = [f"{label(name)}: {value}" for name, value in zip(columns, told, strict=True)]
        fig.add_scatter(
            x=[label(name) for name in columns],
            y=[own[i] for own, _ in placed.values()],
            text=told,
            name=label(runs[i]),
            mode="lines+markers",
            line={"color": colours[i], "width": 4 if i == 0 else 2},
            marker={"size": 8 if i == 0 else 6},
            hovertemplate="<br>".join([f"<b>{label(runs[i])}</b>", *lines]) + "<extra></extra>",
            showlegend=False,
        )
    for at, (_, ticks) in enumerate(placed.values()):
        _axis(fig, at, ticks)
    left_out = f"; the best {MOST_RUNS} of {len(best):,} runs" if len(best) > MOST_RUNS else ""
    finish(
        fig,
        _finding(columns),
        f"A line a run, through its settings to its best validation; blue is best{left_out}",
        height=430,
        caption="Which settings go together with which result.",
    )
    _frame(fig, len(columns))
    return fig


def _frame(fig: go.Figure, count: int) -> None:
    """Names of the axes on top of them; the places in between mean nothing to a reader."""
    fig.update_xaxes(type="category", side="top", showgrid=False, showline=False, ticks="")
    fig.update_xaxes(range=[-0.35, count - 0.8], tickfont={"size": 13}, fixedrange=True)
    title = {"text": "place on the axis (0 to 1)"}
    fig.update_yaxes(visible=False, range=[-0.06, 1.06], title=title, fixedrange=True)
    fig.update_layout(margin={"t": 110, "b": 30, "l": 30})


def _axis(fig: go.Figure, at: int, ticks: Ticks) -> None:
    fig.add_shape(
        type="line", x0=at, x1=at, y0=0, y1=1, layer="below", line={"color": QUIET, "width": 1.5}
    )
    for place, told in ticks:
        fig.add_annotation(
            x=at, y=place, text=told, showarrow=False, xanchor="right", xshift=-8,
            font={"size": 11},
        )  # fmt: skip


def _finding(columns: Mapping[str, Sequence[Any]]) -> str:
    """The settings of the best run, which comes first."""
    *settings, bits = ((name, values[0]) for name, values in columns.items())
    chosen = [f"{label(name)} {_told(value)}" for name, value in settings if value is not None][:3]
    what = ", ".join(chosen) or "The first run"
    return f"{what}: {bits[1]:.3f} bits per token, the best of {len(columns[BITS])} runs"


def places(values: Sequence[Any]) -> tuple[list[float | None], Ticks]:
    """Where the values of one field stand on its axis.

    Args:
        values: of each run; None where it lacks the field.

    Returns:
        the place of each from 0 to 1, and the ticks.
    """
    there = [v for v in values if v is not None]
    if there and all(_is_number(v) for v in there):
        return _numbers(values, sorted({float(v) for v in there}))
    kinds = list(dict.fromkeys(_told(v) for v in there))
    at = {kind: i / (len(kinds) - 1) if len(kinds) > 1 else 0.5 for i, kind in enumerate(kinds)}
    step = -(-len(kinds) // MOST_TICKS) if kinds else 1
    ticks = [(at[kind], kind) for kind in kinds[::step]]
    return [None if v is None else at[_told(v)] for v in values], ticks


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: Sequence[Any], kinds: Sequence[float]) -> tuple[list[float | None], Ticks]:
    low, high = kinds[0], kinds[-1]
    log = low > 0 and high >= 8 * low
    scale = np.log if log else np.asarray

    def place(value: float) -> float:
        if high == low:
            return 0.5
        return float((scale(value) - scale(low)) / (scale(high) - scale(low)))

    if len(kinds) > MOST_TICKS:
        spaced = np.geomspace if log else np.linspace
        marks = [(float(v), f"{v:.3g}") for v in spaced(low, high, 5)]
    else:
        marks = [(v, f"{v:.7g}" if v.is_integer() else f"{v:.4g}") for v in kinds]
    # words that would stand on each other are left out, but for the ends
    ticks: Ticks = []
    for value, told in marks:
        at = place(value)
        if ticks and at - ticks[-1][0] < 0.045:
            if value != high:
                continue
            ticks.pop()
        ticks.append((at, told))
    return [None if v is None else place(float(v)) for v in values], ticks


def _told(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.7g}" if _is_number(value) else label(str(value))
