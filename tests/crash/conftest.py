"""Processes that train for the tests of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workbench
from crash import mixers
from crash.compare import run_folder
from workbench.train.folder import RunFolder

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Of a process that imports what the tests import, on one thread."""
    paths = [str(TESTS), str(Path(workbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


class Trainee:
    """The program `trainee.py`, and what it answers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "crash.trainee"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, recipe: Path, out: Path, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        words = {"recipe": str(recipe), "out": str(out), **order}
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the program that trains has died itself"
        result: dict[str, Any] = json.loads(answer)
        return result

    def forked(
        self, recipe: Path, out: Path, blow: Any = None, after_s: float | None = None
    ) -> dict[str, Any]:
        """Train in a process of its own, which may be killed."""
        return self.ask(recipe, out, here=False, blow=blow, after_s=after_s)

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="session")
def trainee() -> Iterator[Trainee]:
    """Forks for each run; trains nothing itself."""
    program = Trainee()
    yield program
    program.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`undisturbed(mixer)`: its recipe, and a run of it by a process that is left alone."""
    program, known = Trainee(), dict[str, tuple[Path, RunFolder]]()

    def run_of(mixer: str) -> tuple[Path, RunFolder]:
        if mixer not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            recipe = mixers.write_recipe(mixer, folder)
            program.ask(recipe, folder / "run", here=True)
            known[mixer] = recipe, run_folder(folder / "run")
        return known[mixer]

    yield run_of
    program.close()
