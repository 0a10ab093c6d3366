"""An executed notebook as one HTML page that works offline: an exporter for nbconvert.

    jupyter nbconvert --to workbench runs/mine.ipynb

nbconvert's own pages have no place for plotly's figures and fetch scripts from elsewhere. Here the
figures are drawn as in `workbench report`, and the page's policy lets a browser fetch nothing and
run nothing but the two scripts that draw them: scripts in outputs do not run, and HTML in outputs
and in texts keeps only what shows something.
"""

from __future__ import annotations

import copy
import html
import re
from typing import Any

import bleach
from bleach.css_sanitizer import CSSSanitizer
from nbconvert.exporters import Exporter
from nbconvert.filters import ansi2html, markdown2html

from workbench import kept
from workbench.errors import RunFolderError
from workbench.plots import standalone
from workbench.plots.live import PLOTLY_MIME

TAGS = (
    "a abbr b blockquote br caption code del details div em h1 h2 h3 h4 h5 h6 hr i kbd li ol p pre "
    "s small span strong sub summary sup table tbody td tfoot th thead tr u ul"
)
ATTRIBUTES = "class style title tabindex role aria-label id href colspan rowspan scope"
PROPERTIES = (
    "background background-color border border-bottom border-collapse border-left border-radius "
    "border-right border-top box-sizing color display font font-family font-size font-style "
    "font-variant-numeric font-weight gap height letter-spacing line-height margin margin-bottom "
    "margin-left margin-right margin-top max-height max-width min-height min-width opacity "
    "overflow overflow-wrap overflow-x overflow-y padding padding-bottom padding-left "
    "padding-right padding-top text-align text-decoration vertical-align white-space width "
    "word-break"
)
"""no position: what is in an output stays in its place"""
ANCHOR = re.compile(r'<a class="anchor-link"[^>]*>[^<]*</a>')
"""nbconvert's mark behind each heading"""
BASE64 = re.compile(r"[A-Za-z0-9+/=\s]+")
FUNCTIONS = re.compile(r"\b(var|rgba?|hsla?|calc)\(")
STYLE = """<style>
.cell-code,.cell-out{background:var(--wb-paper);border:1px solid var(--wb-line);border-radius:6px;
padding:.6rem .8rem;overflow:auto;margin:.6rem 0}.cell-code{border-left:3px solid var(--wb-link)}
.cell-out pre,pre.cell-out{white-space:pre-wrap;overflow-wrap:anywhere}
.cell-bad{border-color:#C0392B}
</style>"""


class Page(Exporter):
    """nbconvert's way to the page: `--to workbench`, or `--to workbench.notebook_page.Page`."""

    export_from_notebook = "Workbench page"

    def _file_extension_default(self) -> str:
        return ".html"

    output_mimetype = "text/html"

    def from_notebook_node(  # type: ignore[override]  # nbconvert names the wrong type
        self, nb: Any, resources: Any = None, **kw: Any
    ) -> tuple[str, dict[str, Any]]:
        """The page of a notebook.

        Args:
            nb: the notebook, with its outputs.
            resources: what nbconvert tells; its `metadata.name` is the title of last resort.

        Returns:
            the page, and the resources with what nbconvert adds.
        """
        nb, resources = super().from_notebook_node(nb, resources, **kw)
        name = resources.get("metadata", {}).get("name") or "notebook"
        return page(nb, str(name)), resources


def page(nb: Any, name: str = "notebook") -> str:
    """A notebook as one self-contained page.

    Args:
        nb: the notebook, with its outputs.
        name: the title, where no heading gives one.
    """
    cells, title = copy.deepcopy(nb.cells), name
    if cells and cells[0].cell_type == "markdown" and cells[0].source.startswith("# "):
        first, _, cells[0].source = cells[0].source.partition("\n")
        title = first.removeprefix("# ").strip()
    body = [STYLE]
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            body.append(_clean(ANCHOR.sub("", markdown2html(cell.source))))
        elif cell.source.strip():
            label = f"code of cell {i + 1}"
            code = html.escape(cell.source)
            body.append(
                f'<pre class="cell-code" tabindex="0" role="region" aria-label="{label}">'
                f"<code>{code}</code></pre>"
            )
        for k, output in enumerate(_joined(cell.get("outputs", []))):
            body.append(_output(output, f"out-{i + 1}-{k + 1}"))
    return standalone.page(title, body)


def _joined(outputs: Any) -> list[Any]:
    """The outputs of a cell, with what it printed piece by piece in one; blank ones left out."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if output.output_type != "stream":
            joined.append(output)
        elif last is not None and (last.output_type, last.get("name")) == ("stream", output.name):
            last.text += output.text
        else:
            joined.append(output)
    return [o for o in joined if o.output_type != "stream" or o.text.strip()]


def _output(output: Any, place: str) -> str:
    if output.output_type == "stream":
        return f'<pre class="cell-out" tabindex="0">{ansi2html(_settled(output.text))}</pre>'
    if output.output_type == "error":
        trace = "\n".join(output.traceback) or f"{output.ename}: {output.evalue}"
        return f'<pre class="cell-out cell-bad" tabindex="0">{ansi2html(trace)}</pre>'
    data = output.data
    if PLOTLY_MIME in data and (drawn := _figure(data[PLOTLY_MIME], place)):
        return drawn
    if "text/html" in data:
        return f'<div class="cell-out" tabindex="0">{_clean(data["text/html"])}</div>'
    for kind in ("image/png", "image/jpeg"):
        # else it is no picture: what it is called stands below
        if BASE64.fullmatch(str(data.get(kind, "-"))):
            said = html.escape(data.get("text/plain", "a picture"), quote=True)
            source = html.escape(f"data:{kind};base64,{data[kind]}", quote=True)
            return f'<figure><img style="max-width:100%" alt="{said}" src="{source}"></figure>'
    text = data.get("text/markdown") or data.get("text/plain") or f"({', '.join(data)})"
    return f'<pre class="cell-out" tabindex="0">{html.escape(text)}</pre>'


def _figure(plain: Any, place: str) -> str:
    """A figure by plotly's rules, without what it could fetch; nothing where it keeps to none."""
    try:
        figure, left_out = kept.clean(plain, place)
    except RunFolderError:
        return ""
    if not figure.data:
        return ""
    note = f"Left out, for it could fetch from a network: {', '.join(left_out)}." * bool(left_out)
    return standalone.figure(figure, place, note=note)


def _settled(text: str) -> str:
    """What a terminal shows in the end: of lines written over each other the last."""
    return re.sub(r"[^\n]*\r(?=[^\n])", "", text.replace("\r\n", "\n"))


def _keep(tag: str, name: str, value: str) -> bool:
    # of functions only those of colours and lengths: none that names a picture
    harmless = name != "style" or "(" not in FUNCTIONS.sub("", value)
    return name in ATTRIBUTES.split() and harmless


def _clean(piece: str) -> str:
    """HTML that shows what it showed, and does nothing."""
    style = CSSSanitizer(allowed_css_properties=PROPERTIES.split())
    clean: str = bleach.clean(
        piece, tags=TAGS.split(), attributes=_keep, css_sanitizer=style, strip=True
    )
    return clean
