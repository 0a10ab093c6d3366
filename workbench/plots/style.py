"""One look for all figures: light or dark, colour-blind safe, axes with units, titles that say it.

Figures take plain numbers (lists or numpy arrays) and return a `plotly.graph_objects.Figure`, so
that they need neither a model nor a browser. Large maps are pooled before they are drawn.

What traces bring along (lines, marks, colour scales) is the same in both themes and stands out on
either page; what depends on the theme is in its template alone, so that a figure changes its theme
by changing its template (`dress`).
"""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jupyter_core.paths import jupyter_config_dir
from numpy.typing import ArrayLike, NDArray

from workbench.attendance import in_batch
from workbench.errors import ConfigError

CONFIG: dict[str, Any] = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
"""Of every shown figure; plotly 7 would offer to upload the data otherwise."""

# near Okabe and Ito's palette, moved so that each colour has a contrast of 3 on a white and on a
# dark page, and the first six differ for protanopes and deuteranopes, too
COLOURS = ("#2A73AE", "#E35A06", "#0AA266", "#CB568C", "#AF8E36", "#029CEA", "#7A7A7A", "#8C6BB1")
RULE_COLOURS = {"delta": COLOURS[0], "sum": COLOURS[1]}
FEATURE_COLOURS = {
    "elu": COLOURS[2],
    "favor": COLOURS[3],
    "dpfp": COLOURS[4],
    "softmax": COLOURS[6],
}
QUIET = "#8A95A1"
"""of thin lines and bars that others are compared with"""
INK = "#66727F"
"""of lines over others, such as a mean"""
ACCENT = "#E06A1B"
"""of what is chosen, and of loss as the background of a token"""
MAGNITUDE = "Viridis"
"""for quantities from zero up"""
SIGNED = "RdBu"
"""for quantities around zero; use with `zmid=0`"""
WIDTH = 860
"""of a figure in a notebook, in pixels"""
MAX_SIDE = 256
"""cells of a map along either axis"""
MAX_POINTS = 600
"""points of a line"""

Theme = Literal["light", "dark"]


class Page(NamedTuple):
    """The colours of one theme; the dark page is that of JupyterLab's dark theme."""

    paper: str
    ink: str
    muted: str
    grid: str
    line: str
    veil: str
    """behind words that stand on lines"""


PAGES: dict[Theme, Page] = {
    "light": Page("#FFFFFF", "#1F2933", "#52606D", "#E4E7EB", "#9AA3AD", "rgba(255,255,255,0.75)"),
    "dark": Page("#111111", "#E6EAEE", "#A7B1BC", "#2A3139", "#66727F", "rgba(17,17,17,0.75)"),
}


def _template(page: Page) -> go.layout.Template:
    axis = {
        "gridcolor": page.grid,
        "zerolinecolor": page.grid,
        "linecolor": page.line,
        "showline": True,
        "ticks": "outside",
        "tickcolor": page.line,
        "ticklen": 4,
        "title": {"font": {"size": 13}, "standoff": 8},
        "automargin": True,
    }
    control = {"bgcolor": page.grid, "bordercolor": page.line, "font": {"color": page.ink}}
    return go.layout.Template(
        layout={
            "font": {
                "family": "Inter, Helvetica, Arial, sans-serif",
                "size": 12,
                "color": page.ink,
            },
            "paper_bgcolor": page.paper,
            "plot_bgcolor": page.paper,
            "colorway": COLOURS,
            "title": {
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "yref": "container",
                "font": {"size": 16},
                "subtitle": {"font": {"size": 12, "color": page.muted}},
            },
            "margin": {"l": 70, "r": 30, "t": 80, "b": 60},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"bgcolor": page.veil, "font": {"size": 11}},
            "hoverlabel": {
                "font": {"family": "ui-monospace, Menlo, Consolas, monospace", "size": 12}
            },
            "annotationdefaults": {"font": {"color": page.muted}, "bgcolor": page.veil},
            "sliderdefaults": {**control, "activebgcolor": page.line},
            "updatemenudefaults": control,
            "coloraxis": {"colorbar": {"thickness": 12, "outlinewidth": 0}},
            "width": WIDTH,
        }
    )


