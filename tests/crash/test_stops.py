"""Everything by which people and clusters stop a run: it is there afterwards and goes on exactly.

A shell (SIGTERM, Ctrl-C in a terminal), Jupyter (interrupt the kernel, shut it down, lose it), and
a second process that wants the same folder; all with real processes.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from crash import mixers
from crash.compare import differences, run_folder
from crash.conftest import environment
from workbench.engine import ThisInterpreter
from workbench.train.folder import RunFolder
from workbench.train.start import start

pytestmark = pytest.mark.crash

LONG = {"steps": 500, "log_every": 50, "eval_every": 250, "checkpoint_every": 100}
PATIENCE_S = 120


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixers.write_recipe("delta rule", tmp_path_factory.mktemp("asked"), **LONG)


@pytest.fixture(scope="module")
def expected(asked: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = start(asked, out=tmp_path_factory.mktemp("expected") / "run")
    list(run)
    return run.folder


def shell(recipe: Path, out: Path, **how: Any) -> subprocess.Popen[Any]:
    command = [sys.executable, "-m", "workbench.train", str(recipe), "--out", str(out)]
    return subprocess.Popen(command, env=environment(), **how)


def until_a_checkpoint(out: Path) -> RunFolder:
    folder, deadline = run_folder(out), time.monotonic() + PATIENCE_S
    while not folder.records("checkpoint"):
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    return folder


def goes_on(recipe: Path, out: Path, expected: RunFolder, *, after: int) -> None:
    """In this process, from `after` or later, to the same end."""
    run = start(recipe, out=out)
    assert after <= run.step < LONG["steps"]
    list(run)
    assert differences(run_folder(out), expected) == []


def test_sigterm_and_a_second_process(asked: Path, expected: RunFolder, tmp_path: Path) -> None:
    """The status is 0 after SIGTERM; the run folder says whether it is done."""
    out = tmp_path / "run"
    first = shell(asked, out, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    folder = until_a_checkpoint(out)
    # it holds the folder, and does not finish while the other one begins
    first.send_signal(signal.SIGSTOP)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    second = shell(asked, out, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told, errors = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 2 and told == ""
    assert f"process {first.pid} is training in {out}" in errors and "Traceback" not in errors
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0, errors
    assert "SIGTERM: stopping after this update" in errors
    assert folder.status()["state"] == "stopped" and folder.status()["message"] == "SIGTERM"
    last, done = folder.records()[-2:]
    assert (done["kind"], done["reason"]) == ("done", "interrupted")
    assert last["kind"] == "checkpoint" and last["step"] == done["step"] < LONG["steps"]
    goes_on(asked, out, expected, after=done["step"])


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_a_terminal(asked: Path, expected: RunFolder, tmp_path: Path, times: int) -> None:
    """Once: a checkpoint and status 0. Twice: at once, and the checkpoint before counts."""
    out = tmp_path / "run"
    process, ours = in_a_terminal(asked, out)
    folder = until_a_checkpoint(out)
    os.write(ours, b"\x03")
    if times == 2:
        _read_until(ours, "SIGINT: stopping after this update", process)
        os.write(ours, b"\x03")
    screen = _screen(ours)
    process.wait(PATIENCE_S)
    if times == 1:
        assert process.returncode == 0, screen
        assert folder.status()["state"] == "stopped"
        assert folder.records()[-1]["reason"] == "interrupted"
        assert "SIGINT: stopping after this update" in screen and "Traceback" not in screen
    goes_on(asked, out, expected, after=100)


@pytest.mark.parametrize("how", ["closed", "nohup"])
def test_the_terminal_is_closed(asked: Path, expected: RunFolder, tmp_path: Path, how: str) -> None:
    """A lost connection: a checkpoint; under `nohup` it trains on."""
    out = tmp_path / "run"
    process, ours = in_a_terminal(asked, out, ignoring=how == "nohup")
    folder = until_a_checkpoint(out)
    os.close(ours)
    process.wait(PATIENCE_S)
    assert process.returncode == 0
    if how == "closed":
        assert folder.status()["state"] == "stopped" and folder.status()["message"] == "SIGHUP"
        step = folder.records()[-1]["step"]
        assert folder.records("checkpoint")[-1]["step"] == step < LONG["steps"]
        goes_on(asked, out, expected, after=step)
    else:
        assert differences(folder, expected) == []


def in_a_terminal(
    recipe: Path, out: Path, ignoring: bool = False
) -> tuple[subprocess.Popen[Any], int]:
    """A process in a terminal of its own, and our side of it.

    Args:
        ignoring: what closing the terminal sends, as under `nohup`; what it says goes there still.
    """
    ours, theirs = pty.openpty()
    process = shell(
        recipe, out, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: _begin(theirs, ignoring),
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def _begin(terminal: int, ignoring: bool) -> None:
    if ignoring:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _take_terminal(terminal)


def _take_terminal(terminal: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def _screen(terminal: int) -> str:
    """All that is shown until the other side closes."""
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            return shown.decode()


def _read_until(terminal: int, words: str, process: subprocess.Popen[Any]) -> None:
    shown = b""
    while words.encode() not in shown and process.poll() is None:
        shown += os.read(terminal, 4096)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[KernelManager, Any]]:
    """A real Jupyter kernel, and a client that is connected to it."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    manager = KernelManager(kernel_spec_manager=ThisInterpreter())
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=PATIENCE_S)
    yield manager, client
    client.stop_channels()
    if manager.is_alive():
        manager.shutdown_kernel(now=True)


