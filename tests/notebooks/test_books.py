"""The notebooks run: by the demo from end to end, by plain papermill, stopped, and misused."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from bench import __main__ as bench
from papermill.engines import papermill_engines
from papermill.exceptions import PapermillExecutionError
from small_recipes import DELTA, SPAN, write_recipe, write_text

import workbench
from workbench import demo, notebook, report
from workbench.engine import WorkbenchEngine
from workbench.errors import ConfigError, DataMissing
from workbench.train.folder import RunFolder

ByHand = Callable[..., list[Any]]
PLOTLY = "application/vnd.plotly.v1+json"


def figures_in(path: Path) -> int:
    nb = nbformat.read(path, 4)
    outputs = [o for c in nb.cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"], "red text in a good run"
    assert path.stat().st_size < 2_000_000, "widget state or a raw matrix in it?"
    return sum(PLOTLY in o.get("data", {}) for o in outputs)


def check_page(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.count("data-figure=") == 32
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", text.split("</style>")[0])
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//|@import|url\(", outside)
    assert "<script src" not in text and "<link" not in text
    assert len(re.findall(r"<figure id='run\d+-figure\d+'><h3>", outside)) == 34
    assert "tiny-span" in outside and "tiny-delta" in outside and "coloured-text" in outside


@pytest.mark.executes("train", "evaluate", "attention_span", "fast_weights")
def test_the_demo_from_end_to_end(tmp_path: Path, span_recipe: Path, delta_recipe: Path) -> None:
    told = io.StringIO()
    names = [str(span_recipe), str(delta_recipe)]
    out = tmp_path / "demo"
    assert demo.run(out, names, 60.0, demo.Console(told, every_s=0.5)) == 0, told.getvalue()
    executed = {p.stem: figures_in(p) for p in sorted((out / "notebooks").glob("*.ipynb"))}
    assert executed == {
        "tiny-span-train": 2,
        "tiny-span-evaluate": 5,
        "tiny-span-attention_span": 9,
        "tiny-delta-train": 2,
        "tiny-delta-evaluate": 5,
        "tiny-delta-fast_weights": 11,
    }
    check_page(out / "report.html")

    text = told.getvalue()
    header = next(line for line in text.splitlines() if line.startswith("model "))
    for column in ("parameters", "steps", "valid bits/char", "test bits/char", "mean span"):
        assert column in header
    span_row, delta_row = (
        report.summary(RunFolder(out / name)) for name in ("tiny-span", "tiny-delta")
    )
    assert span_row["text"] == delta_row["text"] == "text"
    assert span_row["steps"] == "20" and span_row["method"] == "carried 32"
    assert float(span_row["max span"]) >= float(span_row["mean span"]) > 0
    assert delta_row["method"] == "carried, all"
    assert delta_row["mean span"] == "-" and "delta_rule" in delta_row["backends"]
    result = json.loads((out / "tiny-span" / "evaluation.json").read_text("utf-8"))
    assert result["splits"]["test"]["tokens"] == result["splits"]["valid"]["tokens"] > 5000
    assert "runs on the same sha256" in result["comparable"]
    page = (out / "report.html").read_text("utf-8")
    assert f"Comparable: {result['comparable']}." in page
    assert set(result["baselines_bits"]) == {"unigram", "gzip", "xz"}
    assert str(out / "report.html") in text and "tiny-delta-fast_weights.ipynb" in text

    weights = sorted(out.glob("*/checkpoints/*/weights.safetensors"))
    before = [p.stat().st_mtime_ns for p in weights]
    again = io.StringIO()
    assert demo.run(out, names, 60.0, demo.Console(again)) == 0
    assert again.getvalue().count("done before") == 6
    assert [p.stat().st_mtime_ns for p in weights] == before


def test_training_by_hand(tmp_path: Path, span_recipe: Path, by_hand: ByHand) -> None:
    by_hand("train", recipe=str(span_recipe), out=str(tmp_path / "run"), steps=6)
    assert RunFolder(tmp_path / "run").status()["state"] == "done"
    assert RunFolder(tmp_path / "run").recipe().train.steps == 6
    assert (tmp_path / "run" / "figures" / "training.json").is_file()


@pytest.mark.executes("retrieval")
def test_the_retrieval_notebook_draws_ours_beside_the_published(tmp_path: Path) -> None:
    out = tmp_path / "executed.ipynb"
    values = {
        "out": str(tmp_path / "runs"),
        "capacity": ["elu", "softmax"],
        "update": ["dpfp1-delta"],
        "capacity_pairs": [3, 20],
        "update_pairs": [3],
        "overrides": {"train.steps": 4, "model.d_key": 4},
    }
    book = demo.BOOKS / "retrieval.ipynb"
    papermill.execute_notebook(book, out, values, progress_bar=False, store_widget_state=False)
    assert figures_in(out) == 3  # nobody watches: the sweeps are pictures, too
    text = out.read_text("utf-8")
    assert "retrieval-capacity-64-softmax at 20 pairs: loss 0." in text
    assert "(published 0.0006) after 4 updates" in text
    kept = json.loads((tmp_path / "runs" / "figures" / "retrieval_capacity.json").read_text())
    assert [trace["name"] for trace in kept["data"]] == [
        *("elu", "elu, published", "softmax", "softmax, published")
    ]


GENERATE = {
    **{"length": 20, "text_len": 60, "tune_tokens": 120, "temperatures": [0.5, 1.0]},
    **{"thetas": [0.3, 1.0], "lams": [0.1], "window": 30},
}


@pytest.mark.executes("generate")
def test_the_generate_notebook(tmp_path: Path, span_recipe: Path) -> None:
    run = workbench.start(span_recipe, {"train.steps": 2}, out=tmp_path / "run")
    list(run)
    values = {"run": str(run.folder.path), **GENERATE}
    book, out = demo.BOOKS / "generate.ipynb", tmp_path / "executed.ipynb"
    papermill.execute_notebook(book, out, values, progress_bar=False, store_widget_state=False)
    assert figures_in(out) == 6  # nobody watches: the writer is pictures, too
    kept = {p.stem for p in (run.folder.path / "figures").iterdir()}
    written = {"written", "written_past", "written_token", "written_spans"}
    assert kept == {"samples", "temperatures", "scored", "cache_grid", "cache_gain", *written}
    assert "carried; seed 1" in out.read_text("utf-8")


def test_generating_where_positions_restart(
    tmp_path: Path, by_hand: ByHand, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "d.yaml", write_text(tmp_path / "d.txt"), DELTA)
    changes = {"train.steps": 2, "model.positions": {"kind": "sinusoid"}}
    changes |= {"eval.method": "windows", "eval.context_len": 8}
    run = workbench.start(recipe, changes, out=tmp_path / "run")
    list(run)
    by_hand("generate", run=str(run.folder.path), **GENERATE)
    assert len(list((run.folder.path / "figures").iterdir())) == 8
    assert "windows, context_len 16; seed 1" in capsys.readouterr().out


@pytest.mark.executes("recipes")
def test_the_recipes_notebook(tmp_path: Path) -> None:
    values = {"recipe": "delta-python-tiny", "words": "tiny"}
    book, out = demo.BOOKS / "recipes.ipynb", tmp_path / "executed.ipynb"
    papermill.execute_notebook(book, out, values, progress_bar=False, store_widget_state=False)
    assert figures_in(out) == 1
    page = out.read_text("utf-8")
    assert 'data-v=\\"span-python-tiny\\"' in page and "name: delta-python-tiny" in page


@pytest.mark.executes("benchmark")
def test_the_benchmark_notebook(tmp_path: Path, by_hand: ByHand) -> None:
    words = ["--tiny", "--out", str(tmp_path), "--groups", "fast_weights", "vocabulary"]
    assert bench.main(words) == 0
    values = {"rows": str(tmp_path / "bench.json")}
    book, out = demo.BOOKS / "benchmark.ipynb", tmp_path / "executed.ipynb"
    papermill.execute_notebook(book, out, values, progress_bar=False, store_widget_state=False)
    assert figures_in(out) == 6
    page = out.read_text("utf-8")
    assert "delta_rule B1 H2 T64 F8 V8 fwd+bwd" in page and "fp32 GEMM" in page
    kept = sorted(path.stem for path in (tmp_path / "figures").iterdir())
    sweeps = [f"growth_{name}" for name in ("T", "span", "vocabulary", "width")]
    assert kept == [*sweeps, "limits", "targets"]
    with pytest.raises(DataMissing, match="hold the words"):
        by_hand("benchmark", **values, words="delta nothing")
    with pytest.raises(DataMissing, match="make bench"):
        by_hand("benchmark", rows=str(tmp_path / "none.json"))


WORDS = {"data.corpus": {"kind": "text", "path": "a.txt", "level": "word"}}


@pytest.mark.parametrize(
    ("name", "overrides", "figures"),
    [("retrieval-update-tiny", {}, 1), ("span-python-tiny", WORDS, 0)],
)
def test_other_recipes_in_that_notebook(
    name: str,
    overrides: dict[str, object],
    figures: int,
    by_hand: ByHand,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = by_hand("recipes", recipe=name, words="tiny", overrides=overrides)
    told = capsys.readouterr().out
    assert len(shown) == figures and f"name: {name}" in told
    assert ("known when the text is read" in told) is (figures == 0)


def test_sigterm_saves_a_checkpoint_the_notebook_and_the_status(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    recipe = write_recipe(tmp_path / "long.yaml", text, SPAN, steps=1_000_000, eval_every=999_999)
    run, out = RunFolder(tmp_path / "run"), tmp_path / "executed.ipynb"
    code = (
        "import sys, papermill; from papermill.engines import papermill_engines as e;"
        "from workbench.engine import WorkbenchEngine; e.register('workbench', WorkbenchEngine);"
        "papermill.execute_notebook(sys.argv[1], sys.argv[2], engine_name='workbench',"
        " parameters={'recipe': sys.argv[3], 'out': sys.argv[4]}, progress_bar=False)"
    )
    book = demo.BOOKS / "train.ipynb"
    command = [sys.executable, "-c", code, *map(str, (book, out, recipe, run.path))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(run.records("train")) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    status = run.status()
    assert status["state"] == "stopped" and status["step"] >= 4
    assert run.load_model().n_parameters > 0
    nb = nbformat.read(out, 4)
    assert nb.metadata.papermill["stopped_by"] == "SIGTERM"
    last = "".join(o.get("text", "") for o in nb.cells[-1].outputs)
    assert f"stopped at step {status['step']:,}" in last
    assert sum(PLOTLY in o.get("data", {}) for c in nb.cells for o in c.get("outputs", [])) == 2


def test_a_failing_notebook_is_named_with_its_error(tmp_path: Path, span_recipe: Path) -> None:
    run = workbench.start(span_recipe, {"train.steps": 2}, out=tmp_path / "run")
    list(run)
    papermill_engines.register("workbench", WorkbenchEngine)
    out = tmp_path / "executed.ipynb"
    job = demo.Job("fast_weights", run.folder.path, {"run": str(run.folder.path)}, out)
    with pytest.raises(PapermillExecutionError) as caught:
        demo.execute(job, demo.Console(io.StringIO()), "fast_weights")
    assert caught.value.ename == "ConfigError"
    assert "open notebooks/attention_span.ipynb" in caught.value.evalue
    assert not demo.is_done(job)


def test_the_demo_says_what_is_wrong_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--out", str(tmp_path), "--recipes", "span-python-tyni"]) == 1
    assert "Did you mean 'span-python-tiny'" in capsys.readouterr().out
    monkeypatch.setattr(demo, "BOOKS", tmp_path / "site-packages")
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert "needs a checkout" in capsys.readouterr().out


def test_parameters_are_refused_readably(tmp_path: Path, span_recipe: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'span-python-tiny'"):
        notebook.choose_recipe("span-python-tyni")
    with pytest.raises(ConfigError, match="expected values at dotted paths"):
        notebook.choose_recipe("span-python-tiny", "{'train.steps': 2}")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        notebook.choose_recipe("span-python-tiny", {"train.stepz": 2})
    with pytest.raises(DataMissing, match="does not exist, expected the folder of a run"):
        notebook.open_run(tmp_path / "nothing")
    run = workbench.start(span_recipe, {"train.steps": 2}, out=tmp_path / "run")
    list(run)
    with pytest.raises(DataMissing, match="Did you mean 'run'"):
        notebook.open_run(tmp_path / "runn")
    with pytest.raises(ConfigError, match="parameter checkpoint: got 'newest'"):
        notebook.open_run(run.folder.path, "newest")
    view = notebook.open_run(run.folder.path)
    assert not view.model.training
    with pytest.raises(ConfigError, match=re.escape("got 3, expected 1 to 2 (attention layers)")):
        notebook.pick_head(view, 3, None)
    layer, head, span, ramp = notebook.pick_head(view, None, None)
    spans = notebook.spans(view)
    assert span == spans[layer][head] == max(max(s) for s in spans) and ramp == 4
    with pytest.raises(ConfigError, match="max_tokens"):
        notebook.evaluation_settings(view.recipe, 1)


def test_a_part_of_a_text_is_said_to_be_one(tmp_path: Path, span_recipe: Path) -> None:
    run = workbench.start(span_recipe, {"train.steps": 2}, out=tmp_path / "run")
    list(run)
    view = notebook.open_run(run.folder.path)
    scores = {}
    for split, n in (("valid", None), ("test", 100)):
        settings = notebook.evaluation_settings(view.recipe, n)
        scores[split] = workbench.evaluate(view.model, view.corpus.splits[split], settings)
    size = len(view.corpus.splits["test"])
    expected = f"{view.corpus.comparable}; but only 99 of {size:,} tokens of test were scored"
    assert notebook.comparable(view.corpus, scores) == expected
    assert notebook.comparable(view.corpus, {"valid": scores["valid"]}) == view.corpus.comparable


def test_a_text_without_a_test_split_is_evaluated_on_valid(
    tmp_path: Path, span_recipe: Path, by_hand: ByHand
) -> None:
    changes = {"train.steps": 2, "data.corpus.split": [0.75, 0.25, 0.0]}
    run = workbench.start(span_recipe, changes, out=tmp_path / "run")
    list(run)
    by_hand("evaluate", run=str(run.folder.path), contexts=[1, 4], context_sample=20, passages=1)
    result = report.evaluation(run.folder)
    assert list(result["splits"]) == ["valid"] and result["baselines_bits"]["gzip"] > 0
    assert "bits per character; unigram" in report.against_baselines(run.folder)
    by_hand("generate", run=str(run.folder.path), text_len=20)


def test_a_relative_path_means_the_same_by_hand_and_in_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    batch = notebook.place("runs/x")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert notebook.place("runs/x") == batch == tmp_path / "runs" / "x"
    assert notebook.place(tmp_path / "y") == tmp_path / "y"
