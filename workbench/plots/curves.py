"""Training in pictures: loss in bits, learning rate, gradient norm, speed, spans.

All of them read the rows of `records.jsonl` as plain dicts, whoever wrote them: the run in this
notebook, one started by a scheduler, or one that still goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from workbench.metrics import bits_per_token
from workbench.plots.style import (
    COLOURS,
    INK,
    MAX_POINTS,
    QUIET,
    finish,
    float32,
    layer_colour,
    thin,
)

Row = Mapping[str, Any]
MOST_NAMED = 6
"""layers that a legend names; more would hide what it is about"""


def rows(records: Sequence[Row], kind: str) -> list[Row]:
    """The records of one kind, in order."""
    return [r for r in records if r["kind"] == kind]


def column(records: Sequence[Row], name: str) -> NDArray[np.float64]:
    """One quantity over the records; NaN where a record lacks it."""
    values = [r.get(name) for r in records]
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _bits(records: Sequence[Row]) -> NDArray[np.float64]:
    return np.array([bits_per_token(x) for x in column(records, "loss_nats")])


def _line(
    fig: go.Figure, x: Any, y: Any, name: str, where: tuple[int, int] | None = None, **style: Any
) -> None:
    row, col = where or (None, None)
    fig.add_trace(go.Scatter(x=x, y=y, name=name, mode="lines", **style), row=row, col=col)


def _loss_traces(fig: go.Figure, records: Sequence[Row], where: tuple[int, int] | None) -> None:
    train, held = rows(records, "train"), rows(records, "eval")
    row, col = where or (None, None)
    _line(
        fig,
        *thin(column(train, "step"), _bits(train)),
        "training",
        where,
        line={"color": COLOURS[0], "width": 1.5},
        hovertemplate="step %{x:.0f}: %{y:.3f} bits<extra>training</extra>",
    )
    fig.add_trace(
        go.Scatter(
            x=column(held, "step"),
            y=float32(_bits(held)),
            name="validation",
            mode="lines+markers",
            line={"color": COLOURS[1], "width": 2},
            marker={"size": 7},
            hovertemplate="step %{x:.0f}: %{y:.3f} bits<extra>validation</extra>",
        ),
        row=row,
        col=col,
    )


def _finding(records: Sequence[Row], unit: str) -> str:
    # NaN is null in a record
    told = [r for r in records if r.get("loss_nats") is not None]
    held = rows(told, "eval")
    if held:
        best = min(held, key=lambda r: r["loss_nats"])
        bits = bits_per_token(best["loss_nats"])
        return f"Validation reaches {bits:.3f} bits per {unit} at step {best['step']:,}"
    train = rows(told, "train")
    if train:
        bits = bits_per_token(train[-1]["loss_nats"])
        return f"Training is at {bits:.3f} bits per {unit} after step {train[-1]['step']:,}"
    return "No record yet"


def learning_curve(records: Sequence[Row], unit: str = "character") -> go.Figure:
    """Loss in bits over the updates.

    Args:
        records: rows of the run folder, any kinds.
        unit: what a token is, `character` or `word`.
    """
    fig = go.Figure()
    _loss_traces(fig, records, None)
    _window(fig, records, "yaxis")
    return finish(
        fig,
        _finding(records, unit),
        "Mean loss between two records; lower is better",
        x="update (step)",
        y=f"bits per {unit}",
        caption="Loss on the text being trained on, and on held-out text, during training.",
    )


def _window(fig: go.Figure, records: Sequence[Row], axis: str) -> None:
    """Cut off the first updates' height, where it would flatten all that follows."""
    bits = _bits(rows(records, "train"))
    bits = bits[np.isfinite(bits)]
    if len(bits) >= 10:
        held = _bits(rows(records, "eval"))
        low = min([bits.min(), *held[np.isfinite(held)]])
        high = max(np.quantile(bits, 0.98), *held[np.isfinite(held)], low + 0.1)
        margin = 0.06 * (high - low)
        fig.update_layout({axis: {"range": [low - margin, high + margin]}})


