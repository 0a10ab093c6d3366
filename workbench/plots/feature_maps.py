"""The same keys under several feature maps and both rules, side by side.

Papers: arXiv:2102.11174 sections 4.1 (capacity), 4.2 (delta rule) and 5 (feature maps);
arXiv:2006.16236 (ELU + 1, sum rule); arXiv:2009.14794 (FAVOR+).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from plotly.subplots import make_subplots

from workbench.fast_weight_measures import gram, interference
from workbench.plots.fast_weights import FRAME_SIDE, colour_limit
from workbench.plots.style import (
    MAGNITUDE,
    RULE_COLOURS,
    SIGNED,
    feature_colour,
    finish,
    float32,
    pool,
    shown,
    thin,
)

BARE: dict[str, Any] = {"showgrid": False, "showticklabels": False, "ticks": ""}
"""axes of a matrix: its entries have no names, and a slider answers sooner without their numbers"""
NAMES = {"elu": "ELU + 1", "favor": "FAVOR+", "dpfp": "DPFP"}
GRAM_SIDE = 128
"""cells of a Gram matrix along either side; a cell is the greatest magnitude of those it covers"""


def name_of(kind: str) -> str:
    """A feature map as people write it."""
    return NAMES.get(kind, kind)


def trained(own: str, rule: str) -> str:
    """The sentence that says which of the columns is the model itself."""
    return (
        f"The model learned its keys with {name_of(own)} and the {rule} rule: the others show what "
        "these keys would do there,<br>not what a model trained so would"
    )


def gram_by_map(
    keys: Mapping[str, ArrayLike], symbols: Sequence[str], *, own: str, rule: str
) -> go.Figure:
    """How much reading one token's key also reads the others': cosines under each feature map.

    Args:
        keys: feature map -> (T, F) keys after it.
        symbols: the T tokens as text.
        own: the model's own feature map.
        rule: the model's own rule.
    """
    grams = {kind: gram(each) for kind, each in keys.items()}
    found = {kind: interference(each) for kind, each in grams.items()}
    titles = [
        f"{name_of(kind)}: overlap {found[kind].overlap:.2f},<br>"
        f"{found[kind].directions:.1f} of {np.asarray(each).shape[1]} directions"
        for kind, each in keys.items()
    ]
    fig = make_subplots(1, len(keys), subplot_titles=titles, horizontal_spacing=0.05)
    for col, cosines in enumerate(grams.values(), 1):
        _cosines(fig, cosines, symbols, col)
    order = sorted(found, key=lambda kind: found[kind].overlap)
    told = ", ".join(f"{name_of(kind)} {found[kind].overlap:.2f}" for kind in order[1:])
    finish(
        fig,
        f"Keys overlap least under {name_of(order[0])}: mean cosine {found[order[0]].overlap:.2f} "
        f"({told})",
        trained(own, rule),
        x="token of the stretch",
        height=440,
        caption="Cosines between all keys of the stretch after each feature map. Keys that are not "
        "orthogonal read one another's values; at most F can be orthogonal "
        "(arXiv:2102.11174, section 4.1).",
    )
    _name_columns(fig, keys)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(showgrid=False)
    fig.update_yaxes(title_text="token of the stretch", col=1)
    bar = {"title": "cosine (%)", "thickness": 12, "outlinewidth": 0}
    least = -100 if min(float(each.min()) for each in grams.values()) < -0.05 else 0
    scale = SIGNED if least else MAGNITUDE
    fig.update_layout(
        coloraxis={"colorscale": scale, "cmin": least, "cmax": 100, "colorbar": bar},
        margin={"t": 125},
    )
    return fig


def _cosines(
    fig: go.Figure, cosines: NDArray[np.float64], symbols: Sequence[str], col: int
) -> None:
    small, step, _ = pool(cosines, GRAM_SIDE)
    ticks = [f"{i * step + 1}: {shown(symbols[i * step])}" for i in range(len(small))]
    fig.add_heatmap(
        # per cent in one byte: a quarter of the size
        z=np.round(100 * small).astype(np.int8),
        x=ticks,
        y=ticks,
        coloraxis="coloraxis",
        hovertemplate="tokens %{y} and %{x}: cosine %{z}%<extra></extra>",
        row=1,
        col=col,
    )
    some = ticks[:: max(1, len(ticks) // 4)]
    labels = [tick.split(":")[0] for tick in some]
    fig.update_xaxes(type="category", tickvals=some, ticktext=labels, tickangle=0, col=col)
    fig.update_yaxes(type="category", tickvals=some, ticktext=labels, col=col)


def _name_columns(fig: go.Figure, kinds: Mapping[str, Any]) -> None:
    for kind, note in zip(kinds, fig.layout.annotations, strict=False):
        note.update(font={"size": 12, "color": feature_colour(kind)})


def scaled(matrix: ArrayLike) -> NDArray[np.int8]:
    """A matrix in per cent of its largest entries, which alone are cut off; in one byte each."""
    small = pool(matrix, FRAME_SIDE)[0]
    return np.round(100 * np.clip(small / colour_limit([small]), -1, 1)).astype(np.int8)


def side_by_side(
    matrices: Mapping[str, Mapping[str, ArrayLike]],
    age_curves: Mapping[str, Mapping[str, ArrayLike]],
    *,
    own: str,
    rule: str,
) -> go.Figure:
    """The same keys and values under every feature map (columns) and rule (rows).

    Args:
        matrices: feature map -> rule -> (F, V) matrix at one moment.
        age_curves: feature map -> rule -> (A,) mean cosine of value read and value written, after
            0, 1, ... A-1 later writes.
        own, rule: the model's own feature map and rule.
    """
    rules = list(next(iter(matrices.values())))
    lines = len(rules) + 1
    titles = [
        f"{name_of(kind)}, {np.asarray(each[rules[0]]).shape[0]} features"
        for kind, each in matrices.items()
    ]
    fig = make_subplots(
        lines,
        len(matrices),
        subplot_titles=titles,
        row_heights=[*[0.29] * len(rules), 0.42],
        horizontal_spacing=0.06,
        vertical_spacing=0.11,
    )
    for col, (kind, each) in enumerate(matrices.items(), 1):
        for row, name in enumerate(rules, 1):
            _matrix(fig, each[name], row, col)
        _ages(fig, age_curves[kind], lines, col)
    finish(
        fig,
        _best(age_curves, own, rule),
        trained(own, rule),
        height=700,
        caption="The same keys, values and write strengths, written into an empty memory under "
        "each feature map and rule: the matrix, and how well keys read back their values.",
    )
    _name_columns(fig, matrices)
    for row, name in enumerate(rules, 1):
        fig.update_yaxes(autorange="reversed", row=row, **BARE)
        fig.update_xaxes(row=row, **BARE)
        fig.update_yaxes(title_text=f"{name} rule:<br>key feature", row=row, col=1)
    fig.update_xaxes(title_text="value entry", row=len(rules))
    fig.update_xaxes(title_text="later writes", row=lines)
    fig.update_yaxes(title_text="cosine, read and written", row=lines, col=1)
    first = len(matrices) * len(rules) + 1
    fig.update_yaxes(matches=f"y{first}", rangemode="tozero", row=lines)
    fig.update_layout(
        legend={"x": 1, "xanchor": "right", "y": 0.33, "yanchor": "top", "orientation": "h"},
        margin={"t": 120},
    )
    return fig


def _matrix(fig: go.Figure, matrix: ArrayLike, row: int, col: int) -> None:
    fig.add_heatmap(
        z=scaled(matrix),
        zmin=-100,
        zmax=100,
        colorscale=SIGNED,
        showscale=False,
        hovertemplate="feature %{y}, value entry %{x}: %{z}% of the largest<extra></extra>",
        row=row,
        col=col,
    )


def _ages(fig: go.Figure, curves: Mapping[str, ArrayLike], row: int, col: int) -> None:
    for rule, curve in curves.items():
        x, y = thin(np.arange(len(np.asarray(curve))), curve)
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name=f"{rule} rule",
            legendgroup=rule,
            showlegend=col == 1,
            line={"color": RULE_COLOURS[rule], "width": 2.5},
            hovertemplate="after %{x:.0f} later writes: %{y:.2f}<extra>" + rule + "</extra>",
            row=row,
            col=col,
        )


def _best(age_curves: Mapping[str, Mapping[str, ArrayLike]], own: str, rule: str) -> str:
    """A sentence on where values come back best, and how well under the model's own."""
    ends = {
        (kind, name): float(np.asarray(curve)[-1])
        for kind, each in age_curves.items()
        for name, curve in each.items()
    }
    later = len(np.asarray(age_curves[own][rule])) - 1
    best = max(ends, key=ends.__getitem__)
    found = f"After {later} later writes a value comes back best under {name_of(best[0])} and "
    found += f"{best[1]} ({ends[best]:.2f})"
    if best == (own, rule):
        return f"{found}, the model's own"
    return f"{found}, the model's own: {ends[own, rule]:.2f}"


