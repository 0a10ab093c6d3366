"""What every executed notebook must be: small, whole, and without need of a network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat

BOOK_BYTES, FIGURE_BYTES = 2_000_000, 1_000_000
PLOTLY = "application/vnd.plotly.v1+json"
FETCHED = {"src", "href", "srcset", "action", "formaction", "data", "poster", "xlink:href"}
ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"url\(|@import|image-set\(", re.IGNORECASE)


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])]


def figures(path: Path) -> list[dict[str, Any]]:
    return [o.data[PLOTLY] for o in outputs(path) if PLOTLY in o.get("data", {})]


class Fetches(HTMLParser):
    """What a piece of HTML would fetch from elsewhere, or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag
        for name, value in attrs:
            if name in FETCHED and ADDRESS.match(value or ""):
                self.found.append(f"<{tag} {name}={value}>")
            if name == "style" and IN_STYLE.search(value or ""):
                self.found.append(f"<{tag} style={value}>")

    def handle_data(self, data: str) -> None:
        if self._in == "style" and IN_STYLE.search(data):
            self.found.append(f"<style> {data[:80]}")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""


def fetches(html: str) -> list[str]:
    parser = Fetches()
    parser.feed(html)
    parser.close()
    return parser.found


def faults(path: Path) -> list[str]:
    """All that is wrong with an executed notebook."""
    nb = nbformat.read(path, 4)
    found = []
    if (size := path.stat().st_size) > BOOK_BYTES:
        found.append(f"{size:,} bytes, at most {BOOK_BYTES:,}")
    if "widgets" in nb.metadata:
        found.append("widget state is saved")
    for i, output in enumerate(outputs(path)):
        if output.output_type == "error":
            found.append(f"output {i}: {output.ename}: {output.evalue}")
        if output.get("name") == "stderr":
            found.append(f"output {i}: red text in a good run: {output.text[:300]}")
        for mime, content in output.get("data", {}).items():
            text = content if isinstance(content, str) else json.dumps(content)
            if len(text) > FIGURE_BYTES:
                found.append(f"output {i}: {len(text):,} bytes of {mime}, at most {FIGURE_BYTES:,}")
            if mime in ("text/html", "image/svg+xml"):
                found += [f"output {i}: would fetch {what}" for what in fetches(text)]
            elif mime == PLOTLY:
                found += [f"output {i}: {fault}" for fault in _figure_faults(content)]
            elif mime == "application/javascript":
                found.append(f"output {i}: a script")
    return found


def _figure_faults(figure: dict[str, Any]) -> list[str]:
    """Pictures from elsewhere, maps, and the buttons that send a figure away."""
    found = [f"an image of {x.get('source')}" for x in figure["layout"].get("images", [])]
    found += [f"a {t.get('type')} trace" for t in figure["data"] if "map" in t.get("type", "")[-6:]]
    found = [x for x in found if "heatmap" not in x]
    if figure.get("config", {}).get("showSendToCloud") is not False:
        found.append("a button that sends the figure away")
    return found
