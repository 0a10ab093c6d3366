"""What every test shares: one thread, folders of its own, kernels built once, `--golden DIR`."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest

# before torch is imported, and for the processes that tests start: two test processes on two cores
# are faster than one with two threads, and sums come out the same on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

pytest_plugins = ["parity.table", "crash.table", "browser.options"]

HERE = Path(__file__).parent
SCRATCH = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        default=str(HERE / "golden"),
        help="folder of golden arrays for the parity tests (default: tests/golden)",
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    build_kernels()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    # set by the first process only; those that xdist starts inherit it and share prepared corpora
    config.stash[SCRATCH] = Path(tempfile.mkdtemp(prefix="workbench-tests-"))
    os.environ["WORKBENCH_DATA"] = str(config.stash[SCRATCH] / "data")


def build_kernels() -> None:
    """Compile the kernels that this machine can, once; into the user's cache, as a run would.

    Before the first test, so that no test warns that there are none yet.
    """
    from workbench import kernels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no compiler: the tests then run on the references
        kernels.prepare()


def pytest_unconfigure(config: pytest.Config) -> None:
    if SCRATCH in config.stash:
        shutil.rmtree(config.stash[SCRATCH], ignore_errors=True)


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """The folder given by `--golden`."""
    return Path(request.config.getoption("--golden")).resolve()
