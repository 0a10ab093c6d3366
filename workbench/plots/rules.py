"""Delta against sum: the same keys and values written under both rules.

Papers: arXiv:2102.11174 sections 4.1 (capacity) and 4.2 (delta rule); arXiv:2006.16236 (sum rule).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray
from plotly.subplots import make_subplots

from workbench.fast_weight_measures import effective_rank
from workbench.plots.fast_weights import FRAME_SIDE, colour_limit
from workbench.plots.style import INK, RULE_COLOURS, SIGNED, finish, float32, mark, pool, thin


def delta_against_sum(
    age_curves: Mapping[str, ArrayLike], finals: Mapping[str, ArrayLike]
) -> go.Figure:
    """The same keys and values under both rules: the last matrices, and forgetting by age.

    Args:
        age_curves: rule -> (A,) mean cosine of value read and value written, after 0, 1, ... A-1
            later writes.
        finals: rule -> (F, V) matrix after the last token.
    """
    fig = make_subplots(
        1,
        3,
        column_widths=[0.27, 0.27, 0.46],
        horizontal_spacing=0.075,
        subplot_titles=[*(f"{rule} rule: last matrix" for rule in finals), "reading back, by age"],
    )
    _last_matrices(fig, finals)
    ends = {}
    for rule, curve in age_curves.items():
        line = np.asarray(curve, dtype=np.float64)
        ends[rule] = float(line[-1])
        x, y = thin(np.arange(len(line)), line)
        fig.add_scatter(
            x=x,
            y=y,
            mode="lines",
            name=rule,
            line={"color": RULE_COLOURS.get(rule, INK), "width": 2.5},
            hovertemplate="after %{x:.0f} later writes: %{y:.2f}<extra>" + rule + "</extra>",
            row=1,
            col=3,
        )
    later = len(np.asarray(next(iter(age_curves.values())))) - 1
    told = " against ".join(f"{rule} {value:.2f}" for rule, value in ends.items())
    sizes = {r: float(np.linalg.norm(np.asarray(m))) for r, m in finals.items()}
    finish(
        fig,
        f"After {later} later writes a key reads back its value with similarity {told}",
        "Same keys and values under both rules; norm of the last matrix: "
        + ", ".join(f"{rule} {size:.1f}" for rule, size in sizes.items()),
        height=420,
        caption="The delta rule replaces what a key held before; the sum rule piles up "
        "(arXiv:2102.11174, section 4.2).",
    )
    fig.update_annotations(font={"size": 12})
    for col in (1, 2):
        fig.update_xaxes(title_text="value entry", showgrid=False, row=1, col=col)
        fig.update_yaxes(autorange="reversed", showgrid=False, row=1, col=col)
    fig.update_yaxes(title_text="key feature", row=1, col=1)
    fig.update_xaxes(title_text="later writes", row=1, col=3)
    fig.update_yaxes(title_text="cosine, read and written", row=1, col=3)
    fig.update_layout(legend={"x": 1, "xanchor": "right", "y": 1}, margin={"t": 100})
    return fig


def _last_matrices(fig: go.Figure, finals: Mapping[str, ArrayLike]) -> None:
    for col, matrix in enumerate(finals.values(), 1):
        small, *_ = pool(matrix, FRAME_SIDE)
        scale = colour_limit([small])
        # each rule has its own scale: a sum grows without bound, and would leave delta white
        fig.add_heatmap(
            z=small / scale,
            zmin=-1,
            zmax=1,
            colorscale=SIGNED,
            showscale=False,
            hovertemplate="feature %{y}, value %{x}: %{z:.2f} of the largest<extra></extra>",
            row=1,
            col=col,
        )


def by_age(reads_TT: ArrayLike, ages: int) -> NDArray[np.float64]:
    """Mean similarity after 0, 1, ... later writes.

    Args:
        reads_TT: entry [t, s] is the cosine for the value written at t, read after token s.
        ages: how many; only writes followed by as many tokens count, so that every age averages
            over the same writes.
    """
    reads = np.asarray(reads_TT, dtype=np.float64)
    last = len(reads) - ages
    if last < 0 or ages < 1:
        raise ValueError(f"expected 1 to {len(reads)} ages for {len(reads)} tokens, got {ages}")
    return np.mean([reads[t, t : t + ages] for t in range(last + 1)], axis=0)


def rank_over_time(matrices: Mapping[str, ArrayLike], count: int = 48) -> go.Figure:
    """Effective rank of the memory over the tokens, a line a rule, with the ceiling min(F, V).

    Args:
        matrices: rule -> (T, F, V).
        count: at how many tokens it is measured.
    """
    fig = go.Figure()
    ends = {}
    for rule, W_TFV in matrices.items():
        matrices_T = np.asarray(W_TFV)
        when = np.unique(np.linspace(0, len(matrices_T) - 1, count).round().astype(int))
        rank = float32(effective_rank(matrices_T[when]))
        ends[rule] = float(rank[-1])
        fig.add_scatter(
            x=when + 1,
            y=rank,
            mode="lines",
            name=rule,
            line={"color": RULE_COLOURS.get(rule, INK), "width": 2.5},
            hovertemplate="after %{x} tokens: %{y:.1f}<extra>" + rule + "</extra>",
        )
    ceiling = min(np.asarray(next(iter(matrices.values()))).shape[1:])
    mark(fig, ceiling, f"most it can be: {ceiling}")
    told = ", ".join(f"{rule} {value:.1f}" for rule, value in ends.items())
    finish(
        fig,
        f"Directions in use at the end, of {ceiling}: {told}",
        "Effective rank: exp of the entropy of the normalised singular values",
        x="tokens written",
        y="effective rank",
        caption="How much of the memory's capacity is in use (arXiv:2102.11174, section 4.1).",
    )
    fig.update_yaxes(rangemode="tozero")
    return fig
