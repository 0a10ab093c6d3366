"""A run does what others ask of it by the file in its folder, and is the same run for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash.compare import differences
from notebooks.small_recipes import SPAN, write_recipe, write_text

import workbench
from workbench.train.control import ASKED, CONTROL, Control, ask, stop_reason
from workbench.train.folder import RunFolder


def recipe(tmp_path: Path, steps: int = 60) -> Path:
    text = write_text(tmp_path / "text.txt")
    return write_recipe(tmp_path / "tiny.yaml", text, SPAN, steps=steps)


def until(said: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_paused_run_keeps_still_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    undisturbed = workbench.start(asked, out=tmp_path / "undisturbed")
    list(undisturbed)
    run = workbench.start(asked, out=tmp_path / "run")
    folder = RunFolder(tmp_path / "run", writes=False)
    seen: list[Any] = []

    def someone() -> None:
        until(lambda: folder.status().get("state") == "paused")
        before = len(folder.records()), folder.status()["step"], time.monotonic()
        time.sleep(0.5)
        after = len(folder.records()), folder.status()["step"], time.monotonic()
        seen.extend([before, after, folder.records("checkpoint")[-1]["step"]])
        ask(folder.path, "continue")

    other = threading.Thread(target=someone)
    other.start()
    began = time.monotonic()
    for record in run:
        if record.kind == "train" and record.step == 8:
            ask(folder.path, "pause")
            time.sleep(0.25)
    other.join()
    (records, step, begin), (still, same, end), saved = seen
    assert (records, step) == (still, same) and saved == step < 60
    # the break is in nobody's time
    assert folder.records("done")[-1]["elapsed_s"] < time.monotonic() - began - (end - begin)
    assert differences(folder, undisturbed.folder) == []


def test_a_run_that_is_asked_to_stop_goes_on_exactly(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    undisturbed = workbench.start(asked, out=tmp_path / "undisturbed")
    list(undisturbed)
    run = workbench.start(asked, out=tmp_path / "run")
    for record in run:
        if record.kind == "train" and record.step == 8:
            ask(run.folder.path, "stop")
            time.sleep(0.25)
    status = run.folder.status()
    assert (status["state"], status["message"]) == ("stopped", "asked to stop")
    assert status["step"] == run.step < 60
    assert not (run.folder.path / CONTROL).exists()
    again = workbench.start(asked, out=tmp_path / "run")
    assert again.step == run.step
    list(again)
    assert differences(again.folder, undisturbed.folder) == []


@pytest.mark.parametrize("text", ['{"asked": "stop"}', "[", '"stop"', '{"asked": ["stop"]}'])
def test_what_was_asked_before_is_void(tmp_path: Path, text: str) -> None:
    asked = recipe(tmp_path, steps=4)
    list(workbench.start(asked, {"train.max_seconds": 1e-9}, out=tmp_path / "run"))
    (tmp_path / "run" / CONTROL).write_text(text)
    list(workbench.start(asked, {"train.max_seconds": None}, out=tmp_path / "run"))
    assert RunFolder(tmp_path / "run").status()["state"] == "done"


def test_words_that_are_none_say_nothing(tmp_path: Path) -> None:
    for text in ("", "{", "[]", "{}", '{"asked": "explode"}', '{"asked": 3}'):
        (tmp_path / CONTROL).write_text(text)
        assert Control(tmp_path, reads=True).told(2) == (2, False)
    ask(tmp_path, "stop")
    assert json.loads((tmp_path / CONTROL).read_text())["asked"] == "stop"
    assert Control(tmp_path, reads=True).told(15) == (ASKED, False)
    assert Control(tmp_path, reads=False).told(15) == (15, False)
    assert stop_reason(15) == "SIGTERM" and stop_reason(ASKED) == "asked to stop"
