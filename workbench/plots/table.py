"""The numbers of a figure as one long table, and what it shows in words.

A row is a point of a line, a bar, or a cell of a map. Columns are called as the axes are, with
their units, so that figures with several axes have several columns, filled where they apply.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

Table = dict[str, list[Any]]
"""column -> values, None where it does not apply; all of one length"""
DTYPES = {
    **{"i1": "<i1", "u1": "<u1", "i2": "<i2", "u2": "<u2", "i4": "<i4", "u4": "<u4"},
    **{"f4": "<f4", "f8": "<f8"},
}
"""plotly's names of numbers, and numpy's"""
MAPS = ("heatmap", "contour", "surface", "histogram2d")


def words(text: Any) -> str:
    """Plotly's markup as plain text."""
    plain = re.sub(r"<br ?/?>", " ", str(text or ""))
    return html.unescape(re.sub(r"</?[a-z][^<>]*>", "", plain)).strip()


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """The values of nested plain data by dotted path; empty lists and mappings are values."""
    if isinstance(data, Mapping) and data:
        inside = list(data.items())
    elif isinstance(data, list) and data:
        inside = list(enumerate(data))
    else:
        return {path: data}
    found: dict[str, Any] = {}
    for name, value in inside:
        found |= flat(value, f"{path}.{name}" if path else str(name))
    return found


def table(fig: go.Figure) -> Table:
    """The numbers of all traces, also of those that a slider hides.

    Columns: `trace` counts from 1, `name` is that of the legend; then those of the axes.

    Raises:
        ValueError: a typed array in it is none.
    """
    rows: list[dict[str, Any]] = []
    plain = fig.to_plotly_json()
    _add(rows, plain["data"], plain["layout"], {})
    for i, frame in enumerate(plain.get("frames") or [], 1):
        told = {"frame": words(frame.get("name")) or str(i)}
        _add(rows, frame.get("data") or [], plain["layout"], told)
    columns = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in columns}


