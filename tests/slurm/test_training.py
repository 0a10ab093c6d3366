"""The Slurm script: a notebook on one node, torchrun on two; stopped, out of time, queued again."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from slurm.conftest import FOREVER, Submit
from slurm.mini_cluster import MiniCluster

pytestmark = pytest.mark.slurm


def test_nothing_listens_beyond_this_machine(cluster: MiniCluster) -> None:
    assert cluster.listens_on() == {"127.0.0.1"}


def test_one_node_runs_the_notebook(submit: Submit, tmp_path: Path) -> None:
    job = submit()
    told = job.ends()
    assert (told["JobState"], told["ExitCode"]) == ("COMPLETED", "0:0"), job.story()
    assert job.run.status()["state"] == "done" and job.run.status()["step"] == 40
    nb = nbformat.read(tmp_path / "run.ipynb", 4)
    assert "done at step 40 of 40" in "".join(o.get("text", "") for o in nb.cells[-1].outputs)


def test_two_nodes_share_the_batches(submit: Submit) -> None:
    job = submit("--nodes=2")
    told = job.ends()
    assert (told["JobState"], told["ExitCode"]) == ("COMPLETED", "0:0"), job.story()
    assert told["NodeList"] == "n[1-2]"
    last = job.run.records("train")[-1]
    assert (last["step"], last["processes"], last["tokens"]) == (40, 2, 40 * 4 * 7)


def test_what_the_user_can_mend_has_status_2(submit: Submit) -> None:
    job = submit(overrides={"train.stepz": 3})
    assert job.ends()["ExitCode"] == "2:0", job.story()
    assert "Did you mean 'steps'" in job.log.read_text()


@pytest.mark.parametrize(("nodes", "processes"), [(1, 1), (1, 2), (2, 1)])
def test_scancel_leaves_a_checkpoint(submit: Submit, nodes: int, processes: int) -> None:
    job = submit(f"--nodes={nodes}", f"--export=ALL,PROCESSES={processes}", overrides=FOREVER)
    job.trains()
    job.cluster.ask("scancel", job.number)
    assert job.ends()["JobState"] == "CANCELLED"
    status = job.run.status()
    assert (status["state"], status["message"]) == ("stopped", "SIGTERM"), job.story()
    saved = job.run.records("checkpoint")[-1]
    assert saved["step"] == status["step"] and job.run.load_model().n_parameters > 0
    assert job.run.records("done")[-1]["reason"] == "interrupted"
    assert job.run.records("train")[-1]["processes"] == nodes * processes


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_minute_before_its_limit_it_is_queued_again(submit: Submit, nodes: int) -> None:
    # done by the clock, which counts training alone: in the second session, or the third
    limited = {**FOREVER, "train.max_seconds": 75}
    job = submit(f"--nodes={nodes}", "--time=2", overrides=limited)
    job.trains()
    job.until(lambda: int(job.told()["Restarts"]) > 0, "a restart")
    saved = job.run.records("checkpoint")[-1]
    before = job.run.records("done")[-1]
    assert before["reason"] == "interrupted" and saved["step"] == before["step"] > 0
    told = job.ends()
    assert (told["JobState"], told["ExitCode"]) == ("COMPLETED", "0:0"), job.story()
    assert job.run.status()["state"] == "done"
    kept = job.run.records()
    assert kept[-1]["reason"] == "time" and kept[-1]["step"] > saved["step"]
    assert saved in kept, "the second session went on from the checkpoint of the first"
    assert "queued again" in job.log.read_text()
