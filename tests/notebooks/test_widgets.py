"""What live views are made of: tokens to click, figures that change in place, panels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import pytest

from workbench.train.folder import RunFolder
from workbench.widgets import panel
from workbench.widgets.library import library
from workbench.widgets.panel import Panel
from workbench.widgets.plot import Plot
from workbench.widgets.tokens import MOST_TOKENS, Tokens


def test_tokens_say_where_lines_break_and_hide_nothing() -> None:
    text = Tokens(["a", "␣", "↵", "<b>", "\x1b", "\\xe2"], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert text.symbols == ["a", " ", "↵", "<b>", "␛", "\\xe2"]
    assert text.breaks == [2] and text.values[-1] == 5.0


def test_a_chosen_token_is_told() -> None:
    seen: list[int] = []
    text = Tokens(["a", "b", "c"])
    text.on_select(seen.append)
    text.selected = 2
    text.put(["a", "b"])  # the chosen one is gone
    text.selected = 1
    assert seen == [2, 1]


def test_tokens_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 values for 2 tokens"):
        Tokens(["a", "b"], [1.0])
    with pytest.raises(ValueError, match="got 3 tips for 2 tokens"):
        Tokens(["a", "b"], tips=["x", "y", "z"])
    with pytest.raises(ValueError, match="show a passage"):
        Tokens(["a"] * (MOST_TOKENS + 1))


def line(values: list[float], title: str, **trace: Any) -> go.Figure:
    fig = go.Figure(go.Scatter(y=np.asarray(values, dtype=np.float32), **trace))
    fig.add_heatmap(z=np.outer(values, values))
    return fig.update_layout(title_text=title)


def on_the_page(plot: Plot) -> dict[str, Any]:
    """What the browser is told: a figure, how to show it, how often its zoom was forgotten."""
    told: dict[str, Any] = json.loads(plot.drawn)
    return told


def test_the_page_gets_the_figure_and_no_upload_button() -> None:
    fig = line([1, 2, 3], "before", name="old")
    told = on_the_page(Plot(fig))
    assert told["figure"] == json.loads(fig.to_json())
    assert told["config"]["showSendToCloud"] is False


def test_drawing_another_figure_tells_all_of_it() -> None:
    plot, new = Plot(line([1, 2, 3], "before", text=["x", "y", "z"])), go.Figure(go.Bar(y=[1]))
    plot.draw(new)
    assert on_the_page(plot)["figure"] == json.loads(new.to_json())
    assert [trace.type for trace in plot.data] == ["bar"] and plot.layout.title.text is None


def test_changes_of_a_batch_are_one_message() -> None:
    plot, told = Plot(line([1, 2], "before")), []
    plot.observe(lambda change: told.append(change["new"]), "drawn")
    with plot.batch_update() as fig:
        fig.data[0].y = [5, 6, 7]
        plot.layout.title.text = "after"
    assert len(told) == 1
    figure = json.loads(told[0])["figure"]
    assert figure["data"][0]["y"] == [5, 6, 7] and figure["layout"]["title"]["text"] == "after"


def test_a_zoom_is_kept_unless_the_axes_mean_something_else() -> None:
    plot = Plot(line([1], "one"))
    before = on_the_page(plot)["zoom"]
    plot.draw(line([2], "two"))
    assert on_the_page(plot)["zoom"] == before
    plot.draw(line([3], "three"), reset=True)
    assert on_the_page(plot)["zoom"] != before


def test_a_clicked_point_is_told_to_who_asked_for_its_trace() -> None:
    plot, seen = Plot(line([1, 2], "two")), []
    plot.on_click(1, lambda x, y: seen.append((x, y)))
    plot.clicked = {"trace": 0, "x": 1, "y": 2, "count": 1}
    plot.clicked = {"trace": 1, "x": 3, "y": 4, "count": 2}
    plot.clicked = {"trace": 1, "x": 3, "y": 4, "count": 3}  # once more on the same
    assert seen == [(3, 4), (3, 4)]


def test_a_map_with_gaps_is_json() -> None:
    z = np.array([[0.5, np.nan], [3.0, np.inf]])
    plot = Plot(go.Figure(go.Heatmap(z=z)))
    sent = json.dumps(on_the_page(plot), allow_nan=False)
    plot.draw(go.Figure(go.Heatmap(z=[[1.0, float("nan")]])))
    assert "bdata" in sent and on_the_page(plot)["figure"]["data"][0]["z"] == [[1.0, None]]


def test_plotlys_program_comes_once() -> None:
    plots = [Plot(line([n], "n")) for n in (1.0, 2.0)]
    assert len({plot.library for plot in plots}) == 1
    assert plots[0].library == f"IPY_MODEL_{library().model_id}"
    assert max(len(plot.drawn) for plot in plots) < 20_000 < len(library().source)
    library().close()  # as whoever closes all widgets does
    assert Plot(line([3], "n")).library != plots[0].library


class Two(Panel):
    def stills(self) -> dict[str, go.Figure]:
        return {"one": line([1], "one"), "two": line([2], "two")}

    def live(self) -> ipywidgets.Widget:
        return ipywidgets.Label("alive")


@pytest.mark.parametrize("batch", [True, False])
def test_a_panel_is_alive_or_still(
    batch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(panel, "in_batch", lambda: batch)
    monkeypatch.setattr(panel, "display", shown.append)
    monkeypatch.setattr(panel.notebook, "show", lambda fig: shown.append(fig.layout.title.text))
    Two().show(RunFolder(tmp_path))
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["one.json", "two.json"]
    if batch:
        assert shown == ["one", "two"]
    else:
        assert [type(x) for x in shown] == [ipywidgets.Label]
