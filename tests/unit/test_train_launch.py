"""Several processes from one: the same loop, the same folder, the same manners when it is stopped.

Starting processes takes seconds, so a run here tells several things.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import FAST, recipe, write_text

import workbench
from workbench.config import load
from workbench.errors import ConfigError, ProcessesFailed
from workbench.models.mixers.fast_weight import FastWeightConfig
from workbench.recipe import Recipe
from workbench.train import launch, torchrun
from workbench.train.folder import LOG, RunFolder
from workbench.train.follow import Follower
from workbench.train.launch import LaunchedRun
from workbench.train.records import DoneRecord, to_json
from workbench.train.torchrun import Torchrun

SMALL = {"d_model": 8, "stack": [{"block": {"mixer": FAST}}]}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def shared(text: Path, **train: Any) -> Recipe:
    """Four rows, for two processes."""
    asked = recipe(text, SMALL, **train)
    return asked.model_copy(update={"data": asked.data.model_copy(update={"batch_size": 4})})


def launched(asked: Recipe, out: Path, **more: Any) -> LaunchedRun:
    run = workbench.start(asked, out=out, processes=2, **more)
    assert isinstance(run, LaunchedRun)
    return run


def long(text: Path, **train: Any) -> Recipe:
    return shared(text, **{"steps": 10**6, "eval_every": 10**6, "checkpoint_every": 20, **train})


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not collected does not."""
    path = Path(f"/proc/{pid}/stat")
    return path.is_file() and path.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def leader(run: LaunchedRun | RunFolder) -> int:
    folder = run if isinstance(run, RunFolder) else run.folder
    return int(folder.status()["pid"])


