"""An evaluation that processes share gives what one process gives, in all of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation_worker import CASES, RETRIEVAL, measured

from workbench.train.distributed import ALONE, World
from workbench.train.sharing import share

SAME_ROWS = [name for name in CASES if name.startswith("windows") or "one row" in name]


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_measure_what_one_does(processes: int, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    worker, out = Path(__file__).with_name("evaluation_worker.py"), tmp_path / "measured.pt"
    command = [sys.executable, *torchrun, str(worker), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]
    expected, found = measured(ALONE), torch.load(out, weights_only=True)
    assert found.keys() == expected.keys() and len(found) == 2 * len(CASES) + len(RETRIEVAL)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=2e-6, msg=name)
    # the same products of the same matrices
    for name in SAME_ROWS:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_shares_are_equal_and_in_order(n: int, size: int) -> None:
    shares = [share(n, World(rank, size)) for rank in range(size)]
    assert {len(x) for x in shares} == {-(-n // size)}
    assert torch.cat(shares)[:n].tolist() == list(range(n))