TEMPLATES: dict[Theme, go.layout.Template] = {name: _template(p) for name, p in PAGES.items()}

_chosen = "auto"


def use_theme(name: str) -> None:
    """Draw the figures to come in this theme.

    Args:
        name: `light`, `dark`, or `auto`: the environment's `WORKBENCH_THEME`, else in a browser
            that of JupyterLab's settings, else light.

    Raises:
        ConfigError: no such theme.
    """
    global _chosen
    if name not in ("auto", *PAGES):
        raise ConfigError(f"theme: got {name!r}, expected auto, light or dark")
    _chosen = name


def theme() -> Theme:
    """In which theme figures are drawn now.

    Raises:
        ConfigError: `WORKBENCH_THEME` is no theme.
    """
    told = os.environ.get("WORKBENCH_THEME") or "auto" if _chosen == "auto" else _chosen
    if told not in ("auto", *PAGES):
        raise ConfigError(f"WORKBENCH_THEME: got {told!r}, expected auto, light or dark")
    if told == "auto" and not in_batch() and _lab_is_dark():
        return "dark"
    return "dark" if told == "dark" else "light"


def _lab_is_dark() -> bool:
    """Whether the user has set JupyterLab to a dark theme; the page itself cannot be asked."""
    own = os.environ.get("JUPYTERLAB_SETTINGS_DIR")
    settings = Path(own) if own else Path(jupyter_config_dir()) / "lab" / "user-settings"
    file = settings / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    if not file.is_file():
        return False
    # the file may hold comments, which JSON has not
    text = re.sub(r"(?m)^\s*//.*$", "", file.read_text(encoding="utf-8", errors="replace"))
    found = re.search(r'"theme"\s*:\s*"([^"]*)"', text)
    return found is not None and "dark" in found[1].lower()


def dress(fig: go.Figure, name: Theme | None = None) -> go.Figure:
    """Put a figure into a theme, that of `theme()` unless one is named; changed in place."""
    fig.update_layout(template=TEMPLATES[theme() if name is None else name])
    return fig


def layer_colour(layer: int) -> str:
    """Of a layer, counted from 0: the same in every figure."""
    return COLOURS[layer % len(COLOURS)]


def feature_colour(name: str) -> str:
    """Of a feature map, by its name such as `dpfp` or `dpfp-3`; grey where it is unknown."""
    kind = re.match("[a-z]*", name.lower())
    return FEATURE_COLOURS.get(kind[0] if kind else "", QUIET)


def finish(
    fig: go.Figure,
    title: str,
    subtitle: str = "",
    *,
    x: str = "",
    y: str = "",
    height: int = 400,
    caption: str = "",
) -> go.Figure:
    """Give a figure the common look.

    Args:
        fig: the figure with its traces; changed in place.
        title: the finding, in a short sentence.
        subtitle: how to read the picture.
        x, y: titles of the axes, with units; empty for those that the figure set itself.
        height: in pixels.
        caption: what the report writes below it; kept in `layout.meta`.

    Returns:
        the same figure.
    """
    dress(fig).update_layout(height=height)
    fig.update_layout(title={"text": title, "subtitle": {"text": subtitle}})
    fig.update_layout(title={"y": 1 - 14 / height, "yanchor": "top"})
    if x:
        fig.update_xaxes(title_text=x)
    if y:
        fig.update_yaxes(title_text=y)
    if caption:
        fig.update_layout(meta={"caption": caption})
    return fig


def mark(
    fig: go.Figure,
    value: float,
    text: str,
    *,
    axis: str = "y",
    log: bool = False,
    end: str = "right",
    row: int = 0,
) -> None:
    """A dashed line at a value of one axis, with a word at its end.

    Args:
        end: of the line on the y axis; on the x axis, which side of the word the line is.
        row: on the x axis, how many words lower, where lines stand close together.

    Plotly places words, unlike lines, by the logarithm on a logarithmic axis; hence `log`.
    """
    at = float(np.log10(value)) if log else value
    style = {"color": QUIET, "dash": "dash", "width": 1.5}
    word: dict[str, Any] = {
        "text": text,
        "showarrow": False,
        "font": {"size": 11},
    }
    if axis == "y":
        fig.add_shape(type="line", xref="paper", x0=0, x1=1, y0=value, y1=value, line=style)
        fig.add_annotation(
            word, xref="paper", x=float(end == "right"), y=at, xanchor=end, yanchor="bottom"
        )
    else:
        fig.add_shape(type="line", yref="paper", y0=0, y1=1, x0=value, x1=value, line=style)
        fig.add_annotation(
            word,
            yref="paper",
            y=1,
            x=at,
            xanchor=end,
            yanchor="top",
            yshift=-16 * row,
            xshift=6 if end == "left" else -6,
        )


