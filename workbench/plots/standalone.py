"""One self-contained HTML page of figures and texts: works offline, by mail, in print.

Everything is inside, plotly's JavaScript once. The page may load nothing and run nothing but its
two scripts: its policy names them by their sums, so that even a figure or a text that got past our
checks could not make a browser fetch or run anything. Light and dark follow the reader's system or
the button; figures change by their template alone.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench.plots.style import CONFIG, PAGES, TEMPLATES, Theme
from workbench.plots.table import alt, table

MAX_ROWS = 60
"""of the table below a figure; an export has all"""


SHADES: dict[Theme, str] = {"light": "#F5F7FA", "dark": "#1A1F25"}
"""behind the figures"""
LINKS: dict[Theme, str] = {"light": "#0066A0", "dark": "#6DB7E8"}
HERE = Path(__file__).parent


def page(title: str, body: Sequence[str]) -> str:
    """The whole page.

    Args:
        title: of the document, and its heading.
        body: pieces of HTML, among them those of `figure`.
    """
    scripts = [get_plotlyjs(), (HERE / "standalone.js").read_text("utf-8")]
    sums = " ".join(f"'sha256-{_sum(s)}'" for s in scripts)
    # plotly builds the programs of its parallel axes at run time, hence unsafe-eval; strings of a
    # figure never reach it
    policy = (
        f"default-src 'none'; script-src {sums} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
    shared = {"templates": {n: _template(n) for n in TEMPLATES}, "config": CONFIG}
    name = html.escape(title)
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{name}</title><style>{_style()}</style>",
            f"<script>{scripts[0]}</script></head><body>",
            "<a class='skip' href='#content'>Skip to the content</a><main>",
            f"<header><h1>{name}</h1><button type='button' id='wb-theme'>Dark theme</button>",
            "</header>",
            *body,
            "</main><noscript>The figures need JavaScript; the tables do not.</noscript>",
            _data("wb-shared", json.dumps(shared)),
            f"<script>{scripts[1]}</script></body></html>",
        ]
    )


def _style() -> str:
    """The page's rules, with its colours: by the system's theme or the button's; light in print."""

    def colours(name: Theme) -> str:
        page = PAGES[name]
        return (
            f"{{color-scheme:{name};--wb-ink:{page.ink};--wb-paper:{page.paper};"
            f"--wb-muted:{page.muted};--wb-line:{page.grid};--wb-shade:{SHADES[name]};"
            f"--wb-link:{LINKS[name]}}}"
        )

    light, dark = colours("light"), colours("dark")
    return (
        f":root{light}@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){dark}}}"
        f":root[data-theme=dark]{dark}@media print{{:root,:root[data-theme]{light}}}"
        + (HERE / "standalone.css").read_text("utf-8")
    )


def _sum(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _template(name: Theme) -> Any:
    """A template without a width of its own: the page's rules."""
    plain = TEMPLATES[name].to_plotly_json()
    plain.get("layout", {}).pop("width", None)
    return json.loads(go.Figure(layout={"template": plain}).to_json())["layout"]["template"]


def _data(name: str, text: str) -> str:
    """JSON that a script of the page reads: text of a corpus cannot end it."""
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f"<script type='application/json' id='{html.escape(name)}'>{safe}</script>"


def figure(fig: go.Figure, place: str, heading: str = "", note: str = "") -> str:
    """A figure with its description and its numbers, for `page`.

    Args:
        fig: the figure.
        place: an id within the page, of letters, digits and hyphens.
        heading: above it.
        note: below it, beside the caption that it brings along.
    """
    shown = copy.deepcopy(fig)
    shown.layout.template = None
    shown.layout.width, shown.layout.autosize = None, True
    height = fig.layout.height or 450
    meta = fig.layout.meta
    caption = meta.get("caption") if isinstance(meta, dict) else None
    below = " ".join(html.escape(str(t)) for t in (caption, note) if t)
    return "\n".join(
        [
            f"<figure id='{place}'>{_heading(heading)}",
            f'<div class="drawn" role="img" tabindex="0" data-figure="{place}-data" '
            f'style="min-height:{height:g}px" aria-label="{html.escape(alt(fig))}"></div>',
            f"<figcaption>{below}</figcaption>{_numbers(fig)}</figure>",
            _data(f"{place}-data", shown.to_json(remove_uids=True)),
        ]
    )


def text(piece: str, place: str, heading: str = "", note: str = "") -> str:
    """A piece of HTML that the package made, framed as figures are."""
    below = f"<figcaption>{html.escape(note)}</figcaption>" if note else ""
    return f"<figure id='{place}'>{_heading(heading)}{piece}{below}</figure>"


def _heading(text: str) -> str:
    return f"<h3>{html.escape(text)}</h3>" if text else ""


def _numbers(fig: go.Figure) -> str:
    columns = table(fig)
    count = max(map(len, columns.values()), default=0)
    if not count:
        return ""
    part = f"the first {MAX_ROWS} of {count:,} rows" if count > MAX_ROWS else f"{count:,} rows"
    rows = [[own[i] for own in columns.values()] for i in range(min(count, MAX_ROWS))]
    return f"<details><summary>Numbers: {part}</summary>{grid(list(columns), rows)}</details>"


def grid(names: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """A table that may be scrolled by keyboard; None is a dash, numbers keep seven digits."""
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    label = html.escape(caption or "numbers", quote=True)
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{label}'><table>{told}"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if value is None:
        return "<td>-</td>"
    shown = value if isinstance(value, str | bool | int) else f"{value:.7g}"
    return f"<td>{html.escape(str(shown))}</td>"
