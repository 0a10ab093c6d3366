"""The papermill engine: one interpreter, one interrupt a signal, outputs saved whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.engines import papermill_engines

from workbench.engine import WorkbenchEngine

LOOP = """
import time
caught = False
print("loop begins", flush=True)
try:
    open({flag!r}, "w").close()
    time.sleep(60)
except KeyboardInterrupt:
    caught = True
print("caught" if caught else "not interrupted")
"""


@pytest.fixture(autouse=True)
def registered() -> None:
    papermill_engines.register("workbench", WorkbenchEngine)


def write_notebook(path: Path, *cells: str, kernel: str = "python3") -> Path:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nb.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    nbformat.write(nb, path)
    return path


def text_of(path: Path) -> str:
    cells = nbformat.read(path, 4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []) if o.output_type == "stream")


def start(book: Path, out: Path) -> subprocess.Popen[str]:
    code = (
        "import sys, papermill; from papermill.engines import papermill_engines as e;"
        "from workbench.engine import WorkbenchEngine; e.register('workbench', WorkbenchEngine);"
        "papermill.execute_notebook(sys.argv[1], sys.argv[2], engine_name='workbench',"
        " progress_bar=False)"
    )
    command = [sys.executable, "-c", code, str(book), str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.05)


def test_runs_on_this_python_whatever_kernel_the_notebook_names(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.executable, os.environ['WORKBENCH_BATCH'])"
    book = write_notebook(tmp_path / "in.ipynb", code, kernel="a-kernel-of-another-machine")
    papermill.execute_notebook(
        book, tmp_path / "out.ipynb", engine_name="workbench", progress_bar=False
    )
    assert text_of(tmp_path / "out.ipynb").split() == [sys.executable, "1"]
    assert "WORKBENCH_BATCH" not in os.environ


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_interrupts_once_and_later_cells_still_run(
    tmp_path: Path, signum: signal.Signals
) -> None:
    flag = tmp_path / "flag"
    book = write_notebook(
        tmp_path / "in.ipynb", LOOP.format(flag=str(flag)), "print('figures drawn')"
    )
    process = start(book, tmp_path / "out.ipynb")
    wait_for(flag, process)
    process.send_signal(signum)
    time.sleep(0.2)
    process.send_signal(signum)  # the echo of a scheduler must not end the run
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors
    assert text_of(tmp_path / "out.ipynb").split("\n") == [
        "loop begins",
        "caught",
        "figures drawn",
        "",
    ]
    executed = nbformat.read(tmp_path / "out.ipynb", 4)
    assert executed.metadata.papermill["stopped_by"] == signum.name


def test_importing_the_engine_is_light() -> None:
    """papermill loads every engine at its own import, for all its users."""
    code = (
        "import sys; import workbench.engine; heavy = {'torch', 'plotly', 'papermill', 'pydantic'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
