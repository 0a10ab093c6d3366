"""Associative retrieval in pictures: the task drawn out, the loss by number of pairs beside the
published one, and the training of one point.

Paper: arXiv:2102.11174 section 6.1; section 3.2 for d_dot, the keys that a memory keeps apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.plots.style import (
    ACCENT,
    COLOURS,
    INK,
    QUIET,
    RULE_COLOURS,
    WIDTH,
    feature_colour,
    finish,
    float32,
    label,
    mark,
    thin,
)

Curve = Mapping[int, float | None]
HELD = 0.01
"""a loss up to which pairs count as retrieved; guessing alike costs about 0.5"""
BEYOND = 1.3
"""how far beyond the last limit, or the last number of pairs that is tried, published curves go"""


class Example(NamedTuple):
    """One sequence of the task; keys and values are numbered from 0, each by themselves."""

    keys: Sequence[int]
    values: Sequence[int]
    """written with each key"""
    query: int
    """the key that is asked for in the end"""

    @property
    def written(self) -> list[int]:
        """At which places the key that is asked for was written, from 0."""
        return [i for i, key in enumerate(self.keys) if key == self.query]


def task(examples: Mapping[str, Example]) -> go.Figure:
    """The task drawn out: what is written pair after pair, what is asked, and the right answer.

    Args:
        examples: name of the task -> one of its sequences.
    """
    fig = make_subplots(
        len(examples),
        1,
        subplot_titles=[f"{label(name)}: {_told(it)}" for name, it in examples.items()],
        vertical_spacing=0.28,
    )
    for row, example in enumerate(examples.values(), 1):
        _draw_example(fig, example, row, widest=max(len(e.keys) for e in examples.values()))
    for trace in fig.data:
        # once for all rows; the last one has the most kinds
        trace.showlegend = trace.xaxis == fig.data[-1].xaxis
    most = max(len(example.written) for example in examples.values())
    last = max(examples.values(), key=lambda example: len(example.written))
    finish(
        fig,
        f"Only the last of {most} values of k{last.query + 1} is right: the others are overwritten"
        if most > 1
        else "Write pairs of key and value, then give back the value of one key",
        "Read from left to right; the answer is the value that the key was last written with",
        height=120 + 170 * len(examples),
        caption="The synthetic retrieval task: pairs are written, then one key is asked for.",
    )
    fig.update_annotations(font_size=13, x=0, xanchor="left")
    fig.update_layout(legend={"orientation": "h", "y": -0.16, "x": 0})
    return fig


def _told(example: Example) -> str:
    n = len(example.written)
    last = example.written[-1]
    after = len(example.keys) - 1 - last
    again = "once" if n == 1 else f"{n} times"
    when = f"{after} pair{'' if after == 1 else 's'} before" if after else "just before"
    return (
        f"k{example.query + 1} was written {again}, with v{example.values[last] + 1} in the end, "
        f"{when} the question"
    )


def _draw_example(fig: go.Figure, example: Example, row: int, widest: int) -> None:
    places, last = example.written, example.written[-1]
    n = len(example.keys)
    others = [i for i in range(n) if i not in places]
    asked_at = n + 2
    kinds: list[tuple[str, str, float, list[int]]] = [
        ("another key", QUIET, 1.5, others),
        ("overwritten", ACCENT, 2.0, places[:-1]),
        ("its last value, the answer", COLOURS[2], 3.5, [last]),
    ]
    size = min(30.0, 0.72 * (WIDTH - 100) / (widest + 3))
    for name, colour, thick, chosen in kinds:
        x = [i + 1 for i in chosen]
        keys = [f"k{example.keys[i] + 1}" for i in chosen]
        values = [f"v{example.values[i] + 1}" for i in chosen]
        tips = [f"pair {i}: {k} with {v}" for i, k, v in zip(x, keys, values, strict=True)]
        if name.startswith("its last"):
            # the answer stands under the question
            x, keys, values = [*x, asked_at], [*keys, ""], [*values, values[0]]
            tips.append("the right answer")
        y = [1] * len(x) + [0] * len(x)
        shown = [bool(t) for t in [*keys, *values]]
        _boxes(fig, row, [*x, *x], y, [*keys, *values], tips * 2, shown, name, colour, thick, size)
    question = f"k{example.query + 1} ?"
    _boxes(
        fig, row, [asked_at], [1], [question], ["the question"], [True], "the question", COLOURS[0],
        3.5, size,
    )  # fmt: skip
    fig.update_yaxes(
        tickvals=[0, 1],
        ticktext=["value", "key"],
        range=[-0.6, 1.6],
        showgrid=False,
        zeroline=False,
        title_text="written as",
        row=row,
        col=1,
    )
    fig.update_xaxes(
        title_text="pair, in the order of writing",
        range=[0.2, widest + 2.8],
        showgrid=False,
        zeroline=False,
        row=row,
        col=1,
    )


def _boxes(
    fig: go.Figure,
    row: int,
    x: Sequence[int],
    y: Sequence[int],
    texts: Sequence[str],
    tips: Sequence[str],
    shown: Sequence[bool],
    name: str,
    colour: str,
    thick: float,
    size: float,
) -> None:
    kept = [i for i, it in enumerate(shown) if it]
    fig.add_scatter(
        x=[x[i] for i in kept],
        y=[y[i] for i in kept],
        mode="markers+text",
        text=[texts[i] for i in kept],
        customdata=[tips[i] for i in kept],
        name=name,
        legendgroup=name,
        marker={
            "symbol": "square-open",
            "size": size,
            "color": colour,
            "line": {"width": thick, "color": colour},
        },
        hovertemplate="%{customdata}<extra></extra>",
        row=row,
        col=1,
    )


def loss_by_pairs(
    measured: Mapping[str, Curve],
    published: Mapping[str, Curve],
    features: Mapping[str, int | None],
    scale: Literal["linear", "log"] = "linear",
    asked: Sequence[int] = (),
) -> go.Figure:
    """Lowest validation loss over the number of pairs, ours and the source's.

    Args:
        measured: model -> pairs -> loss; None where it diverged.
        published: the same of the source; a model may be missing.
        features: model -> d_dot, the features of its memory: the most keys that can be orthogonal
            in it; None where there is no such limit.
        scale: of the loss.
        asked: numbers of pairs that are to be tried; published curves are drawn some way beyond
            them and the limits.
    """
    fig = go.Figure()
    tried = [*asked, *(n for curve in measured.values() for n in curve)]
    known = [count for count in features.values() if count is not None]
    # where nothing is asked for, all that was published
    most = BEYOND * max([*tried, *known]) if tried else float("inf")
    colours = colours_of(list(measured))
    for name, curve in measured.items():
        line = {"color": colours[name], "width": 2}
        _curve(fig, name, curve, "measured", line=line)
        source = {n: loss for n, loss in published.get(name, {}).items() if n <= most}
        _curve(fig, name, source, "published", line={**line, "width": 1.5, "dash": "dot"})
    drawn = [*tried, *(n for curve in published.values() for n in curve if n <= most)]
    _limits(fig, features, colours, max(drawn, default=0))
    if scale == "log":
        fig.update_yaxes(type="log", exponentformat="power")
    without = [name for name, count in features.items() if count is None and name in measured]
    kept = f". {', '.join(without)}: keeps every pair, no limit" if without else ""
    return finish(
        fig,
        _finding(measured),
        f"Solid: measured here. Dotted: published. d_dot: keys that can be kept apart{kept}",
        x="pairs of key and value",
        y="loss (half the squared error)",
        caption="Lowest validation loss of associative retrieval by the number of pairs, beside "
        "the published one; a memory cannot keep more keys apart than it has features (d_dot).",
    )


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Colours of models called `<feature map>` or `<feature map>-<rule>`.

    That of the feature map where it tells them apart, else that of the rule, else one after the
    other.
    """
    by_map = [feature_colour(name) for name in names]
    by_rule = [RULE_COLOURS.get(name.rpartition("-")[2], QUIET) for name in names]
    in_order = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    chosen = next((c for c in (by_map, by_rule) if len(set(c)) == len(names)), in_order)
    return dict(zip(names, chosen, strict=True))


