"""How full a fast-weight memory is, against what it could hold at most.

Paper: arXiv:2102.11174 section 4.1: keys of F features can be orthogonal to at most F - 1 others,
so that more than F pairs cannot be kept apart.
"""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.fast_weight_measures import Capacity
from workbench.plots.style import INK, QUIET, RULE_COLOURS, finish, float32


def use(found: Capacity, shape: tuple[int, int], *, rule: str, layer: int, head: int) -> go.Figure:
    """Directions in use and pairs that can be read back, over the stretch, with their limits.

    Args:
        found: by `fast_weight_measures.capacity`.
        shape: of the matrix: features F and value width V.
        rule: the model's own, for the colour.
        layer, head: of the title, counted from 0.
    """
    F, most = shape[0], min(shape)
    colour = RULE_COLOURS.get(rule, INK)
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.1)
    lines = (
        (1, found.rank_A, "effective rank of the matrix", colour, "%{y:.1f} directions"),
        (2, found.written_A, "different pairs written", QUIET, "%{y} pairs written"),
        (2, found.recalled_A, "pairs that are read back", colour, "%{y} pairs read back"),
    )
    for row, values, name, shade, told in lines:
        fig.add_scatter(
            x=found.after_A,
            y=float32(values),
            mode="lines",
            name=name,
            line={"color": shade, "width": 2.5, "shape": "linear" if row == 1 else "hv"},
            hovertemplate=f"after %{{x}} tokens: {told}<extra></extra>",
            row=row,
            col=1,
        )
    word = {"annotation_position": "top left", "annotation_font_size": 11}
    dashed = {"line_dash": "dash", "line_width": 1.5, "line_color": INK}
    fig.add_hline(most, row=1, annotation_text=f"limit: min(F, V) = {most}", **dashed, **word)
    fig.add_hline(F, row=2, annotation_text=f"limit: F = {F} orthogonal keys", **dashed, **word)
    dashed["line_dash"] = "dot"
    told = f"directions that the keys fill: {found.directions:.1f}"
    word["annotation_position"] = "bottom right"
    fig.add_hline(found.directions, row=2, annotation_text=told, **dashed, **word)
    rank, written, recalled = (x[-1] for x in (found.rank_A, found.written_A, found.recalled_A))
    finish(
        fig,
        f"Layer {layer + 1}, head {head + 1} uses {rank:.1f} of {most} directions "
        f"({rank / most:.0%}) and gives back {recalled} of {written} pairs",
        "Read back: of all values written so far, the key reads its own best; effective rank: exp "
        "of the entropy of the singular values",
        height=520,
        caption="Capacity in use against its limits: at most F keys can be orthogonal, and W has "
        "at most min(F, V) directions (arXiv:2102.11174, section 4.1).",
    )
    fig.update_xaxes(title_text="tokens written", row=2)
    fig.update_yaxes(title_text="effective rank", range=[0, 1.12 * most], row=1)
    fig.update_yaxes(title_text="pairs", rangemode="tozero", row=2)
    legend = {"x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom", "orientation": "h"}
    fig.update_layout(legend=legend, margin={"t": 100})
    return fig
