"""The recipes side by side, and where the parameters of one of them are."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from workbench.plots import page
from workbench.plots.style import COLOURS, finish

# a click on a head sorts by its column, numbers by size; the box keeps rows that have all its words
_SORT = (
    "var t=this.closest('table'),i=this.cellIndex,d=this.dataset.d=this.dataset.d=='1'?'-1':'1';"
    "var k=function(r){var v=r.cells[i].dataset.v,n=parseFloat(v);return isNaN(n)?v:n};"
    "[...t.tBodies[0].rows].sort(function(a,b){a=k(a);b=k(b);"
    "return (typeof a==typeof b?(a>b)-(a<b):typeof a=='string'?1:-1)*d})"
    ".forEach(function(r){t.tBodies[0].append(r)});"
    "[...this.parentNode.cells].forEach(function(h){h.removeAttribute('aria-sort')});"
    "this.setAttribute('aria-sort',d=='1'?'ascending':'descending')"
)
_KEY = "if(event.key=='Enter'||event.key==' '){event.preventDefault();this.click()}"
_FILTER = (
    "var w=this.value.toLowerCase().split(' ');"
    "[...this.nextElementSibling.tBodies[0].rows].forEach(function(r){"
    "r.hidden=!w.every(function(x){return r.textContent.toLowerCase().includes(x)})})"
)


def recipe_table(rows: Sequence[Mapping[str, str | int | float | None]]) -> str:
    """A table as HTML that loads nothing; where scripts may run, it sorts and filters.

    Args:
        rows: column -> value, the same columns in each; numbers stand to the right.
    """
    names = list(rows[0]) if rows else []
    style = "text-align:{};padding:.15em .8em .15em 0;vertical-align:top"
    heads = "".join(
        f'<th style="{style.format("left")};cursor:pointer" onclick="{html.escape(_SORT)}" '
        f'onkeydown="{html.escape(_KEY)}" tabindex="0" scope="col" title="sort">'
        f"{html.escape(name)}</th>"
        for name in names
    )
    body = "".join(f"<tr>{''.join(_cell(row[n], style) for n in names)}</tr>" for row in rows)
    return (
        f'<div class="recipes"><input placeholder="words to look for" aria-label="filter" '
        f'oninput="{html.escape(_FILTER)}"><table style="color:{page.INK};background:{page.PAPER}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: str | int | float | None, style: str) -> str:
    number = isinstance(value, int | float)
    shown = "-" if value is None else f"{value:,}" if number else str(value)
    side = style.format("right" if number else "left")
    key = "" if value is None else str(value)
    return f'<td style="{side}" data-v="{html.escape(key)}">{html.escape(shown)}</td>'


def parameters_by_part(parts: Mapping[str, Mapping[str, int]], name: str) -> go.Figure:
    """Trainable numbers, stacked by part, layer beside layer.

    Args:
        parts: part -> layer (or the part's own name, where it belongs to no layer) -> numbers.
        name: of the recipe, for the title.
    """
    fig = go.Figure()
    for index, (part, numbers) in enumerate(parts.items()):
        fig.add_bar(
            x=list(numbers),
            y=list(numbers.values()),
            name=part,
            marker_color=COLOURS[index % len(COLOURS)],
            hovertemplate=f"{html.escape(part)}, %{{x}}: %{{y:,}}<extra></extra>",
        )
    sums = {part: sum(numbers.values()) for part, numbers in parts.items()}
    largest, total = max(sums, key=sums.__getitem__), sum(sums.values())
    finish(
        fig,
        f"{name}: {total:,} parameters, {sums[largest] / total:.0%} of them in {largest}",
        "A tensor that layers share counts once, in the first of them",
        x="layer",
        y="parameters",
    )
    fig.update_layout(barmode="stack", bargap=0.25)
    fig.update_xaxes(type="category", showgrid=False)
    return fig
