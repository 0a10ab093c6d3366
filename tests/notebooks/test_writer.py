"""The writer and the sweep as panels: they show what the model says, whatever is pressed."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import nbformat
import numpy as np
import papermill
import pytest
import torch
from small_recipes import SPAN, write_recipe, write_text
from test_plots import numbers

import workbench
from workbench import demo, notebook, retrieval, score
from workbench.carry import nbytes
from workbench.models.mixers.base import Limits
from workbench.plots import writing as pictures
from workbench.plots.retrieval import Example, task
from workbench.reading import open_source, reading
from workbench.train.folder import RunFolder
from workbench.widgets.retrieval import SweepPanel
from workbench.widgets.writing import Controls, Writer
from workbench.writing import Ask

PLOTLY = "application/vnd.plotly.v1+json"
TINY = "retrieval-update-tiny"


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> notebook.View:
    folder = tmp_path_factory.mktemp("writer")
    recipe = write_recipe(folder / "s.yaml", write_text(folder / "t.txt"), SPAN)
    run = workbench.start(recipe, {"train.steps": 2}, out=folder / "run")
    list(run)
    return notebook.open_run(run.folder.path)


def wait(until: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def widgets_of(root: ipywidgets.Widget, kind: type[Any]) -> list[Any]:
    found = [root] if isinstance(root, kind) else []
    for child in getattr(root, "children", ()):
        found += widgets_of(child, kind)
    return found


def pressed(root: ipywidgets.Widget, name: str) -> ipywidgets.Button:
    button = next(b for b in widgets_of(root, ipywidgets.Button) if b.description == name)
    assert not button.disabled
    button.click()
    return button


def test_the_page_shows_what_a_score_gives(view: notebook.View) -> None:
    writer = Writer(view, Ask("def ", 30, seed=3))
    writer.live()
    assert writer._page is not None
    writer.write(writer._first)
    text = writer._page.text
    ids = writer.writing.ids
    assert len(text.symbols) == len(ids) == 34 and "".join(text.symbols[:4]) == "def "
    whole = score(view, ids[4:], before=ids[:4], alternatives=5)
    bits = (whole.nll_nats / np.log(2)).tolist()
    assert text.values == pytest.approx([0.0] * 4 + bits, abs=1e-5)
    assert whole.alternative_log_probs is not None
    for at, nats in enumerate(whole.nll_nats.tolist(), 4):
        assert f"{np.exp(-nats):.2%}, {nats / np.log(2):.2f} bits" in text.tips[at]
    best = whole.alternative_log_probs.exp()
    shares = numbers(json.loads(writer.rivals_figure(20).to_json())["data"][0]["x"])
    assert shares[:5] == pytest.approx(best[16].tolist(), abs=1e-5)
    # choosing a token draws its rivals
    text.selected = 20
    assert np.asarray(writer._page.rivals.figure.data[0].x)[:5] == pytest.approx(
        best[16].numpy(), abs=1e-5
    )
    mean = sum(bits) / len(bits)
    assert text.title == f"30 tokens, {mean:.2f} bits per character under the model itself"


def test_the_memory_that_is_drawn_is_that_of_the_carry(view: notebook.View) -> None:
    writer = Writer(view, Ask("def ", 12, seed=3))
    writer.write(writer._first)
    fig = json.loads(writer.past_figure().to_json())
    drawn = {trace["name"]: numbers(trace["y"]) for trace in fig["data"][-2:]}
    config = reading(open_source(view))
    limits = Limits(config.context_len, "beyond_self", constant_weights=True)
    ids = torch.tensor(writer.writing.ids)
    for i in (0, 11):
        with torch.no_grad():
            _, carry = view.model(ids[None, : 4 + i], view.model.initial_carry(1, limits))
        assert drawn["this model"][i] == nbytes(carry) > 0
    kept = writer.writing.written[-1]
    told = f"The past takes {pictures.size(kept.carry_bytes)}, in full attention "
    assert fig["layout"]["title"]["text"] == told + pictures.size(kept.full_bytes)
    assert pictures.size(999) == "999 B" and pictures.size(36_900) == "36.9 kB"


def test_stop_and_go_on_by_buttons(view: notebook.View) -> None:
    writer = Writer(view, Ask("def ", 100_000, seed=3))
    box = writer.live()
    assert writer._page is not None
    pressed(box, "Write")
    wait(lambda: len(writer.writing.written) > 5)
    assert writer._page.write.disabled and writer._page.on.disabled
    pressed(box, "Stop")
    wait(lambda: not writer._page.write.disabled)
    first = list(writer.writing.ids)
    writer._page.controls.length.value = 7
    pressed(box, "Go on")
    wait(lambda: len(writer.writing.ids) == len(first) + 7)
    wait(lambda: not writer._page.write.disabled)
    assert writer.writing.ids[: len(first)] == first
    assert "7 tokens" in writer._page.message.value and "carried" in writer._page.message.value
    assert len(writer._page.text.symbols) == min(5000, len(writer.writing.ids))


def test_what_is_wrong_is_said_and_is_text(view: notebook.View) -> None:
    writer = Writer(view, Ask("def ", 5, seed=3))
    box = writer.live()
    assert writer._page is not None
    page = writer._page
    page.controls.temperature.value = -1
    pressed(box, "Write")
    wait(lambda: "got temperature -1" in page.message.value)
    page.controls.temperature.value = 1
    page.say("got <script>", False, True)
    assert "got &lt;script&gt;" in page.message.value and "<script" not in page.message.value
    page.controls.top_p.value = 7
    pressed(box, "Write")
    wait(lambda: "got top_p 7" in page.message.value)
    page.controls.top_p.value = 1
    pressed(box, "Write")
    wait(lambda: len(writer.writing.written) == 5)


def test_inputs_say_what_parameters_do() -> None:
    for ask in (Ask("a\nb", 7, 0.5, 3, 0.9, "\n\n", 8), Ask()):
        assert Controls(ask).ask == ask._replace(stop=ask.stop or "")


def test_in_batch_the_same_parameters_give_stills(
    tmp_path: Path, view: notebook.View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_BATCH", "1")
    values = {"run": str(view.folder.path), "length": 20, "text_len": 60, "tune_tokens": 120}
    values |= {"temperatures": [1.0], "thetas": [0.3], "lams": [0.1], "window": 30, "seed": 6}
    book, out = demo.BOOKS / "generate.ipynb", tmp_path / "executed.ipynb"
    papermill.execute_notebook(book, out, values, progress_bar=False, store_widget_state=False)
    outputs = [o for c in nbformat.read(out, 4).cells for o in c.get("outputs", [])]
    figures = [o.data[PLOTLY] for o in outputs if PLOTLY in o.get("data", {})]
    assert len(figures) == 6 and out.stat().st_size < 1_000_000
    titles = [fig["layout"]["title"]["text"] for fig in figures]
    assert titles[0].startswith("The past takes") and "rank" in titles[1] + "rank"
    page = next(o.data["text/html"] for o in outputs if "coloured-text" in str(o.get("data")))
    text = workbench.generate(view, "def ", length=20, temperature=0.8, seed=6).text
    plain = re.sub(r"<[^>]*>", "", page.partition("<pre")[2].partition(">")[2])
    for mark in ("↵\n", "&lt;", "&gt;", "&amp;"):
        plain = plain.replace(mark, {"↵\n": "\n", "&lt;": "<", "&gt;": ">", "&amp;": "&"}[mark])
    assert plain == "def " + text
    costs = [float(b) for b in re.findall(r"%, (\d+\.\d\d) bits, rank", page)]
    scored = score(view, "def " + text)
    assert costs == pytest.approx((scored.nll_nats[3:] / np.log(2)).tolist(), abs=0.006)
    kept = json.loads((view.folder.path / "figures" / "written.json").read_text("utf-8"))
    assert kept["kind"] == "passages" and "".join(kept["passages"][0]["symbols"][:4]) == "def "


# retrieval


def test_the_task_is_drawn_as_it_is() -> None:
    for replace in (False, True):
        example = retrieval.example(replace)
        assert len(example.keys) == len(example.values) == (16 if replace else 8)
        assert (len(example.written) > 1) is replace
        fig = task({"it": example})
        assert [t.name for t in fig.data if t.showlegend] == [t.name for t in fig.data]
        boxes = {trace.name: trace for trace in fig.data}
        latest = dict(zip(example.keys, example.values, strict=True))
        answer = boxes["its last value, the answer"]
        at = max(answer.x)
        (text,) = (t for x, t in zip(answer.x, answer.text, strict=True) if x == at)
        assert text == f"v{latest[example.query] + 1}"
        assert boxes["the question"].text == (f"k{example.query + 1} ?",)
        written = {
            (x, y): t
            for name, trace in boxes.items()
            if name != "the question"
            for x, y, t in zip(trace.x, trace.y, trace.text, strict=True)
            if x != at
        }
        assert [written[i + 1, 1] for i in range(len(example.keys))] == [
            f"k{k + 1}" for k in example.keys
        ]
        assert [written[i + 1, 0] for i in range(len(example.keys))] == [
            f"v{v + 1}" for v in example.values
        ]
    assert (
        "Only the last of 3 values of k3"
        in task({"a": Example([2, 2, 2], [0, 1, 2], 2)}).layout.title.text
    )


def sweep(folder: Path, **more: Any) -> retrieval.Sweep:
    changes = {"train.steps": 6, "train.log_every": 1, "train.eval_every": 2, **more}
    return retrieval.Sweep({"tiny": TINY}, [4, 5], folder, changes)


def test_a_sweep_is_stopped_by_its_button_and_goes_on(tmp_path: Path) -> None:
    panel = SweepPanel(sweep(tmp_path, **{"train.steps": 3000, "train.stop": None}), "it")
    box = panel.live()
    assert panel._page is not None
    page = panel._page
    assert "0 of 2 points" in page.message.value
    pressed(box, "Continue")
    wait(lambda: panel._at_work is not None and len(panel._at_work[1]) > 4)
    pressed(box, "Stop")
    wait(lambda: not page.go.disabled)
    (point,) = panel.sweep.points
    assert point.reason == "stopped" and 0 < point.steps < 3000
    assert "Continue goes on from there" in page.message.value
    status = RunFolder(tmp_path / TINY / "004").status()
    assert status["state"] == "stopped" and status["step"] == point.steps
    # another session: what was stopped is no point yet, and goes on from its checkpoint
    again = sweep(tmp_path, **{"train.steps": 3000, "train.stop": None})
    assert again.find() == []
    steps: list[int] = []

    def see(recipe: Any, record: Any) -> bool:
        steps.append(record.step)
        return False

    assert [p.reason for p in again.run(see)] == ["stopped"]
    assert steps[0] >= point.steps


def test_a_cell_that_awaits_a_sweep_is_interrupted_and_keeps_what_was_learned(
    tmp_path: Path,
) -> None:
    panel = SweepPanel(sweep(tmp_path, **{"train.steps": 3000, "train.stop": None}), "it")
    panel.live()
    assert panel._page is not None
    page = panel._page

    async def cell() -> None:
        task = asyncio.create_task(panel.run())
        # the loop that a Jupyter kernel hears its buttons by goes on
        while panel._at_work is None or len(panel._at_work[1]) < 4:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cell())
    assert [point.reason for point in panel.sweep.points] == ["stopped"]
    assert "Continue goes on from there" in page.message.value and not page.go.disabled


def test_a_sweep_of_nothing_is_done(tmp_path: Path) -> None:
    panel = SweepPanel(retrieval.Sweep({}, [5], tmp_path), "it")
    panel.live()
    assert panel.train() == [] and panel._page is not None
    assert "all points are done" in panel._page.message.value


def test_done_points_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = SweepPanel(sweep(tmp_path), "it")
    panel.live()
    points = panel.train()
    assert [(p.n_pairs, p.steps, p.reason) for p in points] == [(4, 6, "steps"), (5, 6, "steps")]
    assert panel._page is not None and panel._page.go.disabled
    assert "all points are done" in panel._page.message.value
    curve = panel._page.curves.figure.data[0]
    assert list(curve.x) == [4, 5]
    assert np.asarray(curve.y) == pytest.approx([p.loss for p in points], rel=1e-6)
    assert panel._page.training.figure.layout.title.text.startswith(
        "tiny at 5 pairs: lowest validation"
    )
    rows = RunFolder(tmp_path / TINY / "005").records("train")
    drawn = np.asarray(panel._page.training.figure.data[0].y)
    assert drawn == pytest.approx([row["loss_nats"] for row in rows], rel=1e-6)
    monkeypatch.setattr(
        "workbench.train.trainer.Trainer.update", lambda trainer: pytest.fail("trained again")
    )
    later = SweepPanel(sweep(tmp_path), "it")
    assert later.sweep.points == points and list(later.curves.data[0].x) == [4, 5]
    assert np.asarray(later.training.data[0].y) == pytest.approx(drawn, rel=1e-6)
    # of other updates, they are other points
    assert retrieval.Sweep({"tiny": TINY}, [4], tmp_path, {"train.steps": 7}).find() == []


def test_an_error_is_said_and_lets_train_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / TINY / "004").mkdir(parents=True)
    (tmp_path / TINY / "004" / "other.txt").write_text("not a run")
    panel = SweepPanel(sweep(tmp_path), "it")
    panel.live()
    assert panel._page is not None and panel.train() == []
    assert "holds no run" in panel._page.message.value and not panel._page.go.disabled
    (tmp_path / TINY / "004" / "other.txt").unlink()
    thread = threading.Thread(target=panel.train)
    thread.start()
    thread.join(60)
    assert [p.n_pairs for p in panel.sweep.points] == [4, 5]
