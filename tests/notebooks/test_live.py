"""The live figure: one output in batch, a widget in JupyterLab, never more than asked for."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest

from workbench.plots import live
from workbench.plots.style import WIDTH, finish
from workbench.train.records import EvalRecord, TrainRecord, to_json
from workbench.widgets.plot import Plot


class Page:
    """What `display` would have put on the page."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []

    def display(self, data: Any, **_: Any) -> Page:
        self.outputs.append(data)
        return self

    def update(self, data: Any, **_: Any) -> None:
        self.outputs[-1] = data


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    page = Page()
    monkeypatch.setattr(live, "display", page.display)
    return page


def line(*y: float) -> go.Figure:
    return go.Figure(go.Scatter(y=list(y)), layout={"title": {"text": f"{len(y)} points"}})


def test_batch_keeps_one_output_with_the_last_state(page: Page) -> None:
    figure = live.LiveFigure(line(1.0), every_s=0, batch=True).show()
    assert figure.update(lambda: line(1.0, 2.0))
    assert len(page.outputs) == 1
    shown = page.outputs[0][live.PLOTLY_MIME]
    assert list(shown["data"][0]["y"]) == [1.0, 2.0]
    assert shown["config"]["showSendToCloud"] is False
    assert page.outputs[0]["text/plain"] == "plotly figure: 2 points"


def test_lab_changes_the_widget_in_place(page: Page) -> None:
    figure = live.LiveFigure(line(1.0), every_s=0, batch=False).show()
    widget = page.outputs[0]
    assert isinstance(widget, Plot) and '"showSendToCloud": false' in widget.drawn
    figure.update(lambda: line(1.0, 2.0, 3.0))
    assert list(widget.data[0].y) == [1.0, 2.0, 3.0]
    assert widget.layout.title.text == "3 points"


def test_the_widgets_axes_follow_the_data_and_the_reader(page: Page) -> None:
    def windowed(*y: float) -> go.Figure:
        return line(*y).update_yaxes(range=[0, 1], rangemode="tozero")

    figure = live.LiveFigure(windowed(1.0), every_s=0, batch=False)
    assert figure.figure.layout.yaxis.range is None
    assert figure.figure.layout.yaxis.rangemode == "tozero"
    before = json.loads(figure.figure.drawn)
    figure.update(lambda: windowed(1.0, 2.0))
    assert figure.figure.layout.yaxis.range is None
    # the same mark: whatever the reader zoomed into stays
    assert json.loads(figure.figure.drawn)["zoom"] == before["zoom"]


def test_a_figure_on_the_page_has_both_of_its_sizes() -> None:
    figure = finish(line(1.0), "Title", height=333)
    layout = live.bundle(figure)[live.PLOTLY_MIME]["layout"]
    assert (layout["width"], layout["height"]) == (WIDTH, 333)
    figure.update_layout(width=400)
    assert live.bundle(figure)[live.PLOTLY_MIME]["layout"]["width"] == 400


def test_updates_are_throttled_unless_forced(page: Page) -> None:
    figure = live.LiveFigure(line(1.0), every_s=3600, batch=True).show()
    assert figure.update(lambda: line(1.0, 2.0))
    assert not figure.update(lambda: line(9.0))
    assert figure.update(lambda: line(9.0), force=True)


def test_training_view_starts_from_the_folder_and_ends_with_the_last_record(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_BATCH", "1")
    shared = {"tokens": 1, "elapsed_s": 1.0}
    rest = {"lr": 0.1, "grad_norm": 1.0, "tokens_per_s": 5.0, "memory_bytes": 0}
    first = TrainRecord(step=10, loss_nats=3.0, **shared, **rest)
    before = json.loads(to_json(first))
    run: Any = SimpleNamespace(
        corpus=SimpleNamespace(unit="character"),
        folder=SimpleNamespace(records=lambda: [before]),
        recipe=SimpleNamespace(name="tiny", train=SimpleNamespace(steps=40)),
        step=10,
    )
    with pytest.raises(KeyboardInterrupt), live.LiveTraining(run, every_s=3600) as view:
        view.update(TrainRecord(step=20, loss_nats=2.0, **shared, **rest))
        held = {"split": "valid", "method": "carried", "context_len": 8}
        view.update(EvalRecord(step=20, loss_nats=1.5, **shared, **held))
        assert view.bar.n == 20 and "valid=2.164" in view.bar.postfix
        raise KeyboardInterrupt
    data = page.outputs[0][live.PLOTLY_MIME]["data"]
    assert len(data[0]["x"]) == 2 or data[0]["x"]["bdata"]
    assert "2.164 bits per character at step 20" in page.outputs[0]["text/plain"]
    with live.LiveTraining(run, every_s=3600) as view:
        view.update(TrainRecord(step=20, loss_nats=2.0, **shared, **rest))
        # processes that died have begun again at step 10, whose record is there already
        view.update(first)
        view.update(TrainRecord(step=15, loss_nats=2.5, **shared, **rest))
        assert [row["step"] for row in view.records] == [10, 15] and view.bar.n == 15
