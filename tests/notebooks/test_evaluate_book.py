"""The evaluate notebook: its numbers by another way, two models compared, and what is refused."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import nbformat
import numpy as np
import papermill
import pytest
import torch

import workbench
from workbench import demo, measurement, notebook
from workbench.detail import evaluate_in_detail
from workbench.errors import ConfigError
from workbench.plots.passages import render
from workbench.train.folder import RunFolder
from workbench.widgets import passages
from workbench.widgets.plot import Plot
from workbench.widgets.tokens import Tokens

PLOTLY = "application/vnd.plotly.v1+json"
QUICK = {"contexts": [1, 4], "context_sample": 20, "passages": 2, "passage_len": 30}


def trained(recipe: Path, out: Path, **overrides: Any) -> RunFolder:
    changes = {"train.steps": 4, "train.eval_every": 2, **overrides}
    run = workbench.start(recipe, changes, out=out)
    list(run)
    return run.folder


@pytest.fixture
def span(tmp_path: Path, span_recipe: Path) -> RunFolder:
    return trained(span_recipe, tmp_path / "span")


@pytest.fixture
def delta(tmp_path: Path, delta_recipe: Path) -> RunFolder:
    return trained(delta_recipe, tmp_path / "delta")


def naive_ece(view: notebook.View, split: str, bins: int) -> tuple[float, float]:
    """Calibration error and accuracy from full distributions, token by token."""
    text = view.corpus.splits[split]
    full = workbench.score(view, text, config=view.recipe.eval, log_probs=True)
    assert full.log_probs is not None
    sure, guess = full.log_probs.exp().max(-1)
    right = (guess == text[full.positions].long()).double()
    total = 0.0
    for i in range(bins):
        inside = (sure > i / bins) & (sure <= (i + 1) / bins)
        if inside.any():
            total += float((right[inside].mean() - sure[inside].double().mean()).abs()) * int(
                inside.sum()
            )
    return total / len(sure), float(right.mean())


@pytest.mark.executes("evaluate")
def test_the_notebook_compares_two_runs(tmp_path: Path, span: RunFolder, delta: RunFolder) -> None:
    book, out = demo.BOOKS / "evaluate.ipynb", tmp_path / "executed.ipynb"
    values = {"run": str(span.path), "other": str(delta.path), "bins": 7, **QUICK}
    papermill.execute_notebook(
        book, out, values, progress_bar=False, engine_name="workbench", store_widget_state=False
    )
    outputs = [o for c in nbformat.read(out, 4).cells for o in c.get("outputs", [])]
    assert sum(PLOTLY in o.get("data", {}) for o in outputs) == 8
    assert out.stat().st_size < 1_000_000
    told = "".join(o.get("text", "") for o in outputs)
    assert "carried, context_len 32" in told and "Newey-West over" in told

    result = json.loads((span.path / "evaluation.json").read_text("utf-8"))
    a, b = notebook.open_run(span.path), notebook.open_run(delta.path)
    text = a.corpus.splits["test"]
    ours, theirs = (workbench.evaluate(v.model, text, v.recipe.eval) for v in (a, b))
    saved = (ours.nll_nats.double() - theirs.nll_nats.double()).numpy() / math.log(2)
    found = result["paired"]
    assert found["saved_bits"] == pytest.approx(saved.mean(), rel=1e-6)
    assert found["a_bits"] - found["b_bits"] == pytest.approx(saved.mean(), rel=1e-6)
    assert found["low_bits"] < found["saved_bits"] < found["high_bits"]
    assert found["tokens"] == len(saved) and found["b_better"] == (saved > 0).mean()
    assert found["a"] == "tiny-span (step 4)" and found["b"] == "tiny-delta (step 4)"

    for split in ("valid", "test"):
        kept = result["calibration"][split]
        ece, accuracy = naive_ece(a, split, 7)
        assert kept["ece"] == pytest.approx(ece, abs=1e-6)
        assert kept["accuracy"] == pytest.approx(accuracy)
        assert sum(row["tokens"] for row in kept["bins"]) == result["splits"][split]["tokens"]
        assert len(kept["bins"]) == 7 and kept["binning"].startswith("7 bins of equal width")
    assert result["by_context"][1]["saved"] == 0
    assert {"recipe", "n_parameters", "unit", "comparable", "baselines_bits"} <= set(result)


def test_the_passages_tell_what_was_expected(span: RunFolder) -> None:
    view = notebook.open_run(span.path)
    text = view.corpus.splits["test"]
    detail = evaluate_in_detail(view.model, text, view.recipe.eval)
    panel = passages.hardest(detail, view.corpus, text, 30, 2)
    assert len(panel.spots) == 8
    page = render(panel.passages())
    assert page.count('class="coloured-text"') == 2 and "<b>" not in page
    # each tip has the token, its nats and rank, and five alternatives, by the whole distribution
    full = workbench.score(view, text, config=view.recipe.eval, log_probs=True)
    assert full.log_probs is not None
    spot = panel.spots[0]
    tips = [html.unescape(t) for t in re.findall(r'title="([^"]*)"', page)]
    for i, tip in zip(range(spot.start, spot.stop), tips, strict=False):
        row, target = full.log_probs[i], int(text[full.positions[i]])
        rank = 1 + int((row > row[target]).sum())
        head, likely = tip.split("\n")
        assert f"{-float(row[target]):.2f} nats" in head and head.endswith(f"rank {rank:,}")
        best = view.corpus.vocabulary.symbol(int(row.argmax()))
        assert likely.startswith(f"likeliest: {best} {float(row.max().exp()):.3f}")
    still = panel.stills()["hardest_expected"]
    at = panel.hardest(spot)
    assert f"{float(detail.evaluation.nll_nats[at]):.2f} nats" in still.layout.title.text
    assert len(still.data[0].y) in (5, 6)


def part(root: Any, kind: type) -> Any:
    """The part of a live view that is of some kind."""
    below = [part(child, kind) for child in getattr(root, "children", ())]
    found = [root] if isinstance(root, kind) else [x for x in below if x is not None]
    return found[0] if found else None


def test_in_a_browser_passages_are_picked_and_tokens_clicked(span: RunFolder) -> None:
    view = notebook.open_run(span.path)
    text = view.corpus.splits["test"]
    detail = evaluate_in_detail(view.model, text, view.recipe.eval)
    panel = passages.hardest(detail, view.corpus, text, 30, 2)
    live = panel.live()
    tokens, figure = part(live, Tokens), part(live, Plot)
    picker, least = part(live, ipywidgets.Dropdown), part(live, ipywidgets.FloatSlider)
    assert len(tokens.symbols) == 30 and tokens.selected >= 0
    tokens.selected = 3
    cost = float(detail.evaluation.nll_nats[panel.spots[0].start + 3])
    assert f"{cost:.2f} nats" in figure.layout.title.text
    picker.value = 5
    spot = panel.spots[5]
    assert tokens.title == spot.title
    assert tokens.selected == panel.hardest(spot) - spot.start
    cost = float(detail.evaluation.nll_nats[panel.hardest(spot)])
    assert f"{cost:.2f} nats" in figure.layout.title.text
    least.value = 3.0
    bits = panel.values[spot.start : spot.stop]
    assert tokens.values == [float(v) if v >= 3 else 0.0 for v in bits]


def test_two_checkpoints_of_one_run(span: RunFolder, by_hand: Callable[..., list[Any]]) -> None:
    # the best one is made older than the last, by a validation that was worse at the end
    view, best = notebook.open_run(span.path), notebook.open_run(span.path, "best")
    assert measurement.names(view, "last", best, "best")[1].startswith("best (step")
    by_hand("evaluate", run=str(span.path), other_checkpoint="best", max_tokens=300, **QUICK)
    found = json.loads((span.path / "evaluation.json").read_text("utf-8"))["paired"]
    assert found["other_checkpoint"] == "best" and found["a"].startswith("last (step 4")
    same = measurement.step(view, "last") == measurement.step(best, "best")
    assert (found["saved_bits"] == 0) is same
    with pytest.raises(ConfigError, match="which are the ones that are compared"):
        measurement.open_other(view, "last", None, "last", "test")
    with pytest.raises(ConfigError, match="parameter other_checkpoint: got 'newest'"):
        measurement.open_other(view, "last", None, "newest", "test")
    assert measurement.open_other(view, "last", None, None, "test") is None


def test_models_of_other_tokens_are_refused(
    tmp_path: Path, span: RunFolder, span_recipe: Path
) -> None:
    view = notebook.open_run(span.path)
    level = trained(span_recipe, tmp_path / "level", **{"data.corpus.level": "char"})
    with pytest.raises(ConfigError, match=r"of level char, .* of level byte.* bits per byte"):
        measurement.open_other(view, "last", str(level.path), None, "test")
    moved = trained(span_recipe, tmp_path / "moved", **{"data.corpus.split": [0.5, 0.3, 0.2]})
    with pytest.raises(ConfigError, match=r"its test text .* is not that of this run"):
        measurement.open_other(view, "last", str(moved.path), None, "test")
    other = tmp_path / "other.txt"
    other.write_text("abc de\n" * 4000, encoding="utf-8")
    changes = {"data.corpus.level": "char", "data.corpus.path": str(other)}
    short = trained(span_recipe, tmp_path / "short", **changes)
    with pytest.raises(ConfigError, match="its vocabulary of 8 symbols is not that of this run"):
        measurement.open_other(notebook.open_run(level.path), "last", str(short.path), None, "test")


def test_only_tokens_that_both_scored_are_compared(span: RunFolder, delta: RunFolder) -> None:
    a, b = notebook.open_run(span.path), notebook.open_run(delta.path)
    text = a.corpus.splits["test"][:200]
    windows = a.recipe.eval.model_copy(
        update={"method": "windows", "context_len": 16, "skip_first": True}
    )
    first = evaluate_in_detail(a.model, text, windows)
    second = evaluate_in_detail(b.model, text, b.recipe.eval)
    found = measurement.pair(first, second)
    assert found.positions.tolist() == list(range(16, 200))
    assert torch.equal(text[found.positions], text[second.evaluation.positions[found.at[1]]])
    expected = second.evaluation.nll_nats[15:].double().numpy() / math.log(2)
    assert np.allclose(found.bits[1], expected)
    panel = passages.differences(
        found, (first, second), ["a", "b<i>"], a.corpus, text, length=20, count=2
    )
    page = render(panel.passages())
    assert "b&lt;i&gt; saves" in page and "a saves" in page and "<i>" not in page
    still = panel.stills()["differences_expected"]
    assert [x.text for x in still.layout.annotations] == ["a", "b&lt;i&gt;"]
