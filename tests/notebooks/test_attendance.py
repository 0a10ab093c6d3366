"""Who looks on: a page with somebody before it, or nobody."""

from __future__ import annotations

from types import SimpleNamespace

import ipywidgets
import pytest

from workbench import attendance
from workbench.widgets.player import player


@pytest.mark.parametrize(
    ("kernel", "environment", "batch", "attended"),
    [
        (None, "", False, False),  # plain Python
        (SimpleNamespace(_allow_stdin=True), "", False, True),  # JupyterLab, VS Code
        (SimpleNamespace(_allow_stdin=False), "", True, False),  # papermill, nbconvert --execute
        (SimpleNamespace(), "", True, False),  # a Jupyter kernel that has run nothing
        (SimpleNamespace(_allow_stdin=True), "1", True, False),  # our engine
        (None, "1", True, False),
    ],
)
def test_who_looks_on(
    kernel: object,
    environment: str,
    batch: bool,
    attended: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKBENCH_BATCH", environment)
    shell = None if kernel is None else SimpleNamespace(kernel=kernel)
    monkeypatch.setattr(attendance, "get_ipython", lambda: shell)
    assert (attendance.in_batch(), attendance.attended()) == (batch, attended)


def test_a_player_begins_where_its_slider_stands() -> None:
    slider = ipywidgets.IntSlider(value=9, min=1, max=9)
    play = player(slider, "value", 1, 9, 200)
    assert (play.value, play.min, play.max, play.interval) == (9, 1, 9, 200)
    slider.value = 4
    assert play.value == 9, "a move is one message, not two"
    play.playing = True
    assert play.value == 4
