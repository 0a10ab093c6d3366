"""A sweep trains what its table says and compares it, whatever fails or stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from small_recipes import DELTA, SPAN, write_recipe, write_text

import workbench
from workbench import comparison
from workbench.cluster import conduct
from workbench.cluster.job import Job
from workbench.cluster.submission import Executor, Local, Submitted
from workbench.errors import ConfigError, DataMissing
from workbench.recipe import load_recipe
from workbench.sweep import Planned, load_sweep, plan
from workbench.train.folder import RunFolder

PLOTLY = "application/vnd.plotly.v1+json"
FOREVER = {"train.steps": 10**8, "train.eval_every": 10**7, "train.checkpoint_every": 10**7}


class Here:
    """Processes of this machine, without submitit."""

    queues = False

    def __init__(self, logs: Path) -> None:
        self.logs, self.started = logs, dict[str, subprocess.Popen[bytes]]()

    def submit(self, jobs: Sequence[Job]) -> list[Submitted]:
        return [self._submit(job) for job in jobs]

    def _submit(self, job: Job) -> Submitted:
        log = self.logs / f"{job.out.name}.log"
        command = [sys.executable, "-m", "workbench.cluster.job", *job.words()]
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        self.started[str(process.pid)] = process
        return Submitted(str(process.pid), log)

    def active(self, jobs: Sequence[Submitted]) -> set[str]:
        return {job.id for job in jobs if self.started[job.id].poll() is None}

    def stop(self, jobs: Sequence[Submitted]) -> None:
        for name in self.active(jobs):
            self.started[name].terminate()


class Trial:
    """A table in a folder, which can be run."""

    def __init__(self, folder: Path, **table: Any) -> None:
        write_recipe(folder / "tiny.yaml", write_text(folder / "text.txt"), DELTA)
        self.folder, self.said = folder / "sweep", list[str]()
        self.table = folder / "table.yaml"
        self.table.write_text(yaml.safe_dump({"recipe": "tiny.yaml", **table}), encoding="utf-8")

    def runs(self) -> list[Planned]:
        return plan(load_sweep(self.table), self.folder, self.table.parent)

    def go(self, executor: Executor, at_once: int = 1) -> int:
        self.said = []
        table = load_sweep(self.table)
        return conduct.conduct(table, self.runs(), self.folder, executor, at_once, self.said.append)

    @property
    def told(self) -> str:
        return "\n".join(self.said)


def signal_when(ready: Callable[[], Any]) -> threading.Thread:
    """Sends this process SIGTERM as soon as something is so."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.executes("compare")
