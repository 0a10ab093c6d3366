"""Runs side by side: numbers of table, curves and sweep; the panel; files for other programs."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import papermill
import pytest
from papermill.engines import papermill_engines
from small_recipes import DELTA, SPAN, write_recipe, write_text

import workbench
from workbench import comparison, demo
from workbench.engine import WorkbenchEngine
from workbench.plots import comparison as plots
from workbench.plots import sweeps
from workbench.plots.latex import escape, latex
from workbench.plots.table import decode, table
from workbench.train.folder import RunFolder
from workbench.widgets.comparison import Comparison, RunTable

ByHand = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of two recipes and three rates."""
    path = tmp_path_factory.mktemp("compared")
    text = write_text(path / "text.txt")
    for name, mixer, lr in (("a", DELTA, 1e-4), ("b", DELTA, 1e-2), ("<i>c</i>", SPAN, 3e-3)):
        recipe = write_recipe(path / f"r{name[0].strip('<')}.yaml", text, mixer)
        for _ in workbench.start(
            recipe, {"train.optimizer.lr": lr}, out=path / "sweep" / name.replace("/", "_")
        ):
            pass
    return path / "sweep"


def bits(folder: RunFolder, kind: str) -> list[float]:
    return [r["loss_nats"] / math.log(2) for r in folder.records(kind)]


def test_the_table_has_the_numbers_of_the_records(trained: Path) -> None:
    folders = comparison.open_runs(trained)
    recipes = {name: folder.recipe() for name, folder in folders.items()}
    rows = comparison.table(folders, recipes)
    assert [row["run"] for row in rows] == list(folders) == ["<i>c<_i>", "a", "b"]
    for row, folder in zip(rows, folders.values(), strict=True):
        train = folder.records("train")
        assert row["lr"] == folder.recipe().train.optimizer.lr
        assert row["tokens"] == train[-1]["tokens"] == 20 * 4 * 16
        assert row["valid bits"] == pytest.approx(min(bits(folder, "eval")), abs=1e-4)
        assert row["peak MB"] == pytest.approx(max(r["peak_bytes"] for r in train) / 1e6, abs=0.1)
        assert row["carry MB"] == pytest.approx(train[-1]["memory_bytes"] / 1e6, abs=1e-3)
        speeds = sorted(r["tokens_per_s"] for r in train)
        assert speeds[0] <= row["tokens/s"] <= speeds[-1]
        assert row["minutes"] == pytest.approx(folder.records()[-1]["elapsed_s"] / 60, abs=0.01)
        assert row["state"] == "done" and "cross_entropy" in str(row["backends"])
    # nobody evaluated, so nothing was tested
    assert "test bits" not in rows[0] and "test perplexity" not in rows[0]


def test_axes_are_called_by_what_tells_them_apart() -> None:
    paths = [
        "train.optimizer.lr",
        "model.d_model",
        "a.mixer.kind",
        "b.mixer.kind",
        "c.kind",
        "kind",
    ]
    assert comparison.short(paths) == {
        "train.optimizer.lr": "lr",
        "model.d_model": "d_model",
        "a.mixer.kind": "a.mixer.kind",
        "b.mixer.kind": "b.mixer.kind",
        "c.kind": "c.kind",
        "kind": "kind",
    }


def test_curves_keep_their_colours_and_their_numbers(trained: Path) -> None:
    folders = comparison.open_runs(trained)
    records = {name: folder.records() for name, folder in folders.items()}
    every = plots.learning_curves(records, "step")
    some = plots.learning_curves({"b": records["b"]}, "step", list(records))
    colour = {t.name: t.line.color for t in every.data}
    assert len(set(colour.values())) == 3 and {t.line.color for t in some.data} == {colour["b"]}
    train, held = (decode(t.y.tolist() if hasattr(t.y, "tolist") else t.y) for t in some.data)
    np.testing.assert_allclose(train, bits(folders["b"], "train"), rtol=1e-6)
    np.testing.assert_allclose(held, bits(folders["b"], "eval"), rtol=1e-6)
    for over, field in (("step", "step"), ("elapsed_s", "elapsed_s"), ("tokens", "tokens")):
        x = plots.learning_curves(records, over).data[0].x
        source = [r[field] for r in folders["<i>c<_i>"].records("train")]
        np.testing.assert_allclose(x, source, rtol=1e-6)
    assert every.data[0].name == "&lt;i&gt;c&lt;_i&gt;"


