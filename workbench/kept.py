"""What a run folder holds, read as data: the folder may come from anybody.

Nothing of it is run or put into a page as HTML. Figures are built anew by plotly's own checks,
after everything that could fetch from a network, or lead there, has been taken out; texts are
tokens and values. What is not as expected is refused by a message that names the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from workbench.errors import RunFolderError
from workbench.plots.passages import KIND, Passage
from workbench.plots.style import dress
from workbench.plots.table import decode
from workbench.train.folder import RECORDS, STATUS, RunFolder

EVALUATION = "evaluation.json"
"""what `notebooks/evaluate.ipynb` leaves in the run folder"""
LIMIT_BYTES = 8_000_000
"""of one file; what our notebooks keep is below 1 MB"""
MAX_HEIGHT = 3000
"""of a figure, in pixels"""
TRACES = {
    *("bar", "box", "contour", "heatmap", "histogram", "histogram2d", "parcats", "parcoords"),
    *("pie", "scatter", "scatter3d", "scattergl", "surface", "table", "violin", "waterfall"),
}
"""kinds of traces that draw what they are given, and fetch nothing"""
FETCHING = {
    *("images", "source", "geojson", "geo", "map", "mapbox", "topojson", "template", "config"),
}
"""names of properties that could; a template brings all of them along, and ours replaces it"""
FETCHING_TRACES = {
    *("choropleth", "choroplethmap", "choroplethmapbox", "densitymap", "densitymapbox", "image"),
    *("scattergeo", "scattermap", "scattermapbox"),
}
TAGS = {"b", "br", "em", "extra", "i", "s", "span", "strong", "sub", "sup", "u"}
"""of plotly's own markup; its links are left out"""
Number = float | None
"""null stands for what is not finite"""


class _Told(BaseModel):
    """What is written here must be so; whatever else is there may stay."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Row(_Told):
    kind: str
    step: int
    tokens: int = 0
    split: str = ""
    loss_nats: Number = None
    penalties: dict[str, Number] = {}
    lr: Number = None
    grad_norm: Number = None
    param_norm: Number = None
    tokens_per_s: Number = None
    elapsed_s: Number = None
    memory_bytes: int = 0
    peak_bytes: int | None = None
    processes: int = 1
    readings: dict[str, list[list[Number]]] = {}
    backends: dict[str, str] = {}


class _Score(_Told):
    loss_nats: float
    tokens: int
    method: str
    context_len: int | None
    bytes_per_token: float | None = None
    reach: int | None = None


class _Evaluation(_Told):
    recipe: str
    n_parameters: int
    unit: str = ""
    comparable: str = ""
    splits: dict[str, _Score]
    baselines_bits: dict[str, float]
    by_context: list[dict[str, Any]] = []


class _Manifest(_Told):
    vocab_size: int


class _Status(_Told):
    state: str = ""
    step: int = 0
    steps: int = 0
    message: str = ""


_PASSAGES = TypeAdapter(list[Passage])


def records(folder: RunFolder, kind: str | None = None) -> list[dict[str, Any]]:
    """The records of a run, oldest first, each with numbers where numbers belong.

    Args:
        folder: the run.
        kind: only those of one kind: "train", "eval", "checkpoint" or "done".

    Raises:
        RunFolderError: a line is no record.
    """
    file = folder.path / RECORDS
    try:
        rows = folder.records()
    except RecursionError:
        raise RunFolderError(f"{file}: a line is nested too deeply for a record") from None
    for i, row in enumerate(rows, 1):
        _check(_Row, row, f"{file}: line {i}")
    return [row for row in rows if kind is None or row["kind"] == kind]


def is_record(row: object) -> bool:
    """Whether plain data is a record, with numbers where numbers belong."""
    try:
        _Row.model_validate(row)
    except ValidationError:
        return False
    return True


def status(folder: RunFolder) -> dict[str, Any]:
    """The state of a run; {} before it began.

    Raises:
        RunFolderError: it is no state.
    """
    found = folder.status()
    _check(_Status, found, str(folder.path / STATUS))
    return found


def evaluation(folder: RunFolder) -> dict[str, Any]:
    """What `notebooks/evaluate.ipynb` measured; {} before it has run.

    Raises:
        RunFolderError: it is no evaluation.
    """
    file = folder.path / EVALUATION
    if not file.is_file():
        return {}
    found: dict[str, Any] = _scrub_text(_json(file))
    _check(_Evaluation, found, str(file))
    return found


def manifest(file: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; its sums are for who loads it.

    Raises:
        RunFolderError: it is no manifest.
    """
    found: dict[str, Any] = _json(file)
    _check(_Manifest, found, str(file))
    return found


def _check(kind: type[_Told], found: Any, where: str) -> None:
    try:
        kind.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise RunFolderError(
            f"{where}: {at or 'it'}: {first['msg']}, got {first['input']!r:.80}. Was it written by "
            "another program?"
        ) from None


@dataclass(frozen=True)
class Kept:
    """A figure or passages that a notebook kept, or why they are not shown."""

    name: str
    figure: go.Figure | None = None
    passages: Sequence[Passage] = ()
    note: str = ""
    """what was left out, and why"""


