"""Exports: the numbers are those of the source, pictures carry words, nothing is a formula."""

from __future__ import annotations

import builtins
import csv
import io
import json
import os
import re
import shutil
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots
from tiny_run import recipe, write_text

import workbench
from workbench import cli, export, kept
from workbench.errors import ConfigError, DataMissing
from workbench.plots import spans
from workbench.plots.style import finish
from workbench.plots.table import alt, table
from workbench.train.folder import RunFolder

rng = np.random.default_rng(1)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("exported")
    list(workbench.start(recipe(write_text(path / "t.txt"), steps=8), out=path / "run"))
    figures = path / "run" / "figures"
    figures.mkdir()
    (figures / "span_bars.json").write_text(spans.span_bars([[3.0, 5.0], [4.0, 20.0]]).to_json())
    return RunFolder(path / "run")


def line(title: str = "It falls") -> go.Figure:
    fig = go.Figure()
    x, y = np.arange(4, dtype=np.float32), np.array([0.1, -2.5, np.nan, 1e-7], np.float32)
    fig.add_scatter(x=x, y=y, name="a &lt;b&gt;", error_y={"array": [1.0, 2.0, 3.0, 4.0]})
    return finish(fig, title, "lower is better", x="update (step)", y="loss (nats)")


def read_back(columns: dict[str, list[Any]]) -> list[list[str]]:
    return list(csv.reader(io.StringIO(export.csv_text(columns), newline="")))


def test_a_line_as_numbers() -> None:
    columns = table(line())
    assert list(columns) == [
        *("trace", "name", "update (step)", "loss (nats)", "loss (nats), error")
    ]
    assert columns["name"] == ["a <b>"] * 4 and columns["update (step)"] == [0, 1, 2, 3]
    source = np.array([0.1, -2.5, np.nan, 1e-7], np.float32)
    rows = read_back(columns)[1:]
    found = np.array([row[3] or "nan" for row in rows], np.float32)
    np.testing.assert_array_equal(found, source)  # bit for bit, and -2.5 is no formula
    assert [row[4] for row in rows] == ["1.0", "2.0", "3.0", "4.0"]


def test_a_map_as_numbers() -> None:
    z = rng.normal(size=(3, 5)).astype(np.float32)
    fig = go.Figure(go.Heatmap(z=z, x=list("abcde"), colorbar={"title": {"text": "weight"}}))
    finish(fig, "t", x="key (tokens)", y="query (tokens)")
    columns = table(go.Figure(json.loads(fig.to_json())))
    assert list(columns)[2:] == ["key (tokens)", "query (tokens)", "weight"]
    at = {(x, y): v for x, y, v in zip(*list(columns.values())[2:], strict=True)}
    for row in range(3):
        for column, letter in enumerate("abcde"):
            assert at[letter, row] == z[row, column]


def test_panels_have_columns_of_their_own() -> None:
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True)
    fig.add_scatter(x=[1, 2], y=[3.0, 4.0], row=1, col=1)
    fig.add_bar(x=[1, 2], y=[5.0, 6.0], row=2, col=1)
    finish(fig, "t")
    fig.update_yaxes(title_text="loss", row=1, col=1)
    fig.update_yaxes(title_text="loss", row=2, col=1)
    fig.update_xaxes(title_text="step", row=2, col=1)
    columns = table(fig)
    assert columns == {
        "trace": [1, 1, 2, 2],
        "name": [""] * 4,
        "step": [1, 2, 1, 2],
        "loss": [3.0, 4.0, 5.0, 6.0],
    }


def test_parallel_axes_frames_and_points_without_positions() -> None:
    named = {"tickvals": [0, 1], "ticktext": ["sum", "delta"]}
    fig = go.Figure(
        go.Parcoords(
            dimensions=[
                {"label": "lr", "values": [0.1, 0.2]},
                {"label": "rule", "values": [0, 1], **named},
            ]
        )
    )
    assert table(fig)["rule"] == ["sum", "delta"] and table(fig)["lr"] == [0.1, 0.2]
    fig = go.Figure(go.Scatter(y=[5, 6]), frames=[{"name": "later", "data": [{"y": [7, 8]}]}])
    columns = table(fig)
    assert columns["x"] == [0, 1, 0, 1] and columns["y"] == [5, 6, 7, 8]
    assert columns["frame"] == [None, None, "later", "later"]


def test_the_description_tells_title_and_ranges() -> None:
    told = alt(line())
    assert told.startswith("It falls. lower is better. a <b>: 4 points, update (step) from 0 to 3")
    assert "loss (nats) from -2.5 to 0.1" in told
    many = go.Figure([go.Scatter(y=[i]) for i in range(9)])
    assert alt(many).endswith("And 3 more.")


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=cmd|"/c calc"!A0']
)
def test_no_text_is_a_formula(text: str) -> None:
    head, row = read_back({text: [text], "number": [-1.5]})
    assert head[0] == row[0] == f"'{text}" and row[1] == "-1.5"


