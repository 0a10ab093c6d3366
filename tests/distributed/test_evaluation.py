"""An evaluation that processes share gives what one process gives, in all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation_worker import CASES, RETRIEVAL, measured

import workbench
from workbench import cli
from workbench.config import load
from workbench.recipe import Recipe
from workbench.train.config import EvalConfig
from workbench.train.distributed import ALONE, World
from workbench.train.sharing import share

SAME_ROWS = [name for name in CASES if name.startswith("windows") or "one row" in name]


def torchrun(processes: int, *words: str) -> str:
    """What so many processes say together."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *start, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-9000:]
    return done.stdout


@pytest.mark.distributed
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_measure_what_one_does(processes: int, tmp_path: Path) -> None:
    worker, out = Path(__file__).with_name("evaluation_worker.py"), tmp_path / "measured.pt"
    torchrun(processes, str(worker), str(out))
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


@pytest.mark.distributed
def test_the_command_measures_in_processes_what_it_does_alone(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("so many words, and so few of them new. " * 40)
    mixer = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 6}
    data = {
        "name": "tiny",
        "data": {
            "corpus": {"kind": "text", "path": str(tmp_path / "text.txt")},
            "segment_len": 7, "batch_size": 3,
        },
        "model": {"d_model": 8, "stack": [{"block": {"mixer": mixer}, "repeat": 2}]},
        "train": {"steps": 2, "optimizer": {"kind": "adam", "lr": 3e-3}, "device": "cpu"},
        "eval": {"segment_len": 32, "batch_size": 2},
    }  # fmt: skip
    run = workbench.start(load(Recipe, data), out=tmp_path / "run")
    for _ in run:
        pass
    words = ["-m", "workbench", "evaluate", str(tmp_path / "run"), "--json", "--set"]
    found = json.loads(torchrun(2, *words, "eval.context_len=9"))
    tokens = run.corpus.splits["test"]
    expected = workbench.evaluate(run.model, tokens, EvalConfig(context_len=9))
    assert found["loss_nats"] == pytest.approx(expected.mean_nats, rel=1e-6)
    assert (found["processes"], found["tokens"]) == (2, expected.tokens)
    done = subprocess.run(
        [sys.executable, *words, "model.d_model=9"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2 and "stays as it is" in done.stderr
    assert cli.main(["evaluate", str(tmp_path / "run"), "--split", "valid"]) == 0
