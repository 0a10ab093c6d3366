"""The notebook of spans and its explorer: what they show, checked against the run itself."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import papermill
import pytest
from papermill.engines import papermill_engines
from small_recipes import SPAN, write_recipe, write_text

import workbench
from workbench import demo, notebook, probe
from workbench.engine import WorkbenchEngine
from workbench.plots.style import shown
from workbench.train.folder import RunFolder
from workbench.widgets.spans import SpanExplorer

PLOTLY = "application/vnd.plotly.v1+json"


def trained(tmp_path: Path, **changes: Any) -> RunFolder:
    text = write_text(tmp_path / "text.txt")
    recipe = write_recipe(tmp_path / "tiny.yaml", text, {**SPAN, **changes})
    run = workbench.start(recipe, {"train.steps": 6}, out=tmp_path / "run")
    list(run)
    return run.folder


def executed(folder: RunFolder, out: Path, **values: Any) -> dict[str, dict[str, Any]]:
    """Runs the notebook as at night; gives the figures it kept."""
    papermill_engines.register("workbench", WorkbenchEngine)
    values = {"run": str(folder.path), "start": 100, "length": 24, **values}
    book = demo.BOOKS / "attention_span.ipynb"
    papermill.execute_notebook(book, out, values, engine_name="workbench", progress_bar=False)
    cells = nbformat.read(out, 4).cells
    outputs = [o.get("data", {}) for cell in cells for o in cell.get("outputs", [])]
    figures = [data[PLOTLY] for data in outputs if PLOTLY in data]
    files = sorted((folder.path / "figures").glob("*.json"))
    assert len(figures) == len(files)
    assert all(len(json.dumps(fig)) < 1_000_000 for fig in figures)
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def numbers(value: Any) -> np.ndarray:
    if isinstance(value, dict):
        flat = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        shape = value.get("shape", str(len(flat)))
        return flat.reshape([int(n) for n in str(shape).split(",")])
    return np.asarray(value, dtype=float)


def test_the_notebook_shows_what_the_run_learned(tmp_path: Path) -> None:
    folder = trained(tmp_path, persistent={"n_vectors": 6})
    kept = executed(folder, tmp_path / "out.ipynb")
    assert set(kept) == {
        *("span_heatmap", "head_mask", "attention_map", "span_bars", "span_over_training"),
        *("soft_mask", "context_used", "attention_by_distance", "span_costs"),
    }
    spans = folder.records("train")[-1]["readings"]["span"]
    assert numbers(kept["span_heatmap"]["data"][0]["customdata"]) == pytest.approx(
        np.array(spans), rel=1e-5
    )
    # the evolution ends with the same spans, and has a frame for each record
    grown = kept["span_over_training"]
    steps = [r["step"] for r in folder.records("train")]
    assert [int(f["name"]) for f in grown["frames"]] == steps
    ends = [z for heads in spans for z in sorted(heads)]
    assert numbers(grown["data"][-1]["y"]) == pytest.approx(ends, rel=1e-5)
    # FLOPs by hand: 8 wide, three products a key, two a persistent vector, two heads
    full, cut, needed = (numbers(t["y"]) * 1e6 for t in kept["span_costs"]["data"][:3])
    for layer, heads in enumerate(spans):
        keys = [min(32, math.ceil(z) + 4) for z in heads]
        assert needed[layer] == pytest.approx(2 * 8 * (3 * sum(keys) + 2 * 2 * 6), rel=1e-5)
        assert full[layer] == pytest.approx(2 * 8 * 2 * (3 * 32 + 2 * 6), rel=1e-5)
        assert cut[layer] == pytest.approx(full[layer], rel=1e-5), "a limit below one step"
    # 32 inputs of 16 floats, none of them trimmed
    assert numbers(kept["span_costs"]["data"][4]["y"]) * 1e3 == pytest.approx([2048.0] * 2)
    used = kept["context_used"]["data"]
    allowed = [numbers(t["y"]) for t in used if "allowed" in t.get("name", "")]
    assert np.concatenate(allowed).tolist() == [
        min(32, math.ceil(z) + 4) for heads in spans for z in heads
    ]
    shares = [numbers(t["y"]) for t in used if t.get("yaxis") == "y2"]
    model = folder.load_model()
    view = notebook.open_run(folder.path)
    text = probe.stretch(view.corpus.splits["valid"], 100, 24, before=model.reach() or 0)
    seen = probe.attention(view.model, text)
    for share, probs in zip(shares, seen.probs_LHTS, strict=True):
        assert share == pytest.approx(1 - probs.sum(-1).mean(-1), abs=1e-4)


def test_dynamic_spans_are_drawn_under_their_text(tmp_path: Path) -> None:
    folder = trained(tmp_path, span={"limit": 32, "ramp": 4, "initial": 0.3, "dynamic": True})
    kept = executed(folder, tmp_path / "out.ipynb", layer=2, head=1)
    under = kept["token_spans"]
    view = notebook.open_run(folder.path)
    text = probe.stretch(view.corpus.splits["valid"], 100, 24, before=view.model.reach() or 0)
    seen = probe.attention(view.model, text)
    assert numbers(under["data"][0]["z"]) == pytest.approx(np.concatenate(seen.spans_LHT), rel=1e-5)
    written = under["layout"]["xaxis"]["ticktext"]
    assert written == [shown(s) for s in notebook.symbols(view.corpus, text.tokens)]
    assert kept["attention_map"]["layout"]["title"]["text"].startswith("Layer 2, head 1 looks")


def test_a_model_without_spans_has_its_attention_shown(tmp_path: Path) -> None:
    positions = {"kind": "relative_sinusoid"}
    folder = trained(tmp_path, span=None, positions=positions, memory_start="empty")
    kept = executed(folder, tmp_path / "out.ipynb")
    assert set(kept) == {"attention_map", "context_used", "attention_by_distance"}
    assert "attends with a fixed span" in (tmp_path / "out.ipynb").read_text("utf-8")


@pytest.fixture
def explorer(tmp_path: Path) -> SpanExplorer:
    view = notebook.open_run(trained(tmp_path).path)
    text = probe.stretch(view.corpus.splits["valid"], 100, 24, before=64)
    panel = SpanExplorer(view, text, probe.attention(view.model, text), layer=1, head=1)
    panel.live()
    return panel


def drawn(fig: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in t.to_plotly_json().items() if k != "uid"} for t in fig.data]


def test_a_click_shows_the_mask_and_the_map_of_that_head(explorer: SpanExplorer) -> None:
    before = np.array(explorer.map.data[0].z)
    explorer.heads.clicked = {"trace": 0, "x": 2, "y": 2, "count": 1}
    assert explorer.chosen == (1, 1)
    assert (explorer.layer_picker.value, explorer.head_picker.value) == (1, 1)
    frame = explorer.heads.layout.shapes[0]
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (1.5, 2.5, 1.5, 2.5)
    assert not np.array_equal(before, explorer.map.data[0].z)
    # the figures on the page are those that would be drawn for this head from the start
    other = SpanExplorer(explorer.view, explorer.text, explorer.seen, layer=2, head=2)
    for shown_now, name in ((explorer.mask_widget, "head_mask"), (explorer.map, "attention_map")):
        still = other.stills()[name]
        np.testing.assert_equal(drawn(shown_now), drawn(still))
        assert shown_now.layout.title.text == still.layout.title.text
        assert shown_now.layout.xaxis.range == still.layout.xaxis.range
    explorer.head_picker.value = 0
    assert explorer.chosen == (1, 0) and explorer.tried is None
    assert explorer.z_slider.value == pytest.approx(explorer.spans[1][0], abs=0.25)
    explorer.layer_picker.value = 0
    assert explorer.chosen == (0, 0) and "Layer 1, head 1" in explorer.map.layout.title.text


def test_the_step_slider_shows_the_spans_of_that_step(explorer: SpanExplorer) -> None:
    rows = explorer.view.folder.records("train")
    assert [label for label, _ in explorer.step_slider.options] == [str(r["step"]) for r in rows]
    explorer.step_slider.value = 0
    then = np.array(rows[0]["readings"]["span"])
    assert np.asarray(explorer.heads.data[0].customdata) == pytest.approx(then, rel=1e-5)
    assert explorer.heads.layout.title.text.startswith(f"Step {rows[0]['step']}: layer")
    assert explorer.heads.figure.to_json() == explorer.heads_figure().to_json(), "as drawn anew"


def test_another_mask_is_drawn_and_scored(explorer: SpanExplorer) -> None:
    own = explorer.mask()
    explorer.z_slider.value = 20.0
    explorer.r_slider.value = 2
    assert explorer.tried == (20.0, 2)
    assert explorer.mask_widget.figure.to_json() == explorer.mask_figure().to_json()
    tried = explorer.mask_widget.data[2]
    assert tried.visible is True and tried.name == "tried mask: z = 20.0, R = 2"
    weight = np.interp([20, 21, 22, 23], tried.x, tried.y)
    assert weight == pytest.approx([1, 1, 0.5, 0])
    nats = probe.loss_with_span(explorer.view.model, explorer.text, 0, 0, 20.0, 2)
    assert f"<b>{nats / math.log(2):.4f}</b> bits per character" in explorer.loss.value
    assert explorer.mask() == own, "what was learned must stay"
    explorer.choose(1, 0)
    assert explorer.tried is None and explorer.mask_widget.data[2].visible == "legendonly"
