"""The view of training without a browser: recipes, overrides, buttons, what it shows of a run."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError
from small_recipes import SPAN, write_recipe, write_text

import workbench
from workbench import background, catalogue, demo, kept, samples
from workbench.errors import ConfigError
from workbench.following import RunWatch, duration, remaining_s, runs_near
from workbench.plots import curves
from workbench.plots.live import PLOTLY_MIME
from workbench.plots.samples import MOST, passages
from workbench.plots.style import layer_colour
from workbench.recipe import load_recipe
from workbench.train.control import CONTROL
from workbench.train.folder import RECORDS, STATUS, RunFolder
from workbench.widgets import training as view_of_training
from workbench.widgets.overrides import OverridesForm, leaves
from workbench.widgets.recipes import RecipePicker, row
from workbench.widgets.run_view import headline
from workbench.widgets.training import Training

EVIL = "<script>alert(1)</script>"


# --- recipes -------------------------------------------------------------------------------------


def entries() -> list[catalogue.Entry]:
    names = ("span-enwik8-base", "txl-enwik8-base", "delta-python-tiny", "span-python-tiny")
    return [catalogue.entry(load_recipe(name)) for name in names]


def test_recipes_are_searched_by_name_paper_and_description() -> None:
    picker = RecipePicker(entries(), "delta-python-tiny")
    chosen: list[str] = []
    picker.on_choice(lambda entry: chosen.append(entry.name))
    assert picker.value is not None and picker.value.name == "delta-python-tiny"
    picker.search.value = "1905.07799 ENWIK8"
    assert [name for _, name in picker.table.options] == ["span-enwik8-base"]
    assert chosen[-1] == "span-enwik8-base"
    # its paper, size and published result, in the list and below it
    shown = picker.table.options[0][0].replace("\xa0", " ")
    assert shown.split()[:3] == ["span-enwik8-base", "enwik8", "38.5M"] and "1.02 bpc" in shown
    assert "arXiv:1905.07799" in shown and "38,538,541" in picker.about.value
    picker.search.value = "no such words"
    assert picker.value is None and "none of 4" in picker.count.value
    picker.search.value = ""
    assert len(picker.table.options) == 4
    picker.fill([*entries(), catalogue.entry(load_recipe("span-text8-base"))])
    assert len(picker.table.options) == 5


def test_a_recipe_of_a_stranger_is_text() -> None:
    e = catalogue.Entry(EVIL, "a", "b", f"{EVIL}\x07", None, [], EVIL, EVIL, None)
    picker = RecipePicker([e], EVIL)
    assert "<script" not in picker.about.value and "&lt;script&gt;" in picker.about.value
    assert "␇" in picker.about.value and row(e).startswith("<script>")


# --- overrides -----------------------------------------------------------------------------------


def test_overrides_are_checked_while_typing_with_the_packages_words() -> None:
    form = OverridesForm("span-python-tiny")
    changed: list[dict[str, Any]] = []
    form.on_change(lambda: changed.append(dict(form.overrides)))
    form.path.value, form.text.value = "train.stepz", "3"
    assert "Did you mean &#x27;steps&#x27;?" in form.message.value and form.set.disabled
    form.path.value = "model.stack.0.block.mixer.n_headz"
    assert "n_heads" in form.message.value and "alert" in form.message.value
    form.path.value, form.text.value = "train.optimizer.lr", "1e-3"
    assert "YAML 1.1 reads it as text, write 1.0e-03" in form.message.value
    form.text.value = "1.0e-3"
    assert "0.002 before" in form.message.value and not form.set.disabled
    assert "The recipe says 0.002" in form.hint.value
    form.set.click()
    assert form.overrides == changed[-1] == {"train.optimizer.lr": 1.0e-3}
    assert form.recipe.train.optimizer.lr == 1.0e-3 and form.text.value == ""
    assert "train.optimizer.lr: 0.001 instead of 0.002" in form.changes.value
    # what is wrong together with the rest is wrong
    form.path.value, form.text.value = "train.keep_every", "7"
    assert "write a multiple: 100" in form.message.value
    form.set.click()
    assert form.overrides == {"train.optimizer.lr": 1.0e-3}
    form.path.value, form.text.value = f"train.{EVIL}", EVIL
    shown = form.message.value + form.hint.value + form.changes.value
    assert "<script" not in shown and "&lt;script&gt;" in shown
    form.path.value, form.text.value = "", ""
    form.clear.click()
    assert form.overrides == {} and "no field changed" in form.changes.value


def test_enter_sets_a_value_and_every_field_is_offered() -> None:
    form = OverridesForm("span-python-tiny", {"train.steps": 200})
    form.path.value, form.text.value = "train.seed", "7"
    form._sent(form.text, {"event": "submit"})
    assert form.overrides == {"train.steps": 200, "train.seed": 7}
    form.path.value = "train.steps"
    form.clear.click()
    assert form.overrides == {"train.seed": 7}
    offered = dict(leaves(load_recipe("span-python-tiny")))
    assert set(form.path.options) == set(offered) and len(offered) > 80
    assert offered["model.stack.0.block.mixer.span.penalty"].value == 2.0e-5
    assert offered["train.clip_norm"].about.startswith("Largest norm of the gradient")
    for path, leaf in list(offered.items())[::9]:
        # each of them is a path that a recipe can be changed at
        value = json.loads(json.dumps(leaf.value, default=str))
        assert load_recipe("span-python-tiny", {path: value}).name == "span-python-tiny"


# --- what a run folder tells ---------------------------------------------------------------------


def test_the_remaining_time_is_that_of_the_newest_pace() -> None:
    rows = [{"kind": "train", "step": 10 * i, "elapsed_s": 1.0 * i} for i in range(5)]
    slow = [{"kind": "train", "step": 40 + i, "elapsed_s": 4.0 + i} for i in range(1, 21)]
    assert remaining_s(rows, 100) == pytest.approx(6.0)
    assert remaining_s([*rows, *slow], 100) == pytest.approx(40.0)
    assert remaining_s(rows, 100, max_seconds=6.0) == pytest.approx(2.0)
    assert remaining_s(rows[:1], 100) is None and remaining_s([], 0) is None
    assert [duration(s) for s in (7.2, 200, 7500)] == ["7 s", "3 min 20 s", "2 h 05 min"]


def test_a_folder_is_followed_through_a_crash_and_whatever_is_in_it(
    tmp_path: Path, span_recipe: Path
) -> None:
    watch = RunWatch(tmp_path / "run")
    assert not watch.poll() and watch.state == "new"
    run = workbench.start(span_recipe, out=tmp_path / "run")
    for record in run:
        if record.step >= 18:
            break
    assert watch.poll() and watch.records == run.folder.records() and watch.state == "stopped"
    assert not watch.poll()
    list(workbench.start(span_recipe, out=tmp_path / "run"))
    assert watch.poll() and watch.records == run.folder.records()
    assert (watch.state, watch.step, watch.steps) == ("done", 20, 20)
    count = len(watch.records)
    with (tmp_path / "run" / RECORDS).open("ab") as file:
        file.write(b'[1]\nnull\n{"kind": "train"}\n{"kind": "train", "step": 1, "lr": "x"}\n\xff\n')
        file.write(b'{"kind": "train", "step": 2, "readings": {"span": 3}}\n{"kind": "tra')
    assert watch.poll() and len(watch.records) == count
    (tmp_path / "run" / STATUS).write_text(json.dumps({"state": "running", "pid": 1, "step": "x"}))
    watch.poll()
    # nobody trains there, whatever it says
    assert watch.state == "lost" and "last checkpoint" in watch.message
    (tmp_path / "run" / STATUS).write_text(json.dumps({"state": "failed", "message": EVIL}))
    watch.poll()
    assert "<script" not in headline(watch) and "&lt;script&gt;" in headline(watch)


def test_curves_show_the_limit_and_the_spans_of_each_layer(
    tmp_path: Path, span_recipe: Path
) -> None:
    run = workbench.start(span_recipe, out=tmp_path / "run")
    list(run)
    records = run.folder.records()
    fig = curves.training(records, limit=1e6)
    by_name = {trace.name: trace for trace in fig.data if trace.mode == "lines"}
    assert np.asarray(by_name["limit"].y).tolist() == [1e6, 1e6]
    last = records[-1]["step"], run.folder.records("train")[-1]["readings"]["span"]
    for layer in range(2):
        line = by_name[f"layer {layer + 1}"]
        assert line.line.color == layer_colour(layer)
        assert (line.x[-1], line.y[-1]) == pytest.approx((last[0], np.mean(last[1][layer])))
    # as many traces before the first record as after it: the figure on the page stays the same
    before = curves.training([], limit=1e6, span_layers=2)
    assert [t.type for t in before.data] == [t.type for t in fig.data]
    assert len(curves.training(records, span_layers=0).data) == 5
    null = [{**r, "loss_nats": None} if r["kind"] == "train" else r for r in records]
    assert "Validation reaches" in curves.training(null).layout.title.text


def test_few_samples_of_many_are_shown_still() -> None:
    rows = [{"step": i, "prompt": "a", "text": f"{EVIL}{i}", "bits": 2.0} for i in range(50)]
    shown = passages(rows)
    assert len(shown) == MOST and shown[0].given == 1
    assert "update 0:" in shown[0].title and "update 49:" in shown[-1].title
    assert passages([]) == []


# --- the view ------------------------------------------------------------------------------------


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if somebody looked; what was started ends with the test."""
    monkeypatch.setattr(view_of_training, "attended", lambda: True)
    yield
    for child in view_of_training._children:
        child.kill()
        child.wait()
    view_of_training._children.clear()


