"""Everything that a run folder shows, as files for other programs: pictures, numbers, a page.

    export.run("runs/mine", formats=("csv", "png"))     # what `workbench export` does
    export.figure(fig, "span.svg")                      # one figure; the name's ending decides

Pictures carry their description as alternative text. Numbers are those of the figures and records
themselves, not of what a picture shows of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import csv
import html
import io
import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly
import plotly.graph_objects as go

from workbench import kept, report
from workbench.errors import ConfigError, DataMissing
from workbench.plots import standalone
from workbench.plots.passages import Passage
from workbench.plots.style import WIDTH, Theme, dress
from workbench.plots.table import Table, alt, flat, table, words
from workbench.train import storage
from workbench.train.folder import RunFolder

FORMATS = ("html", "png", "svg", "csv", "parquet")
PICTURES, NUMBERS = ("png", "svg"), ("csv", "parquet")
SCALE = 2.0
"""dots of a PNG for each pixel of the figure: sharp in print"""
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""what makes a spreadsheet take a text for a formula"""


def figure(fig: go.Figure, path: str | Path, theme: Theme | None = None) -> Path:
    """Write a figure in the format that the name ends with, one of `FORMATS` or `json`.

    Args:
        fig: the figure.
        path: of the file; replaced if it is there.
        theme: `light` or `dark`; None: as the figure is.

    Raises:
        ConfigError: another ending, or what writes this format is not installed.
    """
    file, kind = Path(path), Path(path).suffix.lstrip(".").lower()
    shown = go.Figure(fig) if theme is None else dress(go.Figure(fig), theme)
    if kind in PICTURES:
        (data,) = pictures([shown], kind)
    elif kind == "html":
        title = words(fig.layout.title.text) or file.stem
        data = standalone.page(title, [standalone.figure(shown, "figure")]).encode()
    elif kind == "json":
        data = shown.to_json().encode()
    elif kind in NUMBERS:
        return numbers(table(fig), file)
    else:
        known = ", ".join([*FORMATS, "json"])
        raise ConfigError(f"{file}: no format is called {kind!r}; end the name with one of {known}")
    return _write(file, data)


def pictures(figures: Sequence[go.Figure], kind: str) -> list[bytes]:
    """Figures as PNG or SVG with alternative text, drawn by one Chromium without a network.

    Raises:
        ConfigError: kaleido is not installed, or finds no Chromium.
    """
    try:
        import kaleido
        from choreographer.errors import BrowserFailedError, ChromeNotFoundError
    except ImportError:
        raise ConfigError(
            f"{kind.upper()} is drawn by kaleido, which is not installed. Run "
            "pip install 'workbench[images]'; html and csv need nothing more"
        ) from None

    async def draw() -> list[bytes]:
        source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
        async with kaleido.Kaleido(mathjax=False, plotlyjs=source) as browser:
            return [
                await browser.calc_fig(fig.to_plotly_json(), opts=_size(fig, kind))
                for fig in figures
            ]

    try:
        # in a thread of its own: in a notebook this one has a loop already
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            drawn = pool.submit(lambda: asyncio.run(draw())).result()
    except (ChromeNotFoundError, BrowserFailedError) as error:
        raise ConfigError(
            f"{kind.upper()} is drawn by a Chromium, and none could be started ({error}). Install "
            "one (Debian: apt install chromium) or name it: BROWSER_PATH=/path/to/chrome. "
            "html and csv need none"
        ) from None
    add = described_svg if kind == "svg" else described_png
    titles = [words(fig.layout.title.text) for fig in figures]
    return [add(d, t, alt(f)) for d, t, f in zip(drawn, titles, figures, strict=True)]


def _size(fig: go.Figure, kind: str) -> dict[str, Any]:
    width, height = fig.layout.width or WIDTH, fig.layout.height or 450
    return {
        "format": kind,
        "width": width,
        "height": height,
        "scale": SCALE if kind == "png" else 1,
    }


def described_svg(svg: bytes, title: str, text: str) -> bytes:
    """An SVG with `title` and `desc`, which screen readers read."""
    head = re.search(rb"<svg\b[^>]*>", svg)
    assert head is not None, "kaleido writes an svg element"
    inside = f"<title>{html.escape(title)}</title><desc>{html.escape(text)}</desc>".encode()
    opened = head[0][:-1] + b' role="img">'
    return svg[: head.start()] + opened + inside + svg[head.end() :]


def described_png(png: bytes, title: str, text: str) -> bytes:
    """A PNG with the texts `Title` and `Description`, in UTF-8 (iTXt, PNG 1.2, section 4.2.3.3)."""
    chunks = b"".join(
        _chunk(b"iTXt", name + b"\0\0\0\0\0" + value.encode())
        for name, value in ((b"Title", title), (b"Description", text))
    )
    # behind the signature and the header, which has a fixed size
    at = 8 + 12 + 13
    return png[:at] + chunks + png[at:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def numbers(columns: Table, path: str | Path) -> Path:
    """Write a table as CSV or Parquet, by the ending of the name.

    Raises:
        ConfigError: another ending, or pyarrow is not installed.
    """
    file = Path(path)
    if file.suffix == ".csv":
        return _write(file, csv_text(columns).encode())
    if file.suffix != ".parquet":
        raise ConfigError(f"{file}: expected a name that ends with .csv or .parquet")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"{file.name} is written by pyarrow, which is not installed. Run "
            "pip install 'workbench[parquet]'; csv needs nothing more"
        ) from None
    data = io.BytesIO()
    arrays = {name: pyarrow.array(_column(values)) for name, values in columns.items()}
    parquet.write_table(pyarrow.table(arrays), data)
    return _write(file, data.getvalue())


