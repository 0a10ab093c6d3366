"""A disk that is full or read-only by the system's own word: a small one, mounted for the test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crash.compare import differences, run_folder
from crash.conftest import environment

pytestmark = pytest.mark.crash


@pytest.fixture
def told(undisturbed: Any, tmp_path: Path) -> dict[str, Any]:
    """What happened to a run on a small disk; it ended up in `kept`."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        pytest.skip("needs Linux with unshare and mount")
    recipe, _ = undisturbed("delta rule")
    (tmp_path / "disk").mkdir()
    words = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", "crash.small_disk"]
    paths = [str(x) for x in (recipe, tmp_path / "disk", tmp_path / "kept")]
    done = subprocess.run(
        [*words, *paths], env=environment(), capture_output=True, text=True, timeout=300
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_small_disk(told: dict[str, Any], undisturbed: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    for case in ("looked", "within"):
        error, state = told[case]
        assert "cannot write the checkpoint of step 8" in error or "step 9" in error, error
        assert "No space left on device" in error and "bytes are free" in error
        assert str(disk / "run") in error and "Free space there" in error
        assert state["checkpoints"][-1] == "step-0000006"
        assert state["state"] == "failed"
        assert not state["torn"] and not state["left"]
    error, state = told["nothing free"]
    assert "No space left on device" in error and str(disk / "run") in error
    assert state["checkpoints"][-1] == "step-0000006" and not state["torn"] and not state["left"]
    error, state = told["read-only"]
    assert error.startswith(f"out: got {disk / 'run'}, but") and "Nothing was done" in error
    assert state["checkpoints"][-1] == "step-0000012"
    error, made = told["new"]
    assert error.startswith(f"out: got {disk / 'deep' / 'new'}, but {disk} cannot") and not made
    assert told["end"][0] == "" and told["end"][1]["state"] == "done"
    _, expected = undisturbed("delta rule")
    assert differences(run_folder(tmp_path / "kept"), expected) == []
