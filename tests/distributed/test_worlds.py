"""Several processes that train together: stopped, killed, failing, and continued by others."""

import os
import re
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from worlds import (
    EVERY,
    STEPS,
    Agent,
    came_to,
    complaints,
    finish,
    same_bits,
    told,
    torchrun,
    write_recipe,
)

from workbench.train.folder import RunFolder

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    """A run of two processes from begin to end."""
    return finish(recipe, recipe.parent / "undisturbed").path


def stopped_at(out: Path) -> int:
    """The update after which a run was stopped, which all processes must have agreed on."""
    status, rows = RunFolder(out).status(), RunFolder(out).records()
    assert status["state"] == "stopped" and rows[-1]["reason"] == "interrupted"
    assert [row["step"] for row in rows[-2:]] == [status["step"]] * 2
    assert [row["kind"] for row in rows[-2:]] == ["checkpoint", "done"]
    whole = {path.name for path in (out / "checkpoints").iterdir()}
    assert f"step-{status['step']:07d}" in whole and not any("partial" in x for x in whole)
    return int(status["step"])


def send(agent: Agent, how: str) -> None:
    if how == "sigterm":
        # such as a cluster sends; torchrun passes it on
        os.kill(agent.process.pid, signal.SIGTERM)
        return
    # Slurm, and a terminal where the processes share it: everybody, twice
    for pid in (agent.process.pid, *agent.workers().values()):
        os.kill(pid, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sigterm", "interrupt"])
def test_stopped_together_and_continued_bit_for_bit(
    how: str, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with torchrun(recipe, out) as agent:
        agent.until(came_to(out, 18))
        send(agent, how)
        agent.ends()
        assert "Traceback" not in agent.text().split("SignalException")[0].split("W1")[0]
    step = stopped_at(out)
    assert 18 <= step < STEPS
    finish(recipe, out)
    assert same_bits(out, undisturbed)
    kinds = ("train", "eval")
    assert told(out, *kinds) == told(undisturbed, *kinds), "each once, whoever was told to stop"


def restarted(agent: Agent, rank: int, killed: int) -> bool:
    now = agent.workers()
    return len(now) == 2 and now[rank] != killed


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_started_again_with_all_others(
    rank: int, recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with torchrun(recipe, out, words=("--max-restarts=2",)) as agent:
        for step in (EVERY + 4, 2 * EVERY + 4):
            agent.until(came_to(out, step))
            killed = agent.workers()[rank]
            os.kill(killed, signal.SIGKILL)
            agent.until(partial(restarted, agent, rank, killed))
        assert agent.ends() == 0, agent.text()[-5000:]
    sys.stdout.write(agent.text())
    assert "Signal 9 (SIGKILL)" in agent.text() or "exitcode: -9" in agent.text()
    assert same_bits(out, undisturbed)
    assert told(out, "train", "eval") == told(undisturbed, "train", "eval")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "says", "state"),
    [
        ("data", "process 1 of the 2 .* DataError: the disk of this machine is gone", "failed"),
        ("nonfinite", "NaN or infinite in update 21", "failed"),
    ],
)
def test_a_fault_in_one_process_ends_all_and_is_told(
    fault: str, says: str, state: str, recipe: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    words = ("--standalone", "--nproc-per-node=2", str(HERE / "worlds.py"))
    agent = Agent(*words, fault, str(recipe), str(out), log=log)
    assert agent.ends(90) == 1
    text = agent.text()
    assert re.search(says, text), text[-5000:]
    assert RunFolder(out).status()["state"] == state
    assert re.search(says, RunFolder(out).status()["message"])
    assert max(row["step"] for row in RunFolder(out).records()) == 20
    # the agent's own traceback stands after the program's words
    assert "Traceback" not in text.split("closing signal")[0], text


def test_what_cannot_be_trained_is_refused_once_and_nothing_is_written(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with torchrun(recipe, out, "--set", "data.batch_size=5") as agent:
        assert agent.ends() == 1
    (said,) = complaints(agent.text())
    assert "data.batch_size is 5, which 2 processes cannot share" in said and not out.exists()


@pytest.mark.slow
def test_what_is_wrong_with_the_command_is_said_once(tmp_path: Path) -> None:
    for given, says in (("nosuch", "there is no recipe"), ("--nosuch", "error: ")):
        with torchrun(Path(given), tmp_path / given) as agent:
            assert agent.ends() == 1
        assert agent.text().count(says) == 1, agent.text()
    with torchrun(Path("--help"), tmp_path / "help") as agent:
        assert agent.ends() == 0
    assert agent.text().count("usage:") == 1


@pytest.mark.slow
def test_two_commands_cannot_train_in_one_folder(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with torchrun(recipe, out, "--set", "train.steps=100000") as agent:
        agent.until(came_to(out, 6))
        words = ("--standalone", "--nproc-per-node=2", "-m", "workbench.train", str(recipe))
        more = ("--set", "train.steps=100000", "--out", str(out))
        second = Agent(*words, *more, log=tmp_path / "second.log")
        assert second.ends() == 1
        (said,) = complaints(second.text())
        assert "is training in" in said
        before = RunFolder(out).status()["step"]
        agent.until(came_to(out, before + 3))