def until(view: Training, said: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 180
    while not said():
        assert time.monotonic() < deadline, view.watch.status
        view.refresh()
        time.sleep(0.05)


def possible(view: Training) -> set[str]:
    return {name for name, button in view.buttons.items() if not button.disabled}


def test_start_pause_continue_stop_and_a_new_jupyter_kernel(tmp_path: Path, page: None) -> None:
    text = write_text(tmp_path / "text.txt")
    asked = write_recipe(tmp_path / "tiny.yaml", text, SPAN, steps=3000, log_every=5)
    few = samples.SampleSettings(every=10, length=12)
    view = Training(str(asked), {"train.seed": 5}, out=tmp_path / "runs" / "tiny", samples=few)
    view.live()
    assert possible(view) == {"Start"} and view.fold.selected_index == 0
    assert "press Start" in view.summary()
    view.buttons["Start"].click()
    assert view.watch.state == "starting" and possible(view) == set()
    until(view, lambda: len(view.watch.records) > 4 and view.watch.samples)
    assert possible(view) == {"Pause", "Stop"}
    assert view.view.figure is not None and "left" in view.view.head.value
    assert "bits per character" in view.view.text.value
    points = len(view.view.figure.data[0].x)
    until(view, lambda: len(view.view.figure.data[0].x) > points)

    view.buttons["Pause"].click()
    until(view, lambda: view.watch.state == "paused")
    assert possible(view) == {"Continue", "Stop"}
    step = view.watch.step
    # a Jupyter kernel that was started again knows nothing but the notebook's parameters
    child = view_of_training._children.pop()
    other = Training(str(asked), {"train.seed": 5}, out=tmp_path / "runs" / "else", samples=few)
    other.live()
    assert other.folder.path == tmp_path / "runs" / "tiny" and other.watch.state == "paused"
    assert other.runs.value == str(tmp_path / "runs" / "tiny") and other.watch.step == step
    other.buttons["Continue"].click()
    until(other, lambda: other.watch.state == "running" and other.watch.step > step)
    other.buttons["Stop"].click()
    until(other, lambda: other.watch.state == "stopped")
    assert child.wait(30) == 0 and possible(other) == {"Continue"}
    kept_figures = {p.stem for p in (other.folder.path / "figures").iterdir()}
    assert kept_figures == {"training", "training_samples"}
    other.buttons["Continue"].click()
    stopped = other.watch.step
    until(other, lambda: other.watch.state == "running" and other.watch.step > stopped)
    other.buttons["Stop"].click()
    until(other, lambda: other.watch.state == "stopped")
    assert RunFolder(other.folder.path).recipe().train.seed == 5


def test_what_speaks_against_a_start_is_said(
    tmp_path: Path, span_recipe: Path, page: None, delta_recipe: Path
) -> None:
    list(workbench.start(span_recipe, {"train.steps": 2}, out=tmp_path / "runs" / "tiny-span"))
    view = Training(str(span_recipe), out=tmp_path / "runs" / "tiny-span")
    view.live()
    assert view.watch.state == "done" and possible(view) == set()
    view.runs.value = view_of_training.NEW
    assert view.out.value == str(tmp_path / "runs" / "tiny-span-2") and possible(view) == {"Start"}
    view.out.value = str(tmp_path / "runs" / "tiny-span")
    view.buttons["Start"].click()
    assert "holds the run of another recipe" in view.said.value
    assert not view_of_training._children
    (tmp_path / "text.txt").unlink()
    view.out.value = str(tmp_path / "runs" / "another")
    view.buttons["Start"].click()
    until(view, lambda: view.watch.state == "failed")
    assert "text.txt" in view.view.head.value and possible(view) == {"Start"}
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        Training("span-python-tiny", {"train.stepz": 3}, out=tmp_path / "x")


def test_runs_in_training_come_first(tmp_path: Path, span_recipe: Path) -> None:
    for name in ("old", "new"):
        list(workbench.start(span_recipe, {"train.steps": 2}, out=tmp_path / "runs" / name))
    mine = workbench.start(span_recipe, out=tmp_path / "runs" / "busy")
    next(iter(mine))
    assert runs_near(tmp_path / "runs" / "x")[0].name == "busy"
    assert {p.name for p in runs_near(tmp_path / "runs" / "x")} == {"old", "new", "busy"}


# --- unattended ----------------------------------------------------------------------------------


def executed(file: Path, engine: str | None, **values: Any) -> Any:
    papermill.execute_notebook(
        demo.BOOKS / "train.ipynb", file, values, engine_name=engine, progress_bar=False
    )
    return nbformat.read(file, 4)


def figures(nb: Any) -> list[dict[str, Any]]:
    outputs = [o for c in nb.cells for o in c.get("outputs", [])]
    return [o["data"][PLOTLY_MIME] for o in outputs if PLOTLY_MIME in o.get("data", {})]


@pytest.mark.parametrize("engine", ["workbench", None])
def test_the_notebook_trains_to_the_end_where_nobody_looks(
    tmp_path: Path, span_recipe: Path, engine: str | None
) -> None:
    """The same numbers as from Python alone, with samples, under either engine of papermill."""
    plain = workbench.start(span_recipe, out=tmp_path / "plain")
    list(plain)
    run = tmp_path / "run"
    values = {"recipe": str(span_recipe), "out": str(run), "sample_every": 4, "prompt": "def "}
    nb = executed(tmp_path / "executed.ipynb", engine, **values, sample_length=15)
    losses = [[r["loss_nats"] for r in f.records("train")] for f in (plain.folder, RunFolder(run))]
    assert losses[0] == losses[1] and len(losses[0]) == 10
    rows = samples.read(run)
    assert [r["step"] for r in rows] == [4, 8, 12, 16, 20] and rows[0]["prompt"] == "def "
    texts = [o for c in nb.cells for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
    assert sum("after update 20:" in t["data"]["text/html"] for t in texts) == 1
    assert {p.stem for p in (run / "figures").iterdir()} == {"training", "training_samples"}
    names = [trace.get("name") for trace in figures(nb)[-1]["data"]]
    assert {"training", "validation", "limit", "layer 1", "layer 2"} <= set(names)
    assert (tmp_path / "executed.ipynb").stat().st_size < 500_000
    assert not (run / CONTROL).exists() and not (run / "training.log").exists()
    assert kept.records(RunFolder(run)) == RunFolder(run).records()


def test_a_run_that_fails_leaves_its_error_its_curves_and_a_folder_to_go_on_from(
    tmp_path: Path, span_recipe: Path
) -> None:
    run, out = RunFolder(tmp_path / "run"), tmp_path / "executed.ipynb"
    # weights grow by orders of magnitude in every update, beyond float32 after some
    values = {
        "recipe": str(span_recipe),
        "out": str(run.path),
        "overrides": {
            "train.steps": 400,
            "train.checkpoint_every": 2,
            "train.log_every": 1,
            "train.optimizer": {"kind": "sgd", "lr": 1.0e4},
        },
    }
    with pytest.raises(PapermillExecutionError, match="NonFiniteLoss"):
        executed(out, "workbench", **values)
    nb = nbformat.read(out, 4)
    errors = [o for c in nb.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert errors[0].ename == "NonFiniteLoss" and "learning rate" in errors[0].evalue
    assert len(figures(nb)) == 1 and run.status()["state"] == "failed"
    assert len(run.records("train")) >= 2
    again = workbench.start(str(run.path / "recipe.yaml"), out=run.path)
    assert again.step >= 2


def test_a_process_that_was_started_behind_the_notebook_is_seen_by_its_words(
    tmp_path: Path, page: None, span_recipe: Path
) -> None:
    child: subprocess.Popen[bytes] = background.begin(load_recipe(span_recipe), tmp_path / "run")
    view_of_training._children.append(child)
    watch = RunWatch(tmp_path / "run", child)
    watch.poll()
    assert watch.state == "starting"
    assert child.wait(120) == 0
    watch.poll()
    assert watch.state == "done" and watch.limit is not None and watch.message == ""