def test_records_and_evaluation_as_numbers(folder: RunFolder) -> None:
    head, *rows = read_back(export.records_table(folder))
    records = folder.records()
    assert len(rows) == len(records) > 5
    for row, record in zip(rows, records, strict=True):
        told = dict(zip(head, row, strict=True))
        assert told["kind"] == record["kind"] and int(told["step"]) == record["step"]
        for name in ("loss_nats", "tokens_per_s"):
            assert (float(told[name]) if told[name] else None) == record.get(name)
        if record["kind"] == "train":
            assert float(told["readings.span.0.1"]) == record["readings"]["span"][0][1]
    score = {"loss_nats": 1.25, "tokens": 9, "method": "carried", "context_len": None}
    result = {"recipe": "r", "n_parameters": 3, "splits": {"test": score}}
    result |= {"baselines_bits": {"gzip": 2.5}, "by_context": [{"context": 4, "bits": 3.0}]}
    (folder.path / kept.EVALUATION).write_text(json.dumps(result))
    columns = export.evaluation_table(folder)
    assert columns["part"] == ["run", "splits", "baselines_bits", "by_context"]
    assert columns["name"] == ["r", "test", "gzip", "1"]
    assert columns["loss_nats"][1] == 1.25 and columns["value"][2] == 2.5
    assert columns["bits"][3] == 3.0 and columns["n_parameters"][0] == 3


def test_parquet_reads_back(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'workbench[parquet]'")
    source = {"a": [1, 2.5, None], "b": ["=x", None, "y"], "c": [1, "two", 3.0]}
    source |= {"d": list(np.array([1, 2, 3], np.float32)), "e": [None] * 3, "f": [1, 2, None]}
    found = parquet.read_table(export.numbers(source, tmp_path / "t.parquet")).to_pydict()
    assert found["a"] == [1.0, 2.5, None] and found["b"] == source["b"]
    assert found["c"] == ["1", "two", "3.0"] and found["d"] == [1.0, 2.0, 3.0]
    assert found["e"] == source["e"] and found["f"] == [1, 2, None]


def test_the_command_writes_pages_and_numbers(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(folder.path), "--to", str(tmp_path / "e")]) == 0
    told = capsys.readouterr().out.splitlines()
    written = [Path(row.removeprefix("written: ")) for row in told]
    names = {str(p.relative_to(tmp_path / "e")) for p in written}
    assert names >= {"report.html", "records.csv", "figures/span_bars.csv"}
    assert all(p.stat().st_size for p in written)
    text = (tmp_path / "e" / "figures" / "span_bars.csv").read_text("utf-8")
    bars = list(csv.DictReader(io.StringIO(text)))
    assert sorted(float(row["span (tokens)"]) for row in bars) == [3.0, 4.0, 5.0, 20.0]
    page = tmp_path / "both.html"
    assert cli.main(["report", str(folder.path), str(folder.path), "--out", str(page)]) == 0
    assert page.read_text("utf-8").count("data-figure=") == 2
    assert cli.main(["report", str(tmp_path), "--out", str(page)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    with pytest.raises(DataMissing):
        export.run(tmp_path)
    with pytest.raises(ConfigError, match="formats: got 'pdf'"):
        export.run(folder, formats=["pdf"])
    with pytest.raises(ConfigError, match=r"no format is called 'gif'"):
        export.figure(line(), tmp_path / "a.gif")


@pytest.mark.parametrize(("kind", "library"), [("png", "kaleido"), ("parquet", "pyarrow")])
def test_what_is_missing_is_named(
    kind: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    extra = {"png": "images", "parquet": "parquet"}[kind]
    with pytest.raises(ConfigError, match=rf"{library}, which is not .*workbench\[{extra}\]"):
        export.figure(line(), tmp_path / f"a.{kind}")


def test_a_missing_chromium_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido", reason="pip install 'workbench[images]'")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    with pytest.raises(ConfigError, match="apt install chromium"):
        export.figure(line(), tmp_path / "a.svg")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_pictures_carry_their_description(tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="pip install 'workbench[images]'")
    fig = line("1 < 2 & it falls ∑")
    svg = export.figure(fig, tmp_path / "a.svg", theme="dark").read_text("utf-8")
    root = ET.fromstring(svg)
    assert root.get("role") == "img" and root.get("width") == "860"
    found = {re.sub(r"{.*}", "", e.tag): e.text for e in root if e.text}
    assert found["title"] == "1 < 2 & it falls ∑" and found["desc"] == alt(fig)
    assert "rgb(17, 17, 17)" in svg  # the dark page
    png = export.figure(fig, tmp_path / "a.png", theme="light").read_bytes()
    texts, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        if kind == b"iTXt":
            name, _, value = data.partition(b"\0\0\0\0\0")
            texts[name.decode()] = value.decode()
        if kind == b"IHDR":
            assert struct.unpack(">II", data[:8]) == (1720, 800)
        at += size + 12
    assert texts == {"Title": "1 < 2 & it falls ∑", "Description": alt(fig)}
    assert not [name for name in os.listdir(tmp_path) if name.endswith("partial")]
