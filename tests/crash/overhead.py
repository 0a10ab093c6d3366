"""What checkpoints and records cost beside the training: run as a program.

    PYTHONPATH=tests python -m crash.overhead delta-python-tiny
    PYTHONPATH=tests python -m crash.overhead txl-enwik8-base --rows 2 --text some.txt

Prints the seconds of an update, of a checkpoint and of a record, and their share of the time at
the recipe's `checkpoint_every` and `log_every`. With `--rows` the batch is smaller than the
recipe's, and the share is told for the whole batch too, whose updates take so many times longer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.recipe import load_recipe
from workbench.train.run import Run
from workbench.train.start import start


def seconds(n: int, work: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
    """The median of n times; what comes before each is not timed."""
    taken = []
    for _ in range(n):
        before()
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def update(run: Run) -> None:
    with run._trainer.random():
        run._trainer.update()


def measure(run: Run, n: int) -> dict[str, float]:
    update(run)
    return {
        "update_s": seconds(n, lambda: update(run)),
        # the first of a folder deletes none
        "checkpoint_s": seconds(n, lambda: run._checkpoint(None), before=lambda: update(run)),
        "record_s": seconds(
            n, lambda: run._commit(run._trainer.record(0.0)), before=lambda: update(run)
        ),
        "bytes": float(run.folder.records("checkpoint")[-1]["bytes"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--text", help="read this file instead of the recipe's corpus")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", default=tempfile.gettempdir(), help="the disk that is written to")
    given = parser.parse_args()
    whole: Any = load_recipe(given.recipe)
    overrides: dict[str, Any] = {"train.device": "cpu"}
    if given.rows:
        overrides["data.batch_size"] = given.rows
    if given.text:
        overrides["data.corpus"] = {"kind": "text", "path": given.text}
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        run = start(load_recipe(given.recipe, overrides), out=Path(folder) / "run")
        got = measure(run, given.times)
        n_parameters = run.model.n_parameters
    say = sys.stdout.write
    say(f"{given.recipe}: {n_parameters:,} parameters, checkpoint of {got['bytes'] / 1e6:.1f} MB\n")
    train, times = whole.train, whole.data.batch_size / (given.rows or whole.data.batch_size)
    for name, every in (("checkpoint", train.checkpoint_every), ("record", train.log_every)):
        cost, step = got[f"{name}_s"], got["update_s"]
        say(
            f"  update {step:.4f} s, {name} {cost:.4f} s, every {every}: "
            f"{100 * cost / (cost + every * step):.3f} % of the time"
            + (f", {100 * cost / (cost + every * step * times):.4f} % at full batch\n")
        )


if __name__ == "__main__":
    main()