def kept(folder: RunFolder) -> list[Kept]:
    """Everything in a run folder's `figures/`, by name; what is unreadable tells why."""
    found = []
    for file in sorted((folder.path / "figures").glob("*")):
        if file.suffix == ".html":
            note = "a page of an earlier version, which could run anything; run the notebook again"
            found.append(Kept(file.stem, note=f"{file.name} is not shown: {note}."))
        elif file.suffix == ".json":
            try:
                found.append(read(file))
            except RunFolderError as error:
                found.append(Kept(file.stem, note=f"{file.name} is not shown: {error}"))
    return found


def read(file: Path) -> Kept:
    """One file of `figures/`.

    Raises:
        RunFolderError: it is neither a figure nor passages.
    """
    found = _json(file)
    if isinstance(found, dict) and found.get("kind") == KIND:
        try:
            passages = _PASSAGES.validate_python(_scrub_text(found.get("passages")), strict=False)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise RunFolderError(f"{file}: {first['loc']}: {first['msg']}") from None
        for p in passages:
            if any(x is not None and len(x) != len(p.symbols) for x in (p.values, p.tips)):
                raise RunFolderError(f"{file}: not as many values or tips as tokens")
        return Kept(file.stem, passages=passages)
    figure, left_out = clean(found, str(file))
    note = f"Left out, for it could fetch from a network: {', '.join(left_out)}." * bool(left_out)
    return Kept(file.stem, figure, note=note)


def _json(file: Path) -> Any:
    if not file.is_file():
        raise RunFolderError(f"{file} is no file")
    if (size := file.stat().st_size) > LIMIT_BYTES:
        raise RunFolderError(f"{file} has {size:,} bytes, expected at most {LIMIT_BYTES:,}")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{file} is no JSON: {error}") from None


def clean(plain: Any, where: str) -> tuple[go.Figure, list[str]]:
    """A figure from plain data that is not trusted, in the theme of today.

    Args:
        plain: as plotly's `to_json` writes it.
        where: of what error messages speak.

    Returns:
        the figure, and what was left out.

    Raises:
        RunFolderError: plotly does not take it for a figure.
    """
    if not isinstance(plain, dict) or not isinstance(plain.get("data"), list):
        raise RunFolderError(f"{where}: expected a figure with data and layout, or passages")
    left_out: list[str] = []
    parts = {name: plain.get(name) for name in ("data", "layout", "frames")}
    try:
        scrubbed = _scrub(parts, left_out)
        scrubbed["data"] = _known(scrubbed["data"], left_out)
        for frame in scrubbed["frames"] or []:
            frame["data"] = _known(frame.get("data", []), left_out)
        figure = go.Figure(scrubbed["data"], scrubbed["layout"] or {}, scrubbed["frames"] or [])
        # a list of bytes that is none would be found by the browser only
        _decode_all(figure.to_plotly_json())
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        told = " ".join(str(error).split())[:160]
        raise RunFolderError(f"{where}: plotly refuses it: {told}") from None
    if (figure.layout.height or 0) > MAX_HEIGHT:
        figure.layout.height = MAX_HEIGHT
    return dress(figure), sorted(set(left_out))


def _known(traces: Any, left_out: list[str]) -> list[Any]:
    if not isinstance(traces, list) or not all(isinstance(t, dict) for t in traces):
        raise ValueError("data: expected a list of traces")
    left_out += [f"{k!s:.40}" for t in traces if (k := t.get("type", "scatter")) not in TRACES]
    return [t for t in traces if t.get("type", "scatter") in TRACES]


def _scrub(value: Any, left_out: list[str]) -> Any:
    """Nested plain data without properties that fetch, and with plain text in place of links."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, list):
        return [_scrub(x, left_out) for x in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, inner in value.items():
        if _fetches(name) or (name in ("args", "args2") and _sets_fetching(inner)):
            left_out += [] if name == "template" else [f"{name:.40}"]
        else:
            found[name] = _scrub(inner, left_out)
    return found


def _fetches(name: str) -> bool:
    """Whether a property could; a slider may name one by its path, such as `images[0].source`."""
    return any(re.sub(r"\d+$", "", word) in FETCHING for word in re.split(r"[.\[\]]", name))


def _sets_fetching(args: Any) -> bool:
    """Whether what a slider or button sets names a property or a kind of trace that could."""
    if isinstance(args, str):
        return _fetches(args) or args in FETCHING_TRACES
    inside = args.values() if isinstance(args, dict) else args if isinstance(args, list) else ()
    return any(map(_sets_fetching, inside))


def harmless(text: str) -> str:
    """Text in plotly's markup, without links and styles: whatever else is a tag shows as text."""
    return re.sub(r"<[^<>]*>", _tag, whole(text)) if "<" in text else whole(text)


def _tag(found: re.Match[str]) -> str:
    if re.fullmatch(r"<span style=[\"']color: ?#[0-9a-fA-F]{3,8};?[\"']>", found[0]):
        return found[0]
    parts = re.fullmatch(r"<(/?)([a-zA-Z]+)[\s/]*>", found[0])
    if parts is None or parts[2].lower() not in TAGS:
        return "&lt;" + found[0][1:]
    return f"<{parts[1]}{parts[2].lower()}>"


def whole(text: str) -> str:
    """Text without halves of UTF-16 pairs, which no file in UTF-8 can hold."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _scrub_text(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list):
        return [_scrub_text(x) for x in value]
    if isinstance(value, dict):
        return {whole(name): _scrub_text(x) for name, x in value.items()}
    return value


def _decode_all(value: Any) -> None:
    if isinstance(value, Mapping):
        if "bdata" in value:
            decode(value)
        else:
            for inner in value.values():
                _decode_all(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _decode_all(inner)