def decode(value: Any) -> Any:
    """Numbers as plotly stores them: a typed array becomes one of numpy, all else stays.

    Raises:
        ValueError: it is no array of the type and shape that it names.
    """
    if not isinstance(value, Mapping) or "bdata" not in value:
        return value
    if value.get("dtype") not in DTYPES or not isinstance(value["bdata"], str):
        raise ValueError(f"an array of type {value.get('dtype')!r:.40}, expected {[*DTYPES]}")
    try:
        raw = base64.b64decode(value["bdata"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"an array that is no base64: {error}") from None
    flat: NDArray[Any] = np.frombuffer(raw, DTYPES[value["dtype"]])
    shape = [int(n) for n in str(value.get("shape") or flat.size).split(",")]
    return flat.reshape(shape)


def _add(
    rows: list[dict[str, Any]], traces: Sequence[Any], layout: dict[str, Any], told: dict[str, Any]
) -> None:
    for i, trace in enumerate(traces, 1):
        head = {**told, "trace": i, "name": words(trace.get("name"))}
        columns = _map(trace, layout) if trace.get("type") in MAPS else _points(trace, layout)
        length = max(map(len, columns.values()), default=0)
        for at in range(length):
            values = {name: own[at] if at < len(own) else None for name, own in columns.items()}
            rows.append({**head, **values})


def _points(trace: dict[str, Any], layout: dict[str, Any]) -> Table:
    """A column for each thing that has a value at each point."""
    if "dimensions" in trace:
        dimensions = enumerate(trace["dimensions"], 1)
        return {words(d.get("label")) or str(i): _dimension(d) for i, d in dimensions}
    if trace.get("type") == "table":
        heads, cells = trace.get("header", {}).get("values"), trace.get("cells", {}).get("values")
        return {words(h): _list(c) for h, c in zip(heads or [], cells or [], strict=False)}
    columns: Table = {}
    for letter in ("x", "y", "z"):
        values = _list(trace.get(letter)) or _counted(trace, letter)
        if values:
            name = _axis(trace, layout, letter)
            # both axes may measure the same
            columns[f"{name} ({letter})" if name in columns else name] = values
        if error := _list((trace.get(f"error_{letter}") or {}).get("array")):
            columns[f"{_axis(trace, layout, letter)}, error"] = error
    columns |= {n: v for n in ("labels", "values") if (v := _list(trace.get(n)))}
    colour = (trace.get("marker") or {}).get("color")
    if (shades := _list(colour)) and all(isinstance(s, int | float) for s in shades):
        bar = trace["marker"].get("colorbar") or {}
        columns[words((bar.get("title") or {}).get("text")) or "colour"] = shades
    if isinstance(trace.get("text"), list | tuple):
        columns["text"] = [words(t) for t in trace["text"]]
    return columns


def _counted(trace: dict[str, Any], letter: str) -> list[Any]:
    """Positions of points that have one coordinate only, as plotly counts them."""
    other = {"x": "y", "y": "x"}.get(letter)
    count = len(_list(trace.get(other))) if other else 0
    start, step = trace.get(f"{letter}0") or 0, trace.get(f"d{letter}") or 1
    numbers = isinstance(start, int | float) and isinstance(step, int | float)
    return [start + step * n for n in range(count)] if numbers else []


def _dimension(told: dict[str, Any]) -> list[Any]:
    """Values of one of several parallel axes, as words where its ticks are named."""
    values = _list(told.get("values"))
    at, names = _list(told.get("tickvals")), _list(told.get("ticktext"))
    named = dict(zip(at, names, strict=False)) if len(at) == len(names) else {}
    return [named.get(v, v) for v in values] if set(values) <= set(named) else values


def _map(trace: dict[str, Any], layout: dict[str, Any]) -> Table:
    """A row for each cell of a map, its rows one after the other."""
    z = decode(trace.get("z"))
    rows = [list(row) for row in (z if z is not None else [])]
    width = max(map(len, rows), default=0)
    xs, ys = _list(trace.get("x")), _list(trace.get("y"))
    # edges of cells come one more than cells; a cell is named by where it begins
    xs = xs if len(xs) >= width else list(range(width))
    ys = ys if len(ys) >= len(rows) else list(range(len(rows)))
    x, y = _axis(trace, layout, "x"), _axis(trace, layout, "y")
    bar = trace.get("colorbar") or (layout.get("coloraxis") or {}).get("colorbar") or {}
    value = words((bar.get("title") or {}).get("text")) or "z"
    cells = [(j, i) for i in range(len(rows)) for j in range(len(rows[i]))]
    found: Table = {x: [xs[j] for j, _ in cells]}
    found[f"{y} (y)" if y in found else y] = [ys[i] for _, i in cells]
    found[f"{value} (z)" if value in found else value] = [_plain(rows[i][j]) for j, i in cells]
    texts = trace.get("text")
    if isinstance(texts, list | tuple) and all(isinstance(row, list | tuple) for row in texts):
        told = {(j, i): words(t) for i, row in enumerate(texts) for j, t in enumerate(row)}
        found["text"] = [told.get(cell) for cell in cells]
    return found


def _axis(trace: dict[str, Any], layout: dict[str, Any], letter: str) -> str:
    """What an axis of a trace is called; its letter where it has no name."""
    own = trace.get(f"{letter}axis") or letter
    name = f"{letter}axis{str(own)[1:]}"
    axis = layout.get(name) or {}
    # of panels above each other the lowest alone tells what they share
    shared = axis.get("matches") or str(own)
    group = [axis, layout.get(f"{letter}axis{str(shared)[1:]}") or {}]
    group += [v for k, v in layout.items() if _shares(k, v, letter, shared)]
    found = (words((a.get("title") or {}).get("text")) for a in group)
    return next((title for title in found if title), letter)


def _shares(name: str, axis: Any, letter: str, shared: str) -> bool:
    is_axis = name.startswith(f"{letter}axis") and isinstance(axis, dict)
    return is_axis and axis.get("matches") == shared


def _list(values: Any) -> list[Any]:
    found = decode(values)
    if isinstance(found, np.ndarray):
        return [_plain(v) for v in found.ravel()]
    return [_plain(v) for v in found] if isinstance(found, list | tuple) else []


def _plain(value: Any) -> Any:
    """A number of Python or numpy that keeps its precision; text without markup."""
    if isinstance(value, str):
        return words(value)
    if isinstance(value, float | np.floating):
        return value if np.isfinite(value) else None
    return value


def alt(fig: go.Figure, most: int = 6) -> str:
    """What a figure shows, in words, for whoever cannot see it.

    Args:
        fig: the figure.
        most: so many traces are told one by one.
    """
    plain = fig.to_plotly_json()
    layout = plain["layout"]
    title = layout.get("title") or {}
    told = [title.get("text"), (title.get("subtitle") or {}).get("text")]
    meta = layout.get("meta")
    told.append(meta.get("caption") if isinstance(meta, dict) else None)
    sentences = [s if s[-1] in ".!?" else f"{s}." for t in told if (s := words(t))]
    shown = [t for t in plain["data"] if t.get("visible", True) is True]
    parts = [part for t in shown if (part := _told(t, layout))]
    sentences += [f"{part}." for part in parts[:most]]
    if len(parts) > most:
        sentences.append(f"And {len(parts) - most} more.")
    return " ".join(sentences)


def _told(trace: dict[str, Any], layout: dict[str, Any]) -> str:
    """One trace: what it is called, how many values, and between which."""
    is_map = trace.get("type") in MAPS
    columns = _map(trace, layout) if is_map else _points(trace, layout)
    ranges = [
        f"{name} from {min(numbers):.4g} to {max(numbers):.4g}"
        for name, values in columns.items()
        if (numbers := [v for v in values if isinstance(v, int | float | np.number)])
    ]
    count = max(map(len, columns.values()), default=0)
    if not count:
        return ""
    kind = {"bar": "bars", "parcoords": "lines"}.get(trace.get("type", ""), "points")
    what = f"{count:,} {'cells' if is_map else kind}"
    name = words(trace.get("name"))
    return f"{name + ': ' if name else ''}{', '.join([what, *ranges])}"