def _limits(
    fig: go.Figure, features: Mapping[str, int | None], colours: Mapping[str, str], most: int
) -> None:
    """A line at each number of keys that a memory can keep apart."""
    counts = sorted({count for count in features.values() if count is not None and count <= most})
    for row, count in enumerate(counts):
        names = [name for name, n in features.items() if n == count]
        side = "left" if count < most / 2 else "right"
        mark(fig, count, f"{', '.join(names)}: d_dot = {count}", axis="x", end=side, row=row)
        if len(names) == 1 and names[0] in colours:
            fig.layout.shapes[-1].line.color = colours[names[0]]


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


def training(
    records: Sequence[Mapping[str, Any]],
    name: str,
    n_pairs: int,
    *,
    published: float | None = None,
    goal: float | None = None,
) -> go.Figure:
    """How one training goes: its loss by updates, on a logarithmic scale.

    Args:
        records: of its run, oldest first; [] before the first.
        name: of the model; "" for no training at all.
        n_pairs: pairs of key and value.
        published: the source's lowest validation loss, if it is known.
        goal: a validation at which the training ends.
    """
    fig = go.Figure()
    steps, losses = _losses(records, "train")
    x, y = thin(steps, losses)
    fig.add_scatter(
        x=x, y=y, mode="lines", name="training", line={"color": QUIET, "width": 1.5},
        hovertemplate="update %{x:,}: %{y:.4f}<extra>training</extra>",
    )  # fmt: skip
    at, valid = _losses(records, "eval")
    fig.add_scatter(
        x=at, y=float32(valid), mode="lines+markers", name="validation",
        line={"color": COLOURS[0], "width": 2}, marker={"size": 6},
        hovertemplate="update %{x:,}: %{y:.4f}<extra>validation</extra>",
    )  # fmt: skip
    lines = {"published": published, "ends the training": goal}
    for text, value in lines.items():
        if value is not None:
            # a trace and not a mark: it counts for the range of the axis, whatever that is
            ends = [min([*steps, *at], default=0), max([*steps, *at], default=1)]
            fig.add_scatter(
                x=ends, y=[value, value], mode="lines", name=f"{text}: {value:g}",
                line={"color": INK if text == "published" else ACCENT, "width": 1.5, "dash": "dot"},
                hoverinfo="skip",
            )  # fmt: skip
    told = f"lowest validation {min(valid):.4f}, update {max(at):,}" if valid else "has begun"
    finish(
        fig,
        f"{label(name)} at {n_pairs} pairs: {told}" if name else "No training has begun",
        "Half the squared distance from the value's one-hot vector; 0.5 is knowing nothing",
        x="updates",
        y="loss (half the squared error)",
        height=320,
        caption="Loss of the training that was run last.",
    )
    fig.update_yaxes(type="log", exponentformat="power")
    return fig


def _losses(records: Sequence[Mapping[str, Any]], kind: str) -> tuple[list[int], list[float]]:
    rows = [r for r in records if r["kind"] == kind and r["loss_nats"] is not None]
    return [r["step"] for r in rows], [r["loss_nats"] for r in rows]
