"""The fast-weight laboratory: its pictures hold the right numbers, and change only where asked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import nbformat
import numpy as np
import papermill
import plotly.graph_objects as go
import pytest
import torch
from small_recipes import DELTA, write_recipe, write_text

import workbench
from workbench import demo, fast_weight_measures, fast_weight_probe, inspect, notebook, probe
from workbench.plots import feature_maps, laboratory
from workbench.widgets.fast_weights import VIEWS, Laboratory
from workbench.widgets.plot import Plot

LENGTH = 24


@pytest.fixture
def run(tmp_path: Path) -> workbench.Run:
    recipe = write_recipe(tmp_path / "d.yaml", write_text(tmp_path / "d.txt"), DELTA)
    run = workbench.start(recipe, {"train.steps": 4}, out=tmp_path / "run")
    list(run)
    run.model.eval()
    return run


@pytest.fixture
def lab(run: workbench.Run) -> Laboratory:
    text = probe.stretch(run.corpus.splits["valid"], 100, LENGTH, before=16)
    layers = fast_weight_probe.layers(run.model, text)
    symbols = notebook.symbols(run.corpus, text.tokens)
    return Laboratory(layers, symbols, [0, 1], layer=1, head=1, token=5)


def plain(fig: go.Figure | Plot) -> dict[str, Any]:
    """A figure as a browser gets it, without the names that plotly gives to traces."""
    found: dict[str, Any] = json.loads((fig.figure if isinstance(fig, Plot) else fig).to_json())
    for trace in found["data"]:
        trace.pop("uid", None)
    return found


def of_kind(box: ipywidgets.Widget, kind: type) -> Iterator[Any]:
    for child in getattr(box, "children", ()):
        if isinstance(child, kind):
            yield child
        yield from of_kind(child, kind)


def test_every_picture_is_small_and_says_what_it_found(lab: Laboratory) -> None:
    stills = lab.stills()
    assert list(stills) == list(VIEWS)
    for name, fig in stills.items():
        assert len(fig.to_json()) < 300_000, name
        assert fig.layout.title.text and fig.layout.meta["caption"], name
    told = {name: fig.layout.title.text for name, fig in stills.items()}
    assert f"After token {LENGTH} the key of" in told["laboratory"]
    assert told["capacity"].startswith("Layer 2, head 2 uses")
    life = lab.look.life
    (rank,) = fast_weight_measures.effective_rank(life.W_TFV[-1:])
    assert f"uses {rank:.1f} of 8 directions ({rank / 8:.0%})" in told["capacity"]


def test_the_picture_of_a_moment_holds_what_the_key_reads(lab: Laboratory) -> None:
    lab.t, token = 9, 5
    matrix, likeness, own_stem, share, own_share, before, _, own = lab.figure("laboratory").data
    top = slice(laboratory.STEM - 2, None, laboratory.STEM)
    heights, shares = np.asarray(likeness.y)[top], np.asarray(share.y)[top]
    look = lab.look
    inputs = lab.layers[1].inputs
    W_FV = inspect.trajectory(inputs, 0, 1).W_TFV[9]
    assert np.asarray(matrix.z) == pytest.approx(W_FV.numpy(), rel=1e-5)
    read_V = inputs.k_BTHF[0, token, 1] @ W_FV
    for s in range(LENGTH):
        value_V = inputs.v_BTHV[0, s, 1]
        expected = float(torch.cosine_similarity(read_V, value_V, dim=0)) if s <= 9 else np.nan
        height = own_stem.y[top][0] if s == token else heights[s]
        assert height == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert np.isnan(heights[token]) and np.isnan(shares[token])
    parts = (shares, own_share.y[top], before.y[top])
    assert sum(np.nansum(part) for part in parts) == pytest.approx(100, abs=0.1)
    told = inspect.read_back(inspect.trajectory(inputs, 0, 1), inputs, 0, 1, token)
    assert np.asarray(own.y) == pytest.approx(told.numpy(), abs=1e-4)
    assert (own_stem.line.color, own_stem.x[0]) == (laboratory.OWN, token + 1)
    assert look is lab.look, "computed once"


def test_side_by_side_shows_both_rules_under_each_map(lab: Laboratory) -> None:
    fig = lab.figure("feature_maps")
    heats = [t for t in fig.data if t.type == "heatmap"]
    lines = [t for t in fig.data if t.type == "scatter"]
    assert len(heats) == len(lines) == 6
    # elu is the model's own: its delta matrix is that of an empty memory
    inputs = lab.layers[1].inputs
    k, v = (x[0, :, 1] for x in (inputs.k_BTHF, inputs.v_BTHV))
    expected = feature_maps.scaled((k.T @ v).numpy())
    assert np.asarray(heats[1].z) == pytest.approx(expected, abs=1)
    assert "learned its keys with ELU + 1 and the delta rule" in fig.layout.title.subtitle.text
    grams = lab.figure("interference").data
    unit = torch.nn.functional.normalize(k, dim=-1)
    assert np.asarray(grams[0].z) == pytest.approx(100 * (unit @ unit.T).numpy(), abs=0.6)


def test_the_page_is_what_would_be_drawn_anew(lab: Laboratory) -> None:
    page = lab.live()
    (time,) = of_kind(page, ipywidgets.IntSlider)
    (views,) = of_kind(page, ipywidgets.ToggleButtons)
    layer, head = of_kind(page, ipywidgets.Dropdown)
    (fig,) = of_kind(page, Plot)
    for change in (
        lambda: setattr(time, "value", 7),
        lambda: setattr(lab._strip, "selected", 11),
        lambda: setattr(head, "value", 0),
        lambda: setattr(layer, "value", 0),
    ):
        change()
        assert plain(fig)["data"] == plain(lab.figure("laboratory"))["data"]
        assert fig.layout.title == lab.figure("laboratory").layout.title
        assert fig.layout.shapes == lab.figure("laboratory").layout.shapes
    assert (lab.layer, lab.head, lab.token, lab.t) == (0, 0, 11, 6)
    for name in list(VIEWS)[1:]:
        views.value = name
        time.value, lab._strip.selected, head.value = 20, 3, 1
        (fig,) = of_kind(page, Plot)
        assert plain(fig)["data"] == plain(lab.figure(name))["data"], name
        time.value, lab._strip.selected, head.value = 9, 8, 0
        assert plain(fig)["data"] == plain(lab.figure(name))["data"], name
        assert fig.layout.title == lab.figure(name).layout.title, name
        assert fig.layout.annotations == lab.figure(name).layout.annotations, name


def test_the_slider_is_answered_by_one_message(lab: Laboratory) -> None:
    lab.live()
    fig = lab._figures["laboratory"]
    sent: list[Any] = []
    fig.observe(lambda change: sent.append(change["new"]), "drawn")
    lab._time.value = 4
    assert len(sent) == 1 and len(sent[0]) < 100_000
    lab._strip.selected = 9
    assert lab._strip.tips[4].endswith("not written yet") and lab._strip.values[4] == 0.0
    assert "cosine" in lab._strip.tips[3] and lab._strip.values[3] != 0.0


def test_clicking_a_bar_asks_its_token(lab: Laboratory) -> None:
    lab.live()
    lab._figures["laboratory"].clicked = {"trace": 1, "x": 13, "y": 0.5, "count": 1}
    assert lab.token == lab._strip.selected == 12


def test_the_notebook_in_batch(run: workbench.Run, tmp_path: Path) -> None:
    values = {"run": str(run.folder.path), "layer": 2, "head": 2, "start": 100, "length": LENGTH}
    values |= {"before": 16, "token": 6}
    book, out = demo.BOOKS / "fast_weights.ipynb", tmp_path / "executed.ipynb"
    papermill.execute_notebook(
        book, out, values, engine_name="workbench", progress_bar=False, store_widget_state=False
    )
    kept = {
        p.stem: json.loads(p.read_text("utf-8")) for p in run.folder.path.glob("figures/*.json")
    }
    assert set(VIEWS) <= set(kept)
    nb = nbformat.read(out, 4)
    shown = [o.data for c in nb.cells for o in c.get("outputs", []) if "data" in o]
    plotly = [d["application/vnd.plotly.v1+json"] for d in shown]
    assert len(plotly) == 11 and all(len(json.dumps(p)) < 300_000 for p in plotly)
    assert out.stat().st_size < 1_000_000 and "widgets" not in nb.metadata

    # the numbers on the page against the model, asked afresh
    text = probe.stretch(run.corpus.splits["valid"], 100, LENGTH, before=16)
    inputs = fast_weight_probe.layers(run.model, text)[1].inputs
    k = inputs.k_BTHF[0, :, 1]
    unit = torch.nn.functional.normalize(k, dim=-1)
    overlap = float((unit @ unit.T).abs().triu(1).sum() / (LENGTH * (LENGTH - 1) / 2))
    words = kept["interference"]["layout"]["annotations"][0]["text"]
    assert words.startswith(f"ELU + 1: overlap {overlap:.2f},")
    beta = inputs.beta_BTH
    assert beta is not None
    gone = float(beta[0, 5, 1] * k[5].square().sum())
    old, new = gone * (1 - gone), gone
    elu = next(t for t in kept["overwriting"]["data"] if t["name"] == "delta, ELU + 1")
    line = np.frombuffer(base64.b64decode(elu["y"]["bdata"]), elu["y"]["dtype"])
    assert line[1] == pytest.approx(100 * old / (old + new), rel=1e-3)