def test_a_failed_run_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    later = tmp_path / "later.txt"
    trial = Trial(
        tmp_path,
        runs=[
            {"name": "bad", "overrides": {"data.corpus.path": str(later)}},
            {"name": "good", "overrides": {"train.seed": 3}},
        ],
    )
    here = Here(tmp_path)
    assert trial.go(here, at_once=2) == conduct.SOME_FAILED
    bad, good = trial.runs()
    assert good.is_done and not bad.folder.exists()
    assert "good  done at step 20 of 20, " in trial.told
    assert f"bad   failed before it began: DataMissing: corpus.path: got '{later}'" in trial.told
    assert f"see {tmp_path / 'bad.log'}" in trial.told
    assert "DataMissing" in (tmp_path / "bad.log").read_text()
    assert (trial.folder / "compare.ipynb").is_file()
    kept = yaml.safe_load((trial.folder / "sweep.yaml").read_text())
    assert [run["name"] for run in kept["runs"]] == ["bad", "good"]

    write_text(later)
    written = (good.folder.path / "records.jsonl").stat().st_mtime_ns
    assert trial.go(here) == conduct.DONE and len(here.started) == 3
    assert "1 done before" in trial.told and bad.is_done
    assert (good.folder.path / "records.jsonl").stat().st_mtime_ns == written
    nb = nbformat.read(trial.folder / "compare.ipynb", 4)
    outputs = [o for c in nb.cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert sum(PLOTLY in o.get("data", {}) for o in outputs) == 4
    assert {p.stem for p in (trial.folder / "figures").iterdir()} == {
        *("learning_curves", "sweep", "by_data_corpus_path", "by_train_seed")
    }


def test_a_stopped_sweep_saves_its_runs_and_goes_on(tmp_path: Path) -> None:
    trial = Trial(tmp_path, overrides=FOREVER, grid={"train.seed": [1, 2]})
    first, second = trial.runs()
    sender = signal_when(lambda: len(first.folder.records("train")) > 1)
    assert trial.go(Here(tmp_path)) == conduct.INTERRUPTED
    sender.join()
    status = first.folder.status()
    assert status["state"] == "stopped" and status["step"] > 0
    assert first.folder.records("checkpoint")[-1]["step"] == status["step"]
    assert f"seed1  stopped at step {status['step']:,}" in trial.told
    assert not second.folder.exists() and not (trial.folder / "compare.ipynb").exists()
    # the time that a run may take is no part of what it learns
    limited = {**FOREVER, "train.max_seconds": 0.01}
    trial = Trial(tmp_path, overrides=limited, grid={"train.seed": [1]})
    assert trial.go(Here(tmp_path)) == conduct.DONE
    assert first.folder.status()["step"] == status["step"]


def test_two_commands_do_not_share_a_sweep(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.folder.mkdir()
    busy = pytest.raises(ConfigError, match="another process is at work on the sweep")
    with conduct.FileLock(trial.folder / conduct.LOCK), busy:
        trial.go(Here(tmp_path))


def test_submitit_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="pip install 'workbench[cluster]'")
    trial = Trial(
        tmp_path,
        runs=[
            {"name": "long", "overrides": FOREVER},
            {"name": "short"},
            {"name": "bad", "overrides": {"data.corpus.path": "nowhere.txt"}},
        ],
    )
    long, short, _ = trial.runs()
    sender = signal_when(
        lambda: (
            len(long.folder.records("train")) > 1
            and short.is_done
            and any(line.startswith("bad: failed") for line in trial.said)
        )
    )
    assert trial.go(Local(tmp_path / "logs", 2), at_once=2) == conduct.INTERRUPTED
    sender.join()
    assert short.is_done and long.folder.status()["state"] == "stopped"
    assert long.folder.records("done")[-1]["reason"] == "interrupted"
    assert "bad    failed before it began: DataMissing" in trial.told
    assert f"see {tmp_path / 'logs'}" in trial.told


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Three runs of two recipes in a folder, the last of them stopped."""
    text, sweep = write_text(tmp_path / "text.txt"), tmp_path / "sweep"
    for name, mixer, steps in (("a", DELTA, 20), ("b", DELTA, 20), ("c", SPAN, 20)):
        recipe = write_recipe(tmp_path / f"{name}.yaml", text, mixer)
        changes = {"train.steps": steps, "train.optimizer.lr": 1e-4 if name == "a" else 1e-2}
        for record in workbench.start(recipe, changes, out=sweep / name):
            if name == "c" and record.step == 10 and record.kind == "checkpoint":
                break
    return sweep


def test_only_what_differs_is_told(trained: Path) -> None:
    folders = comparison.open_runs(trained)
    recipes = {name: folder.recipe() for name, folder in folders.items()}
    assert list(recipes) == ["a", "b", "c"]
    found = comparison.differing({name: recipes[name] for name in "ab"})
    assert found == {"train.optimizer.lr": {"a": 1e-4, "b": 1e-2}}
    table = comparison.difference_table(recipes)
    kinds = next(row for row in table if row["field"].endswith("mixer.kind"))
    assert [kinds[name] for name in "abc"] == ["fast_weight", "fast_weight", "attention"]
    assert comparison.differing({"a": recipes["a"], "again": recipes["a"]}) == {}
    best = comparison.validated(folders)
    assert next(iter(comparison.several({n: recipes[n] for n in "ab"}, best))) == (
        "train.optimizer.lr"
    )


def test_a_run_in_the_table(trained: Path) -> None:
    a, c = (comparison.row(name, RunFolder(trained / name)) for name in "ac")
    assert a["state"] == "done" and a["tokens"] == 20 * 4 * 16
    assert a["parameters"] == RunFolder(trained / "a").load_model().n_parameters
    nats = [r["loss_nats"] for r in RunFolder(trained / "a").records("eval")]
    assert a["valid bits"] == pytest.approx(min(nats) / 0.6931472, abs=1e-4)
    assert "delta_rule" in str(a["backends"]) and a["test bits"] is None
    assert c["state"] == "stopped at 10 of 20"


def test_the_compare_notebook(
    trained: Path,
    by_hand: Callable[..., list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKBENCH_BATCH", "1")
    table, *shown = by_hand("compare", sweep=str(trained), over="step")
    assert "stopped at 10 of 20" in table.data
    figures = [json_like[PLOTLY] for json_like in shown]
    curves = figures[0]
    assert {trace["name"] for trace in curves["data"]} == {"a", "b", "c"}
    assert curves["layout"]["xaxis"]["title"]["text"] == "update (step)"
    assert "b is best" in curves["layout"]["title"]["text"]
    assert any("lr 0.01 is best" in f["layout"]["title"]["text"] for f in figures[1:])
    # one run has nothing to differ from
    assert len(by_hand("compare", runs=[str(trained / "c")])) == 2
    with pytest.raises(DataMissing, match="Did you mean 'sweep'"):
        by_hand("compare", sweep=str(tmp_path / "swep"))
    with pytest.raises(ValueError, match="over: got 'hours'"):
        by_hand("compare", sweep=str(trained), over="hours")


def test_a_run_that_has_not_begun_is_no_hindrance(trained: Path) -> None:
    with_one_more = [trained / "a", trained / "later"]
    assert list(comparison.open_runs(trained, with_one_more)) == ["a"]
    assert load_recipe(trained / "a" / "recipe.yaml").name == "a"