def training_cell(client: BlockingKernelClient, recipe: Path, out: Path) -> str:
    """Runs the cell that every notebook has; the id of its request."""
    code = (
        "import workbench\nfrom pathlib import Path\n"
        f"run = workbench.start(Path({str(recipe)!r}), out={str(out)!r})\n"
        "for record in run:\n    pass\nprint(record.reason)"
    )
    request: str = client.execute(code)
    return request


def reply(client: BlockingKernelClient, request: str) -> dict[str, Any]:
    """What the kernel answers to a request in the end."""
    while True:
        message = client.get_shell_msg(timeout=PATIENCE_S)
        if message["parent_header"]["msg_id"] == request:
            content: dict[str, Any] = message["content"]
            return content


def test_interrupt_kernel_and_the_same_cell_again(
    asked: Path, expected: RunFolder, tmp_path: Path, kernel: tuple[KernelManager, Any]
) -> None:
    """The button ends the cell without an error; the cell, executed again, continues the run."""
    manager, client = kernel
    request = training_cell(client, asked, tmp_path / "run")
    folder = until_a_checkpoint(tmp_path / "run")
    manager.interrupt_kernel()
    assert reply(client, request)["status"] == "ok"
    assert folder.status()["state"] == "stopped" and folder.status()["message"] == "SIGINT"
    step = folder.records()[-1]["step"]
    assert folder.records("checkpoint")[-1]["step"] == step < LONG["steps"]
    request = training_cell(client, asked, tmp_path / "run")
    assert reply(client, request)["status"] == "ok"
    assert differences(folder, expected) == []


@pytest.mark.parametrize("how", ["shut down", "killed"])
def test_a_notebook_closed_while_it_trains(
    asked: Path, expected: RunFolder, tmp_path: Path, kernel: tuple[KernelManager, Any], how: str
) -> None:
    """Its folder is free, its last checkpoint good."""
    manager, client = kernel
    training_cell(client, asked, tmp_path / "run")
    until_a_checkpoint(tmp_path / "run")
    if how == "shut down":
        manager.shutdown_kernel(now=False)
    else:
        manager.signal_kernel(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while manager.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not manager.is_alive()
    goes_on(asked, tmp_path / "run", expected, after=100)