def test_many_runs_stay_small() -> None:
    rows = [{"kind": "train", "step": i, "loss_nats": 2.0, "tokens": i} for i in range(3000)]
    rows.append({"kind": "eval", "step": 3000, "loss_nats": 1.0})
    records = {f"run-{i}": rows for i in range(150)}
    assert len(plots.learning_curves(records).to_json()) < 1_000_000
    values = {f"run-{i}": 10.0 ** -(i % 5) for i in range(1000)}
    fig = sweeps.parallel({"train.lr": values, "b": values}, dict.fromkeys(values, 2.0))
    assert len(fig.data) == sweeps.MOST_RUNS and len(fig.to_json()) < 1_000_000


def test_a_sweep_on_parallel_axes() -> None:
    fields = {
        "train.lr": {"a": 1e-4, "b": 1e-2, "c": 1e-3, "never": 1.0},
        "model.d": {"a": 16, "b": 32, "c": 24},
        "x.<b>": {"a": "sum", "b": "delta"},
    }
    best = {"a": 3.0, "b": 2.0, "c": 2.25}
    fig = sweeps.parallel(fields, best)
    assert fig.layout.title.text.startswith("lr 0.01, d 32, &lt;b&gt; delta: 2.000 bits")
    lines = {t.name: t for t in fig.data}
    assert list(lines) == ["a", "c", "b"]  # the best on top
    expected = {"a": [0, 0, None, 1], "b": [1, 1, None, 0], "c": [0.5, 0.5, None, 0.25]}
    for name, (lr, d, _, loss) in expected.items():
        y = lines[name].y
        np.testing.assert_allclose([y[0], y[1], y[3]], [lr, d, loss], atol=1e-12)
    assert lines["c"].y[2] is None and {lines["a"].y[2], lines["b"].y[2]} == {0.0, 1.0}
    assert lines["b"].text == ("0.01", "32", "delta", "2")
    assert len({t.line.color for t in fig.data}) == 3
    ticks = {(a.x, a.text) for a in fig.layout.annotations}
    assert {(0, "0.001"), (1, "24"), (2, "delta"), (3, "2.25")} <= ticks
    columns = table(fig)
    assert columns["x"][:4] == ["lr", "d", "<b>", "bits per token"]
    assert columns["text"][:4] == ["0.0001", "16", "sum", "3"]
    with pytest.raises(ValueError, match="no run was validated"):
        sweeps.parallel(fields, {})


def test_ticks_do_not_stand_on_each_other() -> None:
    at, ticks = sweeps.places([1.0, 1.001, 1.002, 2.0])
    assert [told for _, told in ticks] == ["1", "2"] and at[0] == 0.0 and at[-1] == 1.0
    _, many = sweeps.places([float(i) for i in range(1, 100)])
    assert len(many) == 5 and many[0] == (0.0, "1") and many[-1] == (1.0, "99")
    assert sweeps.places([True, False, None]) == ([0.0, 1.0, None], [(0.0, "True"), (1.0, "False")])
    assert sweeps.places([3, 3])[0] == [0.5, 0.5]


def test_latex_is_a_float_of_even_rows() -> None:
    nasty = r"50% of a_b & #1 {x} $y$ ~^\ <b> --"
    columns = {"run_name": [nasty, "b\n"], "tokens": [1234567, None], "bits": [-1.5, 1e-5]}
    told = latex(columns, caption="A & B", label="tab:x")
    lines = told.splitlines()
    assert lines[0] == r"\begin{table}" and lines[-1] == r"\end{table}"
    for kind in ("table", "tabular"):
        assert told.count(rf"\begin{{{kind}}}") == told.count(rf"\end{{{kind}}}") == 1
    assert r"\begin{tabular}{lrr}" in lines and r"\caption{A \& B}" in lines
    rows = [line for line in lines if line.endswith(r" \\")]
    assert len(rows) == 3 and lines[lines.index(r"\toprule") + 1] == rows[0]
    # outside of escapes: as many columns in each row, no comment, no sub- or superscript
    for row in rows:
        bare = re.sub(r"\\[&%$#_{}]", "", row.replace(r" \\", ""))
        assert bare.count("&") == 2 and not set("%#_^~") & set(bare)
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert rows[0] == r"run\_name & tokens & bits \\"
    assert rows[1].endswith(r" & 1{,}234{,}567 & $-$1.5 \\") and rows[2] == r"b  & -- & 1e$-$05 \\"
    assert escape("a--b") == "a-{}-b" and escape("\\") == r"\textbackslash{}"