def training(
    records: Sequence[Row],
    unit: str = "character",
    *,
    limit: float | None = None,
    span_layers: int | None = None,
) -> go.Figure:
    """Loss, learning rate, gradient norm, speed and spans of a run, panels over one axis.

    Lines have at most `style.MAX_POINTS` points, each a mean over neighbours.

    Args:
        records: rows of the run folder, any kinds.
        unit: what a token is.
        limit: tokens a second that the machine allows at best, see `workbench.limits`; None leaves
            the line out, NaN keeps a place for it.
        span_layers: layers with learned spans, which get a panel; None: as many as records tell.
    """
    layers = _span_layers(records) if span_layers is None else span_layers
    fig, places = _panels(unit, bool(layers))
    _loss_traces(fig, records, places["loss"])
    train = rows(records, "train")
    quantities = (("lr", ".2e"), ("grad_norm", ".3g"), ("tokens_per_s", ",.0f"))
    for name, form in quantities:
        _line(
            fig,
            *thin(column(train, "step"), column(train, name)),
            name,
            places[name],
            line={"color": COLOURS[0], "width": 1.5},
            showlegend=False,
            hovertemplate=f"step %{{x:.0f}}: %{{y:{form}}}<extra></extra>",
        )
    if limit is not None:
        _limit_line(fig, train, limit, places["tokens_per_s"])
    if layers:
        _span_lines(fig, train, layers, places["span"])
    finish(
        fig,
        _finding(records, unit),
        "Each point is a mean since the record before; rate and norm are those of its last update",
        height=720 if layers else 520,
        caption="How the training went: loss, step size, gradient norm before clipping, speed.",
    )
    fig.update_yaxes(rangemode="tozero", row=places["tokens_per_s"][0], col=2 - bool(layers))
    row, col = places["lr"]
    fig.update_yaxes(exponentformat="power", rangemode="tozero", row=row, col=col)
    _window(fig, records, "yaxis")
    x, anchor = (1, "right") if layers else (0.44, "right")
    fig.update_layout(legend={"x": x, "y": 1, "xanchor": anchor, "yanchor": "top"})
    return fig


def _panels(unit: str, spans: bool) -> tuple[go.Figure, dict[str, tuple[int, int]]]:
    """Empty panels, and row and column of each quantity; the loss gets the whole first row where
    there are five."""
    if spans:
        specs: Any = [[{"colspan": 2}, None], [{}, {}], [{}, {}]]
        order = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2)]
    else:
        specs, order = [[{}, {}], [{}, {}]], [(1, 1), (1, 2), (2, 1), (2, 2)]
    fig = make_subplots(
        len(specs), 2, specs=specs, shared_xaxes=True,
        vertical_spacing=0.08, horizontal_spacing=0.11,
    )  # fmt: skip
    names = {
        "loss": f"loss (bits per {unit})",
        "lr": "learning rate",
        "grad_norm": "gradient norm",
        "tokens_per_s": "speed (tokens/s)",
        "span": "mean span (tokens)",
    }
    places = dict(zip(names, order, strict=False))
    for name, (row, col) in places.items():
        fig.update_yaxes(title_text=names[name], row=row, col=col)
    fig.update_xaxes(title_text="update (step)", row=len(specs))
    # every panel's axis follows the loss's, also across columns and a wider first row
    fig.update_xaxes(matches="x")
    return fig, places


def _limit_line(fig: go.Figure, train: Sequence[Row], limit: float, where: tuple[int, int]) -> None:
    steps, speeds = column(train, "step"), column(train, "tokens_per_s")
    ends = [float(steps.min()), float(steps.max())] if len(steps) else [0.0, 1.0]
    word = "" if math.isnan(limit) else f"limit of matrix products here: {limit:,.0f}"
    if word and len(speeds) and np.isfinite(speeds[-1]):
        word += f"; now at {speeds[-1] / limit:.0%}"
    _line(
        fig,
        ends,
        float32([limit, limit]),
        "limit",
        where,
        line={"color": QUIET, "width": 1.5, "dash": "dash"},
        showlegend=False,
        hovertemplate=f"{word}<extra></extra>",
    )
    # a word in a trace, for an annotation would not move with the axis
    fig.add_trace(
        go.Scatter(
            x=[sum(ends) / 2], y=float32([limit]), text=[word and f" <br>{word}"], mode="text",
            textposition="bottom center", textfont={"color": INK, "size": 11},
            showlegend=False, hoverinfo="skip", name="limit",
        ),
        row=where[0],
        col=where[1],
    )  # fmt: skip


