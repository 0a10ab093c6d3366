"""Runs that torchrun starts, to be stopped, killed and continued by the tests of several processes.

Started as a script by torchrun it trains with a fault: `worlds.py FAULT RECIPE OUT`.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

import workbench
from workbench.data.batches import Batch
from workbench.errors import DataError
from workbench.train import __main__ as program
from workbench.train.folder import RunFolder

STEPS, EVERY = 60, 15
STACK = [
    {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 6, "p_attention": 0.1},
    {"kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "delta"},
    {"kind": "lstm", "d_hidden": 8, "p_weight": 0.2},
]


def write_recipe(folder: Path, **train: Any) -> Path:
    """A recipe of 60 updates with every kind of state and of dropout, and its text."""
    draw = random.Random(4)
    text = folder / "text.txt"
    text.write_text("".join(draw.choice("abcde ") for _ in range(2500)), encoding="ascii")
    data = {
        "name": "several",
        "data": {
            "corpus": {"kind": "text", "path": str(text)}, "segment_len": 7, "batch_size": 4,
            "random_lengths": {"std": 2.0, "min_len": 3},
        },
        "model": {
            "d_model": 8, "p_symbol": 0.1,
            "stack": [{"block": {"mixer": mixer, "p_drop": 0.1}} for mixer in STACK],
        },
        "train": {
            "steps": STEPS, "optimizer": {"kind": "adam", "lr": 3e-3}, "clip_norm": 0.5,
            "schedule": {"kind": "cosine", "warmup_steps": 4}, "log_every": 3, "eval_every": 20,
            "eval_tokens": 60, "checkpoint_every": EVERY, "device": "cpu", **train,
        },
        "eval": {"segment_len": 32, "batch_size": 2},
    }  # fmt: skip
    path = folder / "several.yaml"
    path.write_text(yaml.safe_dump(data), encoding="ascii")
    return path


class Agent:
    """torchrun, which starts the processes and watches over them.

    Args:
        words: torchrun's own, and what it is to run.
        log: where all of them write to.
    """

    def __init__(self, *words: str, log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "torch.distributed.run", *words]
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, close_fds=True)

    def text(self) -> str:
        return self.log.read_text("utf-8")

    def workers(self) -> dict[int, int]:
        """The process id of each rank."""
        pid = self.process.pid
        found = {}
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            settings = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if rank := [x[5:] for x in settings if x.startswith(b"RANK=")]:
                found[int(rank[0])] = int(child)
        return found

    def ends(self, seconds: float = 120) -> int:
        """The exit status, once it is there."""
        return self.process.wait(seconds)

    def until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for something to come true while it runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.text()[-5000:]
            assert time.monotonic() < end, self.text()[-5000:]
            time.sleep(0.02)


@contextmanager
def torchrun(
    recipe: Path, out: Path, *more: str, size: int = 2, words: tuple[str, ...] = ()
) -> Iterator[Agent]:
    """`torchrun -m workbench.train`, which does not outlive the test.

    Args:
        recipe, out, more: of the training program.
        size: processes.
        words: further ones for torchrun.
    """
    nodes = [] if "--rdzv-backend=c10d" in words else ["--standalone"]
    start = [*nodes, f"--nproc-per-node={size}", *words, "-m", "workbench.train"]
    agent = Agent(*start, str(recipe), "--out", str(out), *more, log=out.with_suffix(".log"))
    try:
        yield agent
    finally:
        if agent.process.poll() is None:
            children = agent.workers().values()
            agent.process.kill()
            agent.process.wait()
            for pid in children:
                os.kill(pid, signal.SIGKILL)


def finish(recipe: Path, out: Path, *more: str, size: int = 2) -> RunFolder:
    """Train to the end."""
    with torchrun(recipe, out, *more, size=size) as agent:
        assert agent.ends() == 0, agent.text()[-5000:]
    return RunFolder(out)


def came_to(out: Path, step: int) -> Callable[[], bool]:
    """Whether a run has told of so many updates."""
    return lambda: any(row["step"] >= step for row in RunFolder(out).records())


def weights(out: Path) -> dict[str, torch.Tensor]:
    return RunFolder(out).load_model().state_dict()


def same_bits(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def told(out: Path, *kinds: str) -> list[tuple[Any, ...]]:
    """What the records of a run say that does not depend on the clock."""
    rows = RunFolder(out).records()
    fields = ("kind", "step", "loss_nats", "grad_norm", "lr", "tokens")
    return [tuple(row.get(f) for f in fields) for row in rows if row["kind"] in kinds]


def complaints(text: str) -> list[str]:
    """What the program itself says in a log that holds torchrun's words, too."""
    return re.findall(r"^workbench: .*$", text, re.MULTILINE)


def main(fault: str, recipe: str, out: str) -> int:
    """Train; in process 1 something goes wrong in update 20."""
    torch.set_num_threads(1)
    of_run = workbench.start

    def faulty(*given: Any, **named: Any) -> Any:
        run = of_run(*given, **named)
        trainer = run._trainer
        good = trainer.segments.next

        def bad() -> Batch:
            if trainer.step == 20 and trainer.world.rank == 1:
                if fault == "data":
                    raise DataError("the disk of this machine is gone")
                if fault == "hang":
                    time.sleep(3600)
                # a weight that the others do not share: NaN in the loss of this process's rows
                with torch.no_grad():
                    run.model.final_norm = torch.nn.Threshold(1e9, float("nan"))
            return good()

        trainer.segments.next = bad
        return run

    program.start = faulty
    return program.main([recipe, "--out", out])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
