"""The training notebook with several processes: unattended to its end, and stopped."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.engines import papermill_engines
from small_recipes import DELTA, SPAN, write_recipe, write_text

from workbench import demo
from workbench.engine import WorkbenchEngine
from workbench.train.folder import LOG, RunFolder

PLOTLY = "application/vnd.plotly.v1+json"
BOOK = demo.BOOKS / "train.ipynb"


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])]


def test_two_processes_unattended(tmp_path: Path) -> None:
    papermill_engines.register("workbench", WorkbenchEngine)
    recipe = write_recipe(tmp_path / "two.yaml", write_text(tmp_path / "text.txt"), DELTA)
    run, out = RunFolder(tmp_path / "run"), tmp_path / "executed.ipynb"
    track = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    values = {"recipe": str(recipe), "out": str(run.path), "processes": 2, "track": track}
    papermill.execute_notebook(BOOK, out, values, engine_name="workbench", progress_bar=False)
    assert run.status()["state"] == "done" and run.status()["step"] == 20
    assert {row["processes"] for row in run.records("train")} == {2}
    shown = outputs(out)
    assert not [o for o in shown if o.output_type == "error" or o.get("name") == "stderr"]
    figures = [o.data[PLOTLY] for o in shown if PLOTLY in o.get("data", {})]
    # the live one ends as the still one from the run folder
    assert len(figures) == 2 and figures[0]["data"] == figures[1]["data"]
    assert (run.path / LOG).is_file()
    assert len(list(run.path.glob("tensorboard/*"))) == len(track), "one process tracks"
    with pytest.raises(papermill.PapermillExecutionError, match="3 processes cannot share"):
        papermill.execute_notebook(
            BOOK, out, {**values, "processes": 3}, engine_name="workbench", progress_bar=False
        )


def test_sigterm_reaches_every_process(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    recipe = write_recipe(tmp_path / "long.yaml", text, SPAN, steps=1_000_000, eval_every=999_999)
    run, out = RunFolder(tmp_path / "run"), tmp_path / "executed.ipynb"
    code = (
        "import sys, papermill; from papermill.engines import papermill_engines as e;"
        "from workbench.engine import WorkbenchEngine; e.register('workbench', WorkbenchEngine);"
        "papermill.execute_notebook(sys.argv[1], sys.argv[2], engine_name='workbench',"
        " parameters={'recipe': sys.argv[3], 'out': sys.argv[4], 'processes': 2},"
        " progress_bar=False)"
    )
    command = [sys.executable, "-c", code, *map(str, (BOOK, out, recipe, run.path))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    while len(run.records("train")) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    status = run.status()
    assert status["state"] == "stopped" and run.records()[-1]["reason"] == "interrupted"
    assert run.load_model().n_parameters > 0
    assert nbformat.read(out, 4).metadata.papermill["stopped_by"] == "SIGTERM"
    told = "".join(o.get("text", "") for o in nbformat.read(out, 4).cells[-1].outputs)
    assert f"stopped at step {status['step']:,}" in told
    assert sum(PLOTLY in o.get("data", {}) for o in outputs(out)) == 2