def _with_spans(records: Sequence[Row]) -> list[Row]:
    return [r for r in rows(records, "train") if r.get("readings", {}).get("span")]


def _span_layers(records: Sequence[Row]) -> int:
    return max((len(r["readings"]["span"]) for r in _with_spans(records)), default=0)


def _mean(spans: Sequence[float | None]) -> float:
    """NaN where one is not finite, which is null in a record."""
    return float(np.array(spans, dtype=np.float64).mean()) if spans else math.nan


def _span_lines(fig: go.Figure, train: Sequence[Row], layers: int, where: tuple[int, int]) -> None:
    told = [r for r in _with_spans(train) if len(r["readings"]["span"]) == layers]
    steps = column(told, "step")
    for layer in range(layers):
        means = np.array([_mean(r["readings"]["span"][layer]) for r in told], dtype=np.float64)
        _line(
            fig,
            *thin(steps, means),
            f"layer {layer + 1}",
            where,
            line={"color": layer_colour(layer), "width": 1.5},
            showlegend=layers <= MOST_NAMED,
            legend="legend2",
            hovertemplate=(
                f"layer {layer + 1}, mean of its heads<br>"
                "step %{x:.0f}: %{y:.1f} tokens<extra></extra>"
            ),
        )
    above = {"x": 1, "y": 0.275, "xanchor": "right", "yanchor": "bottom", "orientation": "h"}
    fig.update_layout(legend2={**above, "bgcolor": "rgba(0,0,0,0)"})


def span_over_training(records: Sequence[Row]) -> go.Figure:
    """Learned span of every head over the updates: a line a head, coloured by layer.

    Raises:
        ValueError: no record carries spans.
    """
    with_span = _with_spans(records)
    if not with_span:
        raise ValueError("no training record carries spans: the model has none to learn")
    steps = column(with_span, "step")
    # (record, layer, head); models with layers of different head counts make ragged rows
    layers = len(with_span[0]["readings"]["span"])
    points = min(MAX_POINTS, 20_000 // sum(map(len, with_span[0]["readings"]["span"])))
    fig = go.Figure()
    every: list[NDArray[np.float64]] = []
    for layer in range(layers):
        over_time = np.array([r["readings"]["span"][layer] for r in with_span], dtype=np.float64)
        for head, tokens in enumerate(over_time.T):
            every.append(tokens)
            _line(
                fig,
                *thin(steps, tokens, points),
                f"layer {layer + 1}",
                line={"color": COLOURS[layer % len(COLOURS)], "width": 1},
                opacity=0.75,
                legendgroup=f"{layer}",
                showlegend=head == 0,
                hovertemplate=(
                    f"layer {layer + 1}, head {head + 1}<br>"
                    "step %{x:.0f}: %{y:.1f} tokens<extra></extra>"
                ),
            )
    spans = np.stack(every)
    mean = spans.mean(0)
    _line(fig, *thin(steps, mean), "mean", line={"color": INK, "width": 3, "dash": "dash"})
    _line(fig, *thin(steps, spans.max(0)), "longest", line={"color": QUIET, "width": 2})
    return finish(
        fig,
        f"The mean span goes from {mean[0]:.1f} to {mean[-1]:.1f} tokens, "
        f"the longest ends at {spans[:, -1].max():.1f}",
        "One thin line a head, coloured by layer; span without the soft ramp beyond it",
        x="update (step)",
        y="span (tokens)",
        caption="Each head pays for its span and learns how far back it is worth looking.",
    )