def test_files_read_back(trained: Path, tmp_path: Path) -> None:
    folders = comparison.open_runs(trained)
    rows = comparison.table(folders, {n: f.recipe() for n, f in folders.items()})
    table_csv, tex = comparison.save_table(RunFolder(tmp_path), rows)
    found = list(csv.DictReader(io.StringIO(table_csv.read_text("utf-8"))))
    for row, own in zip(rows, found, strict=True):
        assert list(own) == list(row)
        for name, value in row.items():
            assert own[name] == str(value) if isinstance(value, str) else float(own[name]) == value
    told = tex.read_text("utf-8")
    assert r"\textless{}i\textgreater{}c\textless{}\_i\textgreater{} & " in told
    assert told.count(r" \\") == 4


def test_the_panel_follows_what_is_checked(trained: Path) -> None:
    panel = Comparison(comparison.open_runs(trained), "step")
    assert list(panel.stills()) == ["learning_curves", "sweep"]
    runs, axis, curves, sweep = panel.live().children
    assert isinstance(runs, RunTable) and runs.chosen == [0, 1, 2]
    assert runs.rows[1][0] == "a" and runs.columns[0] == "run"
    assert [s[0] for s in runs.styles] == [t.line.color for t in curves.data[::2]]
    before = [t.line.color for t in curves.data if t.name == "b"]
    runs.chosen = [2]
    assert {t.name for t in curves.data} == {"b"} == {t.name for t in sweep.data}
    assert [t.line.color for t in curves.data] == before
    assert "b is best" in curves.layout.title.text
    assert len(list(csv.reader(io.StringIO(runs.files["comparison.csv"])))) == 2
    axis.value = "elapsed_s"
    assert curves.layout.xaxis.title.text == "training time (s)"
    runs.chosen = []
    assert len(curves.data) == 0 and "No validation yet" in curves.layout.title.text
    runs.chosen = [0, 1, 2]
    assert len(curves.data) == 6 and len(sweep.data) == 3
    with pytest.raises(ValueError, match="over: got 'hours'"):
        Comparison(comparison.open_runs(trained), "hours")


def test_of_many_runs_the_best_are_shown_first(trained: Path) -> None:
    folders = {f"r{i:02}": RunFolder(trained / ("b" if i % 2 else "a")) for i in range(20)}
    panel = Comparison(folders)
    assert len(panel.first) == 12 and set(range(1, 20, 2)) <= set(panel.first)


def test_the_notebook_in_batch(trained: Path, tmp_path: Path) -> None:
    papermill_engines.register("workbench", WorkbenchEngine)
    out = tmp_path / "executed.ipynb"
    papermill.execute_notebook(
        demo.BOOKS / "compare.ipynb",
        out,
        {"sweep": str(trained), "over": "step"},
        engine_name="workbench",
        progress_bar=False,
    )
    text = out.read_text("utf-8")
    assert out.stat().st_size < 2_000_000 and "application/vnd.jupyter.widget" not in text
    names = {p.stem for p in (trained / "figures").iterdir()}
    assert names >= {"learning_curves", "sweep", "by_train_optimizer_lr"}
    assert (trained / "comparison.csv").is_file() and (trained / "comparison.tex").is_file()
    best = min(min(bits(f, "eval")) for f in comparison.open_runs(trained).values())
    assert f"is best: {best:.3f} bits per token" in text
    assert f'data-v=\\"{round(best, 4)}\\"' in text  # the table
    assert "<i>c" not in text and "&lt;i&gt;c&lt;_i&gt;" in text
