"""Training in pictures: loss in bits, learning rate, gradient norm, speed, spans.

All of them read the rows of `records.jsonl` as plain dicts, whoever wrote them: the run in this
notebook, one started by a scheduler, or one that still goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from workbench.metrics import bits_per_token
from workbench.plots.style import COLOURS, INK, MAX_POINTS, QUIET, finish, float32, thin

Row = Mapping[str, Any]


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
    held = rows(records, "eval")
    if held:
        best = min(held, key=lambda r: r["loss_nats"])
        bits = bits_per_token(best["loss_nats"])
        return f"Validation reaches {bits:.3f} bits per {unit} at step {best['step']:,}"
    train = rows(records, "train")
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


def training(records: Sequence[Row], unit: str = "character") -> go.Figure:
    """Loss, learning rate, gradient norm and speed of a run, four panels over one axis."""
    names = (f"loss (bits per {unit})", "learning rate", "gradient norm", "speed (tokens/s)")
    fig = make_subplots(2, 2, shared_xaxes=True, vertical_spacing=0.1, horizontal_spacing=0.11)
    _loss_traces(fig, records, (1, 1))
    train = rows(records, "train")
    quantities = (("lr", 1, 2, ".2e"), ("grad_norm", 2, 1, ".3g"), ("tokens_per_s", 2, 2, ",.0f"))
    for name, row, col, form in quantities:
        _line(
            fig,
            *thin(column(train, "step"), column(train, name)),
            name,
            (row, col),
            line={"color": COLOURS[0], "width": 1.5},
            showlegend=False,
            hovertemplate=f"step %{{x:.0f}}: %{{y:{form}}}<extra></extra>",
        )
    finish(
        fig,
        _finding(records, unit),
        "Each point is a mean since the record before; rate and norm are those of its last update",
        height=520,
        caption="How the training went: loss, step size, gradient norm before clipping, speed.",
    )
    for i, name in enumerate(names):
        fig.update_yaxes(title_text=name, row=1 + i // 2, col=1 + i % 2)
    fig.update_yaxes(rangemode="tozero", row=2, col=2)
    fig.update_yaxes(exponentformat="power", rangemode="tozero", row=1, col=2)
    fig.update_xaxes(title_text="update (step)", row=2)
    _window(fig, records, "yaxis")
    fig.update_layout(legend={"x": 0.44, "y": 1, "xanchor": "right", "yanchor": "top"})
    return fig


def span_over_training(records: Sequence[Row]) -> go.Figure:
    """Learned span of every head over the updates: a line a head, coloured by layer.

    Raises:
        ValueError: no record carries spans.
    """
    with_span = [r for r in rows(records, "train") if r.get("readings", {}).get("span")]
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