def overwriting(
    shares: Mapping[str, Mapping[str, ArrayLike]], symbol: str, strength: float
) -> go.Figure:
    """One key written with an old value, then with a new one again and again.

    Args:
        shares: feature map -> rule -> (1 + n,) share of the old value in what the key reads after
            each write, in per cent.
        symbol: the token whose key it is.
        strength: of the delta rule's writes.
    """
    fig = go.Figure()
    for kind, each in shares.items():
        y = float32(each["delta"])
        fig.add_scatter(
            x=np.arange(len(y)),
            y=y,
            mode="lines+markers",
            name=f"delta, {name_of(kind)}",
            line={"color": feature_colour(kind), "width": 2.5},
            hovertemplate="after %{x} new writes: %{y:.1f}% is old<extra></extra>",
        )
    # what the sum rule keeps does not depend on the key
    y = float32(next(iter(shares.values()))["sum"])
    fig.add_scatter(
        x=np.arange(len(y)),
        y=y,
        mode="lines+markers",
        name="sum, any",
        line={"color": RULE_COLOURS["sum"], "width": 2.5, "dash": "dash"},
        hovertemplate="after %{x} new writes: %{y:.1f}% is old<extra></extra>",
    )
    once = {kind: float(np.asarray(each["delta"])[1]) for kind, each in shares.items()}
    best = min(once, key=once.__getitem__)
    finish(
        fig,
        f"Written anew once, the key of '{shown(symbol)}' still reads {once[best]:.0f}% of its old "
        f"value under delta with {name_of(best)}, {float(y[1]):.0f}% under sum",
        f"The same key with an old value, then a new one; write strength {strength:.2f}; delta "
        "replaces strength times |phi(k)|² at each write",
        x="writes of the new value",
        y="old value in what the key reads (%)",
        height=420,
        caption="Overwriting: the delta rule replaces what a key held, the sum rule adds to it "
        "(arXiv:2102.11174, section 4.2).",
    )
    fig.update_yaxes(range=[-2, 103])
    fig.update_xaxes(dtick=1)
    return fig