def test_the_loop_is_that_of_a_run_in_one_process(text: Path, tmp_path: Path) -> None:
    """Left by `break` and continued, it tells every record once, and ends with the same model."""

    class Listener:
        def __init__(self) -> None:
            self.told: list[Any] = []
            self.closed = 0

        def log(self, record: Any) -> None:
            self.told.append(record)

        def close(self) -> None:
            self.closed += 1

    listener = Listener()
    before = signal.getsignal(signal.SIGINT)
    run = launched(shared(text), tmp_path / "run", trackers=[listener])
    assert run.step == 0 and run.leads and not run.model.training
    assert run.corpus.unit == "character" and run.folder.records() == []
    told = []
    for record in run:
        told.append(record)
        if record.kind == "checkpoint":
            break
    pid = leader(run)
    assert within(10, lambda: not alive(pid)), "left the loop, but the processes are there"
    assert run.folder.status()["state"] in ("stopped", "done")
    assert signal.getsignal(signal.SIGINT) is before
    told += list(run)
    assert told[-1].reason == "steps" and run.step == 24
    assert list(run) == [] and list(launched(shared(text), tmp_path / "run")) == []
    assert run.folder.status()["state"] == "done" and listener.closed >= 2
    kept = [row for row in run.folder.records() if row.get("reason") != "interrupted"]
    assert [(r.kind, r.step) for r in told] == [(r["kind"], r["step"]) for r in kept]
    assert [r for r in listener.told if getattr(r, "reason", "") != "interrupted"] == told
    assert {row["processes"] for row in kept if row["kind"] == "train"} == {2}

    alone = workbench.start(shared(text), out=tmp_path / "alone")
    losses = [r.loss_nats for r in alone if r.kind == "eval"]
    assert [r.loss_nats for r in told if r.kind == "eval"] == pytest.approx(losses, abs=1e-4)
    for name, weight in run.model.state_dict().items():
        torch.testing.assert_close(weight, alone.model.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_a_process_that_dies_is_started_again(
    text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the last checkpoint, and then an interrupt ends it all politely."""
    run = launched(long(text), tmp_path / "run")
    told, killed = [], 0
    with caplog.at_level("WARNING"):
        for record in run:
            told.append(record)
            if record.kind == "checkpoint" and not killed:
                killed = leader(run)
                os.kill(killed, signal.SIGKILL)
            elif killed and leader(run) != killed and record.kind == "checkpoint":
                signal.raise_signal(signal.SIGINT)
    assert any("process 0 was killed by SIGKILL" in message for message in caplog.messages)
    assert isinstance(told[-1], DoneRecord) and told[-1].reason == "interrupted"
    assert run.folder.status()["state"] == "stopped"
    steps = [row["step"] for row in run.folder.records("train")]
    assert steps == list(range(5, steps[-1] + 1, 5)), "records of lost updates are in the folder"
    assert RunFolder(run.folder.path).load_model().n_parameters == run.model.n_parameters
    assert run.step == told[-1].step


BROKEN = """
from typing import Literal
from workbench.models.mixers.fast_weight import FastWeightConfig

class Broken(FastWeightConfig):
    kind: Literal["broken"] = "broken"

    def build(self, d_model):
        mixer = super().build(d_model)
        def forward(*arguments):
            import os
            if "RANK" in os.environ:
                raise RuntimeError("the third head came off")
            return type(mixer).forward(mixer, *arguments)
        mixer.forward = forward
        return mixer
"""


def test_a_fault_is_told_and_the_folder_says_so(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a module beside the program defines is found by the processes too."""
    (tmp_path / "broken_mixer.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import broken_mixer

    mixer = broken_mixer.Broken(n_heads=2, d_head=4)
    model = {"d_model": 8, "stack": [{"block": {"mixer": mixer}}]}
    asked = recipe(text, model)
    run = launched(asked.model_copy(update={"data": shared(text).data}), Path("run"), trackers=())
    try:
        with pytest.raises(ProcessesFailed) as error:
            list(run)
    finally:
        FastWeightConfig.registry.pop("broken")
    assert (run.folder.path / LOG).read_text().count("$ ") == 1, "tried again"
    assert "ended with status 1" in str(error.value)
    assert "RuntimeError: the third head came off" in str(error.value)
    assert str(run.folder.path / LOG) in str(error.value)
    status = run.folder.status()
    assert status["state"] == "failed" and "the third head came off" in status["message"]


def test_a_fault_that_can_be_mended_is_tried_once(text: Path, tmp_path: Path) -> None:
    run = launched(shared(text), tmp_path / "run")
    other = workbench.start(shared(text), out=tmp_path / "run")
    next(iter(other))
    with pytest.raises(ProcessesFailed, match=f"process {os.getpid()} is training in"):
        list(run)
    assert (run.folder.path / LOG).read_text().count("$ ") == 1


def test_all_is_checked_before_anything_is_started(text: Path, tmp_path: Path) -> None:
    def refused(message: str, asked: Recipe, processes: Any = 2, **more: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            workbench.start(asked, out=tmp_path / "run", processes=processes, **more)
        assert not (tmp_path / "run").exists()

    refused("which 2 processes cannot share evenly", recipe(text))
    refused("processes: got 0, expected 1 or more", shared(text), 0)
    refused("processes: got '2'", shared(text), "2")
    refused("train.micro_batches is 3", shared(text, micro_batches=3))
    refused("there is no 'tensorbord'. Did you mean 'tensorboard'", shared(text), 2,
            trackers=["tensorbord"])  # fmt: skip
    if not torch.cuda.is_available():
        refused("no NVIDIA GPU", shared(text, device="cuda"))


def test_a_mixer_of_a_notebook_cell_is_refused(text: Path, tmp_path: Path) -> None:
    code = "from workbench.models.mixers.fast_weight import FastWeightConfig\n"
    code += (
        "from typing import Literal\nclass Cell(FastWeightConfig):\n    kind: Literal['c'] = 'c'"
    )
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "cell", "exec", dont_inherit=True), space)
    try:
        asked = {
            "d_model": 8,
            "stack": [{"block": {"mixer": {"kind": "c", "n_heads": 2, "d_head": 4}}}],
        }
        data = {**shared(text).model_dump(mode="json"), "model": asked}
        with pytest.raises(ConfigError, match="Cell is defined in this notebook"):
            launched(load(Recipe, data), tmp_path / "run")
    finally:
        FastWeightConfig.registry.pop("c")


def test_nobody_outlives_a_killed_notebook(text: Path, tmp_path: Path) -> None:
    """The processes notice, write their checkpoint and go."""
    (tmp_path / "long.yaml").write_text(long(text).to_yaml())
    code = (
        "import sys, workbench; run = workbench.start(sys.argv[1], out=sys.argv[2], processes=2)\n"
    )
    code += "for record in run: pass"
    command = [sys.executable, "-c", code, str(tmp_path / "long.yaml"), str(tmp_path / "run")]
    paths = [str(Path(workbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    notebook = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    folder = RunFolder(tmp_path / "run")
    assert within(120, lambda: bool(folder.records("checkpoint"))), notebook.communicate()[1]
    pid = leader(folder)
    notebook.kill()
    notebook.communicate()
    assert within(30, lambda: not alive(pid))
    assert folder.status()["state"] == "stopped" and folder.status()["message"] == "SIGTERM"
    assert folder.records()[-1]["reason"] == "interrupted"


SLEEPER = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
open(sys.argv[1] + os.environ["RANK"], "w").write(str(os.getpid()))
time.sleep(300)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_processes_that_do_not_listen_are_killed(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: int
) -> None:
    """After their time to write a checkpoint; at a second interrupt at once."""
    monkeypatch.setattr(torchrun, "GRACE_S", 0.5 if signals == 1 else 60.0)
    monkeypatch.setattr(launch, "ECHO_S", 0.0)
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    run = launched(long(text), tmp_path / "run")
    begun: list[Torchrun] = []

    def begin() -> Torchrun:
        words = ["sleeper", str(tmp_path / "pid")]
        begun.append(Torchrun(words, 2, tmp_path / "log", tmp_path, {"OMP_NUM_THREADS": "1"}))
        return begun[0]

    monkeypatch.setattr(run, "_start", begin)
    files = [tmp_path / "pid0", tmp_path / "pid1"]

    def interrupt() -> None:
        assert within(120, lambda: all(f.is_file() and f.read_text() for f in files))
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    # jobs in the background of a shell are started with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt) if signals == 2 else nullcontext():
            assert list(run) == []
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert not [pid for pid in (int(file.read_text()) for file in files) if alive(pid)]
    assert begun[0].ended() == -signal.SIGKILL
    assert begun[0].failure().how == "torchrun was killed by SIGKILL"


def line(step: int, seconds: float = 0.0) -> str:
    return to_json(DoneRecord(step=step, reason="steps", elapsed_s=seconds)) + "\n"


def test_a_follower_reads_each_record_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    path.write_text(line(1) + line(2)[:20])
    assert [r.step for r in follower.read()] == [1]
    with path.open("a") as file:
        file.write(line(2)[20:] + line(3))
    assert [r.step for r in follower.read()] == [2, 3] and follower.read() == []
    # what a run does that goes back to a checkpoint, then on past where it was
    (tmp_path / "new").write_text(line(1) + line(2))
    os.replace(tmp_path / "new", path)
    assert follower.read() == []
    with path.open("a") as file:
        file.write("".join(line(step, 9.0) for step in (3, 4, 5)))
    assert [(r.step, r.elapsed_s) for r in follower.read()] == [(3, 9.0), (4, 9.0), (5, 9.0)]
    late = Follower(path)
    late.skip()
    assert late.read() == []
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(ValueError, match="expected a record"):
        follower.read()


TABLE = """
============================================================
workbench.train FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-01_00:00:00
  host      : here
  rank      : 1 (local_rank: 1)
  exitcode  : {} (pid: 12)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : here
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 11)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org
============================================================
"""


@pytest.mark.parametrize(
    ("status", "how"),
    [("1", "process 0 ended with status 1"), ("-9", "process 1 was killed by SIGKILL"),
     ("-15", "process 0 ended with status 1")],
)  # fmt: skip
def test_the_table_of_torchrun_is_understood(status: str, how: str) -> None:
    assert torchrun._how(TABLE.format(status)) == how
    assert torchrun._how("something else") == ""


def test_the_first_traceback_is_found_between_other_lines() -> None:
    mark = "Traceback (most recent call last):"
    lines = ["step 5", f"[rank1]: {mark}", '[rank1]:   File "a.py", line 1']
    lines += [f"[rank0]: {mark}", "[rank1]:     f()", "[rank0]:   other"]
    lines += ["[rank1]: ValueError: no", "[rank1]: more"]
    assert torchrun._traceback(lines) == '  File "a.py", line 1\n    f()\nValueError: no'
    told = ["workbench: data.batch_size is 3,", "  write 4", "workbench: data.batch_size", "x"]
    assert torchrun._message(told) == "data.batch_size is 3,\n  write 4"
