"""What `make bench` measured: ratios against targets, fractions of the machine's limits, growth.

All functions take the rows of `bench.json`, as `tests/bench` writes them.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from workbench.plots.style import COLOURS, QUIET, finish, mark

Row = Mapping[str, Any]
MET, MISSED = COLOURS[2], COLOURS[1]
SWEEPS = {
    "T": "tokens of a segment",
    "span": "longest span (tokens)",
    "width": "width of keys and values",
    "vocabulary": "classes",
}
DASHES = ("solid", "dash", "dot", "dashdot")


def _what(row: Row) -> str:
    dtype = "" if row["dtype"] == "float32" else row["dtype"]
    return " ".join(str(x) for x in (row["name"], row["size"], dtype, row["way"]) if x)


def _milliseconds(value: float | None, spread: Sequence[float] | None) -> str | None:
    """With the quartiles behind it."""
    if value is None:
        return None
    around = "" if not spread else f" ({spread[0]:.3g} to {spread[1]:.3g})"
    return f"{value:.3g}{around}"


def table(rows: Iterable[Row]) -> list[dict[str, str | float | None]]:
    """The measurements as columns for `plots.recipes.recipe_table`; limits are told apart."""
    return [
        {
            "what": _what(row),
            "ours": row["backend"],
            "ms": _milliseconds(row["ours_ms"], row.get("ours_spread_ms")),
            "peer": row["peer"],
            "peer ms": _milliseconds(row["peer_ms"], row.get("peer_spread_ms")),
            "ratio": None if row["ratio"] is None else round(row["ratio"], 2),
            "target": row["target"],
            "met": _met(row),
            "memory, MB": None if row.get("memory_mb") is None else round(row["memory_mb"], 1),
            "note": "disturbed " * bool(row["disturbed"]) + row["note"] or None,
        }
        for row in rows
        if row["group"] != "limits"
    ]


def _met(row: Row) -> str | None:
    if row["target"] is None:
        return None
    if row["ratio"] is None:
        return "not measured"
    return "met" if row["ratio"] >= row["target"] else "missed"


def limits(rows: Iterable[Row]) -> str:
    """The machine and what it does at best, as a sentence."""
    found = [row for row in rows if row["group"] == "limits"]
    parts = [
        f"{row['name'].removeprefix('limit: ')} {row['rate']:,.3g} {row['unit']}" for row in found
    ]
    first = found[0]
    return f"{first['device']}, {first['threads']} threads: {', '.join(parts)}"


def against_targets(rows: Iterable[Row]) -> go.Figure:
    """How many times as fast as the peer, with a mark where the target is."""
    asked = [row for row in rows if row["target"] is not None and row["ratio"] is not None]
    names = [f"{_what(row)}<br>{row['backend']} against {row['peer']}" for row in asked]
    met = [row["ratio"] >= row["target"] for row in asked]
    fig = go.Figure()
    for done, colour, name in ((True, MET, "met"), (False, MISSED, "missed")):
        mine = [i for i, m in enumerate(met) if m is done]
        fig.add_bar(
            x=[asked[i]["ratio"] for i in mine],
            y=[names[i] for i in mine],
            orientation="h",
            name=name,
            marker_color=colour,
            text=[f"{asked[i]['ratio']:.3g}" for i in mine],
            textposition="auto",
            hovertemplate="%{y}: %{x:.3g} times<extra></extra>",
        )
    fig.add_scatter(
        x=[row["target"] for row in asked],
        y=names,
        mode="markers",
        name="asked for",
        marker={"symbol": "line-ns", "size": 20, "line": {"width": 2, "color": "#000000"}},
        hovertemplate="%{y}: at least %{x:g}<extra></extra>",
    )
    finish(
        fig,
        f"{sum(met)} of {len(asked)} targets are met",
        "Time of the peer divided by ours; the stroke is the least that was asked for",
        x="peer / ours",
        height=190 + 38 * max(1, len(asked)),
        caption="Medians of turns taken in one process.",
    )
    fig.update_xaxes(type="log")
    _by_name(fig, names)
    return fig


def _by_name(fig: go.Figure, names: Sequence[str]) -> None:
    """Bars from top to bottom in the order of the rows, the legend below them."""
    fig.update_yaxes(
        categoryorder="array",
        categoryarray=list(names),
        autorange="reversed",
        showgrid=False,
        ticks="",
        title_text="computation",
        tickfont_size=10,
    )
    below = {"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom"}
    fig.update_layout(bargap=0.3, legend=below)


def fractions(rows: Iterable[Row]) -> go.Figure:
    """Share of the measured limit: of products where there are any, else of memory traffic."""
    shares: dict[str, tuple[float, bool]] = {}
    for row in rows:
        key = f"{_what(row)}, {row['backend']}"
        if row.get("gemm_fraction") is not None:
            shares[key] = row["gemm_fraction"], True
        elif row.get("memory_fraction") is not None:
            shares[key] = row["memory_fraction"], False
    fig = go.Figure()
    kinds = ((True, COLOURS[0], "of the peak of products"), (False, COLOURS[4], "of the bandwidth"))
    for products, colour, name in kinds:
        mine = {key: share for key, (share, kind) in shares.items() if kind is products}
        fig.add_bar(
            x=list(mine.values()),
            y=list(mine),
            orientation="h",
            name=name,
            marker_color=colour,
            text=[f"{share:.2g}" for share in mine.values()],
            textposition="outside",
            hovertemplate="%{y}: %{x:.3g}<extra></extra>",
        )
    mark(fig, 1.0, "the measured limit", axis="x", end="right")
    best = max(shares, key=lambda key: shares[key][0], default="")
    top = max(1.0, shares[best][0]) if best else 1.0
    finish(
        fig,
        f"At most {shares[best][0]:.2f} of the limit" if best else "Nothing measured",
        "Least operations and bytes, per second, over the measured limit",
        x="share of the limit",
        height=190 + 22 * max(1, len(shares)),
        caption="The limits are PyTorch's products and copies, measured in the same run; own "
        "kernels can exceed them.",
    )
    fig.update_xaxes(range=[0, 1.12 * top])
    _by_name(fig, list(shares))
    return fig


def growth(rows: Iterable[Row], sweep: str, way: str = "fwd+bwd") -> go.Figure:
    """Milliseconds by what grows, ours solid and peers thin, a colour for each computation.

    Args:
        rows: of the benchmark.
        sweep: what grows: T, span, width or vocabulary.
        way: of the rows that are drawn.
    """
    lines: dict[tuple[str, str, bool], dict[float, float]] = {}
    for row in rows:
        if row["sweep"] != sweep or row["way"] != way:
            continue
        if row["ours_ms"] is not None:
            lines.setdefault((row["name"], row["backend"], True), {})[row["x"]] = row["ours_ms"]
        if row["peer_ms"] is not None and not row["peer"].endswith("peak"):
            lines.setdefault((row["name"], row["peer"], False), {})[row["x"]] = row["peer_ms"]
    names = list(dict.fromkeys(name for name, _, _ in lines))
    fig, count = go.Figure(), dict.fromkeys(names, 0)
    for (name, who, ours), points in lines.items():
        style: dict[str, Any] = {"color": COLOURS[names.index(name) % len(COLOURS)], "width": 2.5}
        if not ours:
            style |= {"width": 1.2, "dash": DASHES[1 + count[name] % 3]}
            count[name] += 1
        xs = sorted(points)
        fig.add_scatter(
            x=xs,
            y=[points[x] for x in xs],
            mode="lines+markers",
            name=html.escape(f"{name}: {'ours, ' if ours else ''}{who}"),
            line=style,
            marker={"size": 7 if ours else 4, "color": style["color"]},
            hovertemplate="%{x:,}: %{y:.3g} ms<extra>%{fullData.name}</extra>",
        )
    if not lines:
        text = "not measured in this run"
        fig.add_annotation(text=text, showarrow=False, font_color=QUIET, xref="paper", yref="paper")
    finish(
        fig,
        _steepest(lines, sweep),
        "Both axes logarithmic: a line at 45 degrees grows in proportion. Thin: peers",
        x=SWEEPS[sweep],
        y=f"milliseconds, {way}",
        height=480,
        caption="How a computation's time grows with its size.",
    )
    fig.update_xaxes(type="log", dtick=1, minor={"ticks": "outside"})
    fig.update_yaxes(type="log", dtick=1, minor={"ticks": "outside"})
    return fig


def _steepest(lines: Mapping[tuple[str, str, bool], Mapping[float, float]], sweep: str) -> str:
    """The largest gain over a peer at the far end, in words."""
    gains = []
    for (name, who, ours), points in lines.items():
        if ours or not points:
            continue
        x = max(points)
        mine = [p[x] for (n, _, own), p in lines.items() if n == name and own and x in p]
        if mine:
            gains.append((points[x] / min(mine), name, who, x))
    if not gains:
        return f"Growth with {SWEEPS[sweep].split(' (')[0]}"
    gain, name, who, x = max(gains)
    return f"{name}: {gain:.3g} times as fast as {who} at {x:,.0f}"
