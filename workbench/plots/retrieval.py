"""Associative retrieval in pictures: the loss by number of pairs, beside the published one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import plotly.graph_objects as go

from workbench.plots.style import COLOURS, finish, float32, mark

Curve = Mapping[int, float | None]
HELD = 0.01
"""a loss up to which pairs count as retrieved; guessing alike costs about 0.5"""


def loss_by_pairs(
    measured: Mapping[str, Curve],
    published: Mapping[str, Curve],
    features: Mapping[str, int | None],
    scale: Literal["linear", "log"] = "linear",
) -> go.Figure:
    """Lowest validation loss over the number of pairs, ours and the source's.

    Args:
        measured: model -> pairs -> loss; None where it diverged.
        published: the same of the source; a model may be missing.
        features: model -> features of its memory, the most keys that can be orthogonal in it.
        scale: of the loss.
    """
    fig = go.Figure()
    for i, (name, curve) in enumerate(measured.items()):
        colour = COLOURS[i % len(COLOURS)]
        _curve(fig, name, curve, "measured", line={"color": colour, "width": 2})
        source = published.get(name, {})
        _curve(fig, name, source, "published", line={"color": colour, "width": 1.5, "dash": "dot"})
    sizes = [n for curve in (*measured.values(), *published.values()) for n in curve]
    most = max(sizes, default=0)
    limits = sorted({count for count in features.values() if count is not None and count <= most})
    for row, count in enumerate(limits):
        names = ", ".join(name for name, n in features.items() if n == count)
        side = "left" if count < most / 2 else "right"
        mark(fig, count, f"{names}: {count} features", axis="x", end=side, row=row)
    if scale == "log":
        fig.update_yaxes(type="log", exponentformat="power")
    return finish(
        fig,
        _finding(measured),
        "Solid: measured here. Dotted: published. A memory cannot keep more keys apart than it has "
        "features",
        x="pairs of key and value",
        y="loss (half the squared error)",
        caption="Lowest validation loss of associative retrieval by the number of pairs.",
    )


def _curve(fig: go.Figure, name: str, curve: Curve, what: str, line: dict[str, Any]) -> None:
    pairs = sorted(curve)
    fig.add_trace(
        go.Scatter(
            x=pairs,
            y=float32([curve[n] for n in pairs]),
            name=name if what == "measured" else f"{name}, {what}",
            mode="lines+markers" if what == "measured" else "lines",
            line=line,
            marker={"size": 7},
            legendgroup=name,
            hovertemplate=f"%{{x}} pairs: %{{y:.4f}}<extra>{name}, {what}</extra>",
        )
    )


def held(curve: Curve) -> int | None:
    """Up to how many pairs, of those tried, all are retrieved; None for not even the fewest."""
    most = None
    for n in sorted(curve):
        loss = curve[n]
        if loss is None or loss > HELD:
            break
        most = n
    return most


def _finding(measured: Mapping[str, Curve]) -> str:
    most = {name: held(curve) for name, curve in measured.items() if curve}
    told = [f"{name} {'none' if n is None else n}" for name, n in most.items()]
    return f"Pairs retrieved (loss up to {HELD}): {', '.join(told)}" if told else "Nothing yet"
