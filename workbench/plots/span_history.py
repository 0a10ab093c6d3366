"""How spans grew: every head at any step of the training, with a slider and a play button.

Paper: arXiv:1905.07799 (learned spans).
The steps are plotly's own frames, so that slider and button work in JupyterLab and in the report,
without Python; wherever nothing runs the figure shows the last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from workbench.plots import curves
from workbench.plots.style import ACCENT, finish, float32, layer_colour

MOST_FRAMES = 60
MOST_VALUES = 24_000
"""spans in all frames together: each is some 6 bytes of a saved figure"""


class History(NamedTuple):
    """Learned spans over the updates."""

    steps: NDArray[np.int64]
    """(n,)"""
    spans: list[NDArray[np.float64]]
    """per layer, (n, H) in tokens"""

    def at(self, i: int) -> list[list[float]]:
        """Per layer, the span of each head at the i-th of the steps."""
        return [[float(z) for z in layer[i]] for layer in self.spans]


def history(records: Sequence[Mapping[str, Any]], most: int | None = None) -> History:
    """The spans that a run recorded.

    Args:
        records: rows of the run folder, any kinds.
        most: keep so many steps at most, evenly chosen, the first and the last among them.

    Raises:
        ValueError: no record carries spans.
    """
    with_span = [r for r in curves.rows(records, "train") if r.get("readings", {}).get("span")]
    if not with_span:
        raise ValueError("no training record carries spans: the model has none to learn")
    if most is not None and len(with_span) > most:
        kept = np.linspace(0, len(with_span) - 1, most).round().astype(int)
        with_span = [with_span[i] for i in np.unique(kept)]
    layers = len(with_span[0]["readings"]["span"])
    return History(
        np.array([r["step"] for r in with_span]),
        [
            np.array([r["readings"]["span"][i] for r in with_span], dtype=np.float64)
            for i in range(layers)
        ],
    )


def span_evolution(records: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Above, the span of each head over the updates; below, all heads at the step of the slider.

    At most `MOST_FRAMES` steps are kept, evenly chosen, and fewer where heads are many.

    Args:
        records: rows of the run folder, any kinds.

    Raises:
        ValueError: no record carries spans.
    """
    lines = curves.span_over_training(records)
    heads = sum(layer.shape[1] for layer in history(records, 1).spans)
    past = history(records, max(2, min(MOST_FRAMES, MOST_VALUES // heads)))
    fig = make_subplots(2, 1, vertical_spacing=0.16, row_heights=[0.5, 0.5])
    for trace in lines.data:
        fig.add_trace(trace, row=1, col=1)
    top = 1.05 * max(1.0, *(float(layer.max()) for layer in past.spans))
    fig.add_scatter(
        x=[past.steps[-1]] * 2,
        y=[0, top],
        mode="lines",
        line={"color": ACCENT, "width": 2},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=1,
    )
    order = [np.argsort(layer[-1], kind="stable") for layer in past.spans]
    _bars(fig, past, order)
    last = len(fig.data) - 1
    fig.frames = [_frame(past, order, i, (last - 1, last), top) for i in range(len(past.steps))]
    finish(
        fig,
        _finding(past, len(past.steps) - 1),
        "Lines: every head over the training. Bars: all heads at one step, layer by layer, "
        "ordered by their last span",
        height=640,
        caption="Each head pays for its span and learns how far back it is worth looking; the "
        "slider goes through the training.",
    )
    fig.update_xaxes(title_text="update (step)", row=1, col=1)
    fig.update_xaxes(
        title_text="heads, layer by layer", showticklabels=False, ticks="", row=2, col=1
    )
    fig.update_yaxes(title_text="span (tokens)", range=[0, top])
    fig.update_yaxes(showgrid=True, row=2, col=1)
    fig.update_layout(bargap=0.12, margin={"b": 120})
    _controls(fig, past)
    return fig


def _heights(past: History, order: Sequence[NDArray[np.int64]], i: int) -> NDArray[np.float32]:
    values = [layer[i][heads] for layer, heads in zip(past.spans, order, strict=True)]
    return float32(np.concatenate(values))


def _bars(fig: go.Figure, past: History, order: Sequence[NDArray[np.int64]]) -> None:
    sizes = [len(heads) for heads in order]
    places = np.concatenate([np.arange(n) + i + sum(sizes[:i]) for i, n in enumerate(sizes)])
    layers = np.repeat(np.arange(len(sizes)), sizes)
    fig.add_bar(
        x=places,
        y=_heights(past, order, -1),
        marker_color=[layer_colour(int(layer)) for layer in layers],
        showlegend=False,
        customdata=np.stack([layers + 1, np.concatenate(order) + 1], axis=1),
        hovertemplate=(
            "layer %{customdata[0]}, head %{customdata[1]}: %{y:.1f} tokens<extra></extra>"
        ),
        row=2,
        col=1,
    )


def _finding(past: History, i: int) -> str:
    every = np.concatenate([layer[i] for layer in past.spans])
    layer = int(np.argmax([x[i].max() for x in past.spans]))
    return (
        f"At step {past.steps[i]:,} the mean span is {every.mean():.1f} tokens, "
        f"the longest {every.max():.1f} (layer {layer + 1})"
    )


def _frame(
    past: History,
    order: Sequence[NDArray[np.int64]],
    i: int,
    traces: tuple[int, int],
    top: float,
) -> go.Frame:
    step = past.steps[i]
    return go.Frame(
        name=str(step),
        data=[
            go.Scatter(x=[step] * 2, y=[0, top]),
            go.Bar(y=_heights(past, order, i)),
        ],
        traces=list(traces),
        layout={"title": {"text": _finding(past, i)}},
    )


def _controls(fig: go.Figure, past: History) -> None:
    at_once = {"mode": "immediate", "frame": {"duration": 0}, "transition": {"duration": 0}}
    playing = {"frame": {"duration": 120}, "transition": {"duration": 0}, "fromcurrent": True}
    fig.update_layout(
        sliders=[
            {
                "active": len(past.steps) - 1,
                "currentvalue": {"prefix": "step "},
                "pad": {"t": 45},
                "x": 0.14,
                "len": 0.86,
                "steps": [
                    {"label": f"{step:,}", "method": "animate", "args": [[str(step)], at_once]}
                    for step in past.steps
                ],
            }
        ],
        updatemenus=[
            {
                "type": "buttons",
                "direction": "left",
                "showactive": False,
                "x": 0,
                "y": 0,
                "xanchor": "left",
                "yanchor": "top",
                "pad": {"t": 62},
                "buttons": [
                    {"label": "▶", "method": "animate", "args": [None, playing]},
                    {"label": "❚❚", "method": "animate", "args": [[None], at_once]},
                ],
            }
        ],
    )