def _column(values: Sequence[Any]) -> list[Any]:
    """Values of one type, as Parquet wants them: text where they are of several."""
    plain = [v.item() if isinstance(v, np.generic) else v for v in values]
    kinds = {type(v) for v in plain if v is not None}
    if kinds <= {int, float} or len(kinds) <= 1:
        return [float(v) if v is not None and kinds == {int, float} else v for v in plain]
    return [v if v is None else str(v) for v in plain]


def csv_text(columns: Table) -> str:
    """A table as CSV (RFC 4180); None and NaN are empty cells.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; numbers, also
    negative ones, stay as they are and read back as they were.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow([_cell(name) for name in columns])
    for row in zip(*columns.values(), strict=True):
        writer.writerow([_cell(value) for value in row])
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULAS) else value
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return ""
    # of numpy's numbers the shortest text that reads back as the same number
    return str(value)


def long(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as columns; what a row lacks is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def records_table(folder: RunFolder) -> Table:
    """All records of a run, a row each; nested values by dotted path (`readings.span.0.3`).

    Raises:
        RunFolderError: a line is no record.
    """
    return long([{n: v for n, v in flat(row).items() if v != {}} for row in kept.records(folder)])


def evaluation_table(folder: RunFolder) -> Table:
    """What `evaluate.ipynb` measured: `part` says of what a row tells, `name` of which.

    Raises:
        RunFolderError: it is no evaluation.
    """
    rows: list[dict[str, Any]] = [{}]
    for part, found in kept.evaluation(folder).items():
        if isinstance(found, dict):
            for name, own in found.items():
                inside = flat(own) if isinstance(own, dict) else {"value": own}
                rows.append({"part": part, "name": name, **inside})
        elif isinstance(found, list):
            for i, own in enumerate(found, 1):
                inside = flat(own) if isinstance(own, dict) else {"value": own}
                rows.append({"part": part, "name": str(i), **inside})
        else:
            rows[0][part] = found
    return long([{"part": "run", "name": rows[0].get("recipe"), **rows[0]}, *rows[1:]])


def passages_table(passages: Sequence[Passage]) -> Table:
    """Tokens of passages, a row each: passage, position in it, symbol, bits, tip."""
    return long(
        [
            {
                "passage": p.title,
                "position": i,
                "symbol": symbol,
                "bits": None if p.values is None else p.values[i],
                "tip": None if p.tips is None else p.tips[i],
            }
            for p in passages
            for i, symbol in enumerate(p.symbols)
        ]
    )


def run(
    folder: str | Path | RunFolder,
    to: str | Path | None = None,
    formats: Sequence[str] = ("html", "csv"),
    theme: Theme | None = None,
) -> list[Path]:
    """Write what a run folder shows: `report.html`, `records` and `evaluation` as numbers, and
    each figure in `figures/` as pictures and numbers.

    Args:
        folder: of the run.
        to: where to; None: `exports` in the run folder.
        formats: of `FORMATS`.
        theme: of pictures; None: `style.theme()`.

    Returns:
        the files, in the order of writing.

    Raises:
        DataMissing: there is no run.
        ConfigError: an unknown format, or what writes it is not installed.
        RunFolderError: records or evaluation are not what they should be.
    """
    source = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    if odd := [kind for kind in formats if kind not in FORMATS]:
        raise ConfigError(f"formats: got {odd[0]!r}, expected some of {', '.join(FORMATS)}")
    if not source.exists():
        raise DataMissing(f"{source.path} is no run folder; give the folder that holds recipe.yaml")
    target = source.path / "exports" if to is None else Path(to).expanduser()
    written = []
    if "html" in formats:
        target.mkdir(parents=True, exist_ok=True)
        written.append(report.build(target / "report.html", [source]))
    found = report.figures(source)
    for kind in (k for k in NUMBERS if k in formats):
        tables = {"records": records_table(source), "evaluation": evaluation_table(source)}
        tables |= {f"figures/{k.name}": t for k in found if (t := _numbers_of(k))}
        written += [numbers(t, target / f"{name}.{kind}") for name, t in tables.items() if t]
    drawn = {k.name: k.figure for k in found if k.figure is not None}
    for kind in (k for k in PICTURES if k in formats and drawn):
        shown = [dress(fig, theme) for fig in drawn.values()]
        for name, data in zip(drawn, pictures(shown, kind), strict=True):
            written.append(_write(target / "figures" / f"{name}.{kind}", data))
    return written


def _numbers_of(found: kept.Kept) -> Table:
    if found.figure is not None:
        return table(found.figure)
    return passages_table(found.passages)


def _write(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.replace(file, data, durable=False)
    return file