def float32(values: ArrayLike | Sequence[Any]) -> NDArray[np.float32]:
    """Numbers as plotly sends them smallest; None becomes NaN, a gap in a line."""
    return np.asarray(values, dtype=np.float64).astype(np.float32)


def pool(matrix: ArrayLike, max_side: int = MAX_SIDE) -> tuple[NDArray[np.float32], int, int]:
    """Shrink a map by taking the entry of largest magnitude of each cell.

    A mean would wash out what is looked for: thin diagonals and single bright columns.

    Args:
        matrix: (rows, columns).
        max_side: most rows and most columns of the result.

    Returns:
        the smaller map, and how many rows and columns one of its cells covers.
    """
    full = float32(matrix)
    if full.ndim != 2 or not full.size:
        raise ValueError(f"expected a matrix with at least one entry, got shape {full.shape}")
    step_r, step_c = (-(-side // max_side) for side in full.shape)
    padded = np.pad(full, ((0, -full.shape[0] % step_r), (0, -full.shape[1] % step_c)))
    cells = padded.reshape(padded.shape[0] // step_r, step_r, -1, step_c).swapaxes(1, 2)
    flat = cells.reshape(*cells.shape[:2], -1)
    chosen = np.abs(flat).argmax(-1)
    return np.take_along_axis(flat, chosen[..., None], -1)[..., 0], step_r, step_c


def thin(
    x: ArrayLike, y: ArrayLike, max_points: int = MAX_POINTS
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A line with at most `max_points` points: means over equal runs of neighbours."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) > max_points:
        edges = np.linspace(0, len(xs), max_points + 1).astype(int)
        xs, ys = (np.add.reduceat(v, edges[:-1]) / np.diff(edges) for v in (xs, ys))
    return xs.astype(np.float32), ys.astype(np.float32)


def kinks(y: ArrayLike) -> NDArray[np.int64]:
    """Which points of a line of straight pieces must be kept to draw it exactly."""
    bend = np.abs(np.diff(np.asarray(y, dtype=np.float64), 2)) > 1e-6
    return np.flatnonzero(np.concatenate([[True], bend, [True]]))


def label(text: str) -> str:
    """Text of a corpus inside a figure: plotly would read `<b>` in it as bold."""
    return html.escape(text, quote=False)


_NAMED = {"\n": "↵", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    """A text with nothing in it that hides or reorders.

    Line ends, tabs and control characters become their pictures; a byte that is no UTF-8 (Python
    keeps it as a lone surrogate) becomes `\\xNN`; marks without a width, such as those that turn
    the direction of writing, become their numbers. A single blank becomes `␣`.
    """
    return "␣" if text == " " else "".join(map(_visible, text))


def running(text: str) -> str:
    """As `visible`, for text that stands in lines: blanks, line ends and tabs stay themselves."""
    return "".join(char if char in " \n\t" else _visible(char) for char in text)


def _visible(char: str) -> str:
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    if code < 0x20:
        return chr(0x2400 + code)
    if 0x80 <= code < 0xA0:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return char


def shown(symbol: str) -> str:
    """One token as visible text inside a figure."""
    return label(visible(symbol))


def around(symbols: Sequence[str], t: int, width: int = 12) -> str:
    """The text near token `t`, which stands in brackets: for hover labels."""
    before = "".join(shown(s) for s in symbols[max(0, t - width) : t])
    after = "".join(shown(s) for s in symbols[t + 1 : t + 1 + width])
    return f"{before}[{shown(symbols[t])}]{after}"
