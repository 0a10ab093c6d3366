"""A sweep as an array of Slurm jobs: left alone, preempted, and waited for by a later command."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm.conftest import FOREVER, PATIENCE_S
from slurm.mini_cluster import MiniCluster, wait_for
from workbench.train.folder import RunFolder

pytestmark = pytest.mark.slurm


@pytest.fixture(autouse=True)
def _submitit() -> None:
    pytest.importorskip("submitit", reason="pip install 'workbench[cluster]'")


class Command:
    """`workbench sweep` on a table."""

    def __init__(self, cluster: MiniCluster, recipe: Path, **table: Any) -> None:
        self.cluster, self.out = cluster, recipe.parent / "sweep"
        path = recipe.parent / "table.yaml"
        path.write_text(yaml.safe_dump({"recipe": recipe.name, **table}), encoding="utf-8")
        words = ["sweep", str(path), "--out", str(self.out), "--executor", "slurm"]
        options = ["--at-once", "2", "--slurm", "partition=all,time=10,cpus_per_task=1"]
        self.words = [sys.executable, "-m", "workbench", *words, *options]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.words,
            env=self.cluster.environment,
            cwd=self.out.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.out / name)


def test_a_sweep_through_slurm(cluster: MiniCluster, recipe: Path) -> None:
    runs = [
        {"name": "good"},
        {"name": "bad", "overrides": {"data.corpus.path": "nowhere.txt"}},
        {"name": "too", "overrides": {"train.seed": 2}},
    ]
    command = Command(cluster, recipe, runs=runs)
    told, _ = command.start().communicate(timeout=PATIENCE_S)
    assert "good  done at step 40 of 40" in told, told + cluster.logs()
    assert "too   done at step 40 of 40" in told
    assert "bad   failed before it began: DataMissing" in told
    log = next(Path(line.split()[1]) for line in told.splitlines() if "_log.out" in line)
    assert "DataMissing" in log.read_text()
    assert (command.out / "compare.ipynb").is_file()


def test_preempted_left_and_found_again(cluster: MiniCluster, recipe: Path) -> None:
    limited = {**FOREVER, "train.max_seconds": 25}
    command = Command(cluster, recipe, runs=[{"name": "only", "overrides": limited}])
    folder = command.run("only")
    first = command.start()
    wait_for(lambda: len(folder.records("train")) > 1, PATIENCE_S, "training", cluster.logs)
    first.send_signal(signal.SIGINT)
    told, _ = first.communicate(timeout=60)
    assert first.returncode == 130 and "the jobs go on" in told, told
    (job,) = cluster.ask("squeue", "-h", "-o", "%A").split()

    # what Slurm sends before a time limit, and submitit takes for one
    cluster.ask("scancel", "--signal=USR2", job)
    wait_for(lambda: folder.records("done"), 60, "a checkpoint", cluster.logs)
    saved = folder.records("checkpoint")[-1]
    assert folder.records("done")[-1]["reason"] == "interrupted"

    second = command.start()
    told, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, told + cluster.logs()
    assert "1 at work, 0 to start" in told and "only  done at step" in told
    assert "Restarts=1" in cluster.ask("scontrol", "show", "job", job)
    kept = folder.records()
    assert saved in kept and kept[-1]["reason"] == "time" and kept[-1]["step"] > saved["step"]
