"""The cluster of these tests, and jobs on it."""

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import workbench
from slurm.mini_cluster import MiniCluster, mini_cluster, missing, wait_for
from workbench.train.folder import RunFolder

ROOT = Path(workbench.__file__).resolve().parents[1]
SCRIPT = ROOT / "workbench" / "cluster" / "train.sbatch"
MIXER = {"kind": "fast_weight", "n_heads": 2, "d_head": 4}
PATIENCE_S = 300.0
"""longest wait for a job; two busy cores need seconds to import PyTorch"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[MiniCluster]:
    """Two nodes, for all tests of this folder."""
    if why := missing():
        pytest.skip(why)
    settings = {
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        # nothing but the loopback interface for PyTorch, too
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with pytest.MonkeyPatch.context() as patch, mini_cluster(2) as running:
        for name, value in settings.items():
            patch.setenv(name, value)
            running.environment[name] = value
        patch.setenv("SLURM_CONF", str(running.conf))
        yield running


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A small recipe; it is changed by overrides."""
    return write_recipe(tmp_path)


def write_recipe(folder: Path) -> Path:
    draw, text = random.Random(4), folder / "text.txt"
    text.write_text("".join(draw.choice("abcde ") for _ in range(2500)), encoding="ascii")
    train = {
        "steps": 40,
        "optimizer": {"kind": "adam", "lr": 3e-3},
        "log_every": 10,
        "eval_every": 20,
        "eval_tokens": 60,
        "checkpoint_every": 20,
        "device": "cpu",
    }
    data = {"corpus": {"kind": "text", "path": str(text)}, "segment_len": 7, "batch_size": 4}
    whole = {
        "name": "tiny",
        "data": data,
        "model": {"d_model": 8, "stack": [{"block": {"mixer": MIXER}}]},
        "train": train,
        "eval": {"segment_len": 32, "batch_size": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


FOREVER = {"train.steps": 10**8, "train.eval_every": 10**7, "train.checkpoint_every": 10**7}
"""overrides for a run that does not end by itself"""


class SlurmJob:
    """A training that was submitted."""

    def __init__(self, cluster: MiniCluster, number: str, out: Path, log: Path) -> None:
        self.cluster, self.number, self.log = cluster, number, log
        self.run = RunFolder(out)

    def told(self) -> dict[str, str]:
        """What Slurm says about it."""
        text = self.cluster.ask("scontrol", "-o", "show", "job", self.number)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def until(self, ready: Callable[[], Any], what: str) -> None:
        wait_for(ready, PATIENCE_S, what, self.story)

    def trains(self) -> None:
        """Wait until it does."""
        self.until(lambda: len(self.run.records("train")) > 1, "training")

    def ends(self) -> dict[str, str]:
        """Wait until it is over; what Slurm says then."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.told()["JobState"] in over, "end of the job")
        # Slurm says so as soon as it has begun to end it
        gone = ("squeue", "-h", "-j", self.number)
        self.until(lambda: not self.cluster.ask(*gone, check=False), "end of its processes")
        return self.told()

    def story(self) -> str:
        log = self.log.read_text(errors="replace")[-3000:] if self.log.is_file() else "no log"
        return f"{self.told()}\n{self.run.status()}\n{log}\n{self.cluster.logs()}"


Submit = Callable[..., SlurmJob]


@pytest.fixture
def submit(cluster: MiniCluster, recipe: Path, tmp_path: Path) -> Submit:
    """`submit(options of sbatch, overrides)`: the script that comes with the package."""

    def go(*options: str, **overrides: Any) -> SlurmJob:
        out, log = tmp_path / "run", tmp_path / "log.txt"
        changes = overrides.get("overrides", {})
        sets = [word for path, v in changes.items() for word in ("--set", f"{path}={v}")]
        command = ["sbatch", "--parsable", "-o", str(log), "--chdir", str(tmp_path), *options]
        number = cluster.ask(*command, str(SCRIPT), str(recipe), str(out), *sets)
        return SlurmJob(cluster, number, out, log)

    return go


@pytest.fixture(autouse=True)
def took(request: pytest.FixtureRequest) -> Iterator[None]:
    """For the record: how long each test took."""
    begin = time.monotonic()
    yield
    request.config.stash.setdefault(TIMES, []).append((request.node.name, time.monotonic() - begin))


TIMES = pytest.StashKey[list[tuple[str, float]]]()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if times := terminalreporter.config.stash.get(TIMES, []):
        terminalreporter.section("on Slurm")
        for name, seconds in times:
            terminalreporter.write_line(f"{seconds:6.1f} s  {name}")
