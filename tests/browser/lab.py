"""A JupyterLab server with folders of its own, that ends with the tests."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
START_S = 400.0
"""longest wait for the server; two busy cores need some of it"""
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
FOLDERS = {
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "IPYTHONDIR": "ipython",
}


class Lab(NamedTuple):
    """A running server."""

    url: str
    token: str
    root: Path
    """what it serves"""
    settings: Path
    log: Path

    def address(self, path: str) -> str:
        """Of one document alone: no file browser, no layout of an earlier visit to restore."""
        return f"{self.url}/doc/tree/{path}?token={self.token}&reset"

    def set(self, name: str, values: dict[str, Any]) -> None:
        """Settings as a user's own, for pages opened from now on.

        Args:
            name: such as `@jupyterlab/apputils-extension/themes`.
        """
        file = self.settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")

    def use_theme(self, theme: str) -> None:
        """`light` or `dark`, for pages and figures from now on."""
        self.set("@jupyterlab/apputils-extension/themes", {"theme": THEMES[theme]})

    def end_kernels(self) -> None:
        """End every Jupyter kernel: each holds some hundred megabytes."""
        for session in self._ask("GET", "/api/sessions"):
            self._ask("DELETE", f"/api/sessions/{session['id']}")

    def _ask(self, method: str, path: str) -> Any:
        address = f"{self.url}{path}?token={self.token}"
        with urllib.request.urlopen(
            urllib.request.Request(address, method=method), None, 30
        ) as got:
            text = got.read()
        return json.loads(text) if text else None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _command(port: int, token: str, root: Path) -> list[str]:
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    words += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    words += [f"--ServerApp.root_dir={root}", "--LabApp.extension_manager=readonly"]
    words += ["--LabApp.news_url=None", "--LabApp.expose_app_in_browser=True"]
    words += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    return words + (["--allow-root"] if os.geteuid() == 0 else [])


def _environment(home: Path) -> dict[str, str]:
    own = {name: str(home / folder) for name, folder in FOLDERS.items()}
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # notebooks find this checkout's package; the figures' theme is the one of JupyterLab's settings
    given = {k: v for k, v in os.environ.items() if k not in ("WORKBENCH_THEME", "WORKBENCH_BATCH")}
    return {
        **given,
        **own,
        "PYTHONPATH": os.pathsep.join(paths),
        "JUPYTER_PREFER_ENV_PATH": "1",
        # PyTorch's threads wait briefly before they sleep: the browser needs the same cores
        "GOMP_SPINCOUNT": "2000",
    }


@contextmanager
def jupyterlab(home: Path) -> Iterator[Lab]:
    """Start a server and end it at the end.

    Args:
        home: an empty folder.

    Raises:
        AssertionError: it did not start; with what it said.
    """
    root, token, port = home / "root", secrets.token_hex(16), free_port()
    root.mkdir()
    lab = Lab(f"http://127.0.0.1:{port}", token, root, home / "settings", home / "lab.log")
    # the offer of Jupyter's news is a setting of the user; no option of the server stops it
    quiet = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
    lab.set("@jupyterlab/apputils-extension/notification", quiet)
    with lab.log.open("w") as log:
        pipe = {"stdout": log, "stderr": subprocess.STDOUT, "env": _environment(home), "cwd": root}
        server = subprocess.Popen(_command(port, token, root), **pipe)  # type: ignore[call-overload]
        try:
            _wait(lab, server)
            yield lab
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait(lab: Lab, server: subprocess.Popen[bytes]) -> None:
    begin = time.monotonic()
    while True:
        said = lab.log.read_text("utf-8", "replace")[-3000:]
        assert server.poll() is None, f"JupyterLab ended:\n{said}"
        assert time.monotonic() - begin < START_S, f"no JupyterLab after {START_S:g} s:\n{said}"
        try:
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=5).close()
        except OSError:
            time.sleep(0.25)
        else:
            return
