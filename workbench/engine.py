"""A papermill engine for long training notebooks.

Use: `papermill --engine workbench in.ipynb out.ipynb`.

What it adds to papermill's own engine:

- a parameter that the notebook does not have, or of another type, is refused before anything runs;
- the notebook runs on *this* Python, whatever Jupyter kernel its metadata names;
- SIGINT, SIGTERM and SIGUSR1 become one interrupt of the Jupyter kernel, so that the training loop
  writes its checkpoint and returns and every output is saved; a second signal, 10 s or more after
  the first, ends the run at once (schedulers often send the same signal twice);
- the Jupyter kernel sees `WORKBENCH_BATCH=1`, and no widget state is stored (5 MB a figure);
- threads of PyTorch wait a moment and then sleep (`GOMP_SPINCOUNT`, unless it is set): spinning on
  they would be starved by other programs on the same cores;
- messages travel through Unix sockets, which do not race for ports.

Plain papermill runs the same notebooks without it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_core.paths import jupyter_runtime_dir

SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1"))
GRACE_S = 10.0
"""Seconds during which a second signal is taken for an echo of the first."""

SPIN_COUNT = "2000"
"""Turns a PyTorch thread waits before it sleeps. Training on two idle cores is 5 % slower than with
the default of 300,000, beside two other busy programs 3.6 times faster; sleeping at once
(`OMP_WAIT_POLICY=PASSIVE`) costs 40 % on idle cores."""

LONGEST_SOCKET_NAME = 100
"""Bytes of a path that every Unix accepts for a socket."""


class ThisInterpreter(KernelSpecManager):
    """Every Jupyter kernel is the running Python, by whatever name it is asked for."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3 (workbench)", language="python")


class WorkbenchEngine:
    """The three class methods by which papermill drives an engine.

    It derives from nothing of papermill: papermill loads all engines while it is itself being
    imported, and a base class from there would make the two imports a circle.
    """

    @classmethod
    def nb_kernel_name(cls, nb: Any, name: str | None = None) -> str:
        return name or "python3"

    @classmethod
    def nb_language(cls, nb: Any, language: str | None = None) -> str:
        return language or "python"

    @classmethod
    def execute_notebook(
        cls,
        nb: Any,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: bool | dict[str, Any] = True,
        log_output: bool = False,
        autosave_cell_every: int = 30,
        **options: Any,
    ) -> Any:
        """Run all cells and save the notebook, also when a cell fails or a signal ends it.

        Args:
            nb: the notebook with its parameters injected.
            kernel_name: what the metadata asks for; only a label here.
            output_path: where the executed notebook is saved.
            progress_bar: show a bar over the cells.
            log_output: send the notebook's output to papermill's log.
            autosave_cell_every: seconds between saves while a cell runs.
            options: what papermill hands to its own engine (time limits, output files).

        Raises:
            ConfigError: a parameter is unknown, or has another type; nothing has been run.
        """
        from papermill.engines import NotebookExecutionManager

        from workbench.books import check_notebook

        check_notebook(nb)
        manager = NotebookExecutionManager(
            nb,
            output_path=output_path,
            progress_bar=progress_bar,
            log_output=log_output,
            autosave_cell_every=autosave_cell_every,
        )
        manager.notebook_start()
        try:
            _execute(manager, kernel_name, log_output=log_output, **options)
        finally:
            manager.cleanup_pbar()
            manager.notebook_complete()
        return manager.nb


def _execute(
    manager: Any,
    kernel_name: str,
    *,
    start_timeout: int = 60,
    execution_timeout: int | None = None,
    store_widget_state: bool = False,
    **options: Any,
) -> None:
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.log import logger

    options.pop("input_path", None)
    client = PapermillNotebookClient(
        manager,
        timeout=execution_timeout,
        startup_timeout=start_timeout,
        kernel_name=kernel_name,
        log=logger,
        store_widget_state=store_widget_state,
        **options,
    )
    client.create_kernel_manager()
    client.km.kernel_spec_manager = ThisInterpreter()
    _use_unix_sockets(client.km)
    settings = {"GOMP_SPINCOUNT": SPIN_COUNT, **os.environ, "WORKBENCH_BATCH": "1"}
    with _signals_interrupt(client, manager.nb, logger):
        client.execute(env=settings)


def _use_unix_sockets(manager: Any) -> None:
    """Named apart from all others: the default name is one for all runs, in the current folder."""
    folder = jupyter_runtime_dir()
    path = os.path.join(folder, f"workbench-{uuid.uuid4().hex[:12]}")
    if os.name == "posix" and len(path) + len("-ipc-10") <= LONGEST_SOCKET_NAME:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        manager.transport, manager.ip = "ipc", f"{path}-ipc"
        manager.connection_file = f"{path}.json"


def _a_cell_runs(nb: Any) -> bool:
    return any(cell.metadata.get("papermill", {}).get("status") == "running" for cell in nb.cells)


@contextmanager
def _signals_interrupt(client: Any, nb: Any, logger: Any) -> Iterator[None]:
    """While open, the first signal interrupts the running cell; its name goes into the metadata."""
    seen: list[tuple[str, float]] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(signum).name, time.monotonic()
        seen.append((name, now))
        if len(seen) > 1:
            if now - seen[0][1] < GRACE_S:
                return
            raise KeyboardInterrupt(f"{name} for the second time")
        pid = getattr(client.km.provisioner, "pid", None)
        if pid is None or not _a_cell_runs(nb):
            # an idle Jupyter kernel ignores interrupts, and nothing runs that could be lost
            raise KeyboardInterrupt(f"{name} while no cell was running")
        logger.warning(
            f"got {name}: interrupting the Jupyter kernel once, so that it saves its work; "
            f"send it again after {GRACE_S:.0f} s to stop at once"
        )
        os.kill(pid, signal.SIGINT)

    # signal handlers belong to the main thread; run from another, the caller sees the signals
    mine = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, forward) for s in SIGNALS} if mine else {}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, _deaf_to_echoes(seen[0][1], handler) if seen else handler)
        if seen:
            nb.metadata.papermill["stopped_by"] = seen[0][0]
            atexit.register(_ignore_echoes, seen[0][1], list(before))


def _deaf_to_echoes(first: float, handler: Any) -> Callable[[int, FrameType | None], None]:
    """What was there before, but not for the echo of a signal that came at `first`: papermill has
    yet to write the executed notebook when the engine returns."""

    def react(signum: int, frame: FrameType | None) -> None:
        if time.monotonic() - first < GRACE_S:
            return
        signal.signal(signum, handler)
        signal.raise_signal(signum)

    return react


def _ignore_echoes(first: float, signals: list[signal.Signals]) -> None:
    """At exit: Python takes its own handlers away before the process is gone, but not this."""
    if time.monotonic() - first < GRACE_S:
        for s in signals:
            signal.signal(s, signal.SIG_IGN)
