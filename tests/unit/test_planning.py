"""What is planned on tensors without numbers is what a run then holds."""

import re
from pathlib import Path

import pytest
import torch
from tiny_run import FAST, SPAN, XL, recipe, write_text

import workbench
from workbench import carry as carries
from workbench.errors import ConfigError
from workbench.recipe import load_recipe
from workbench.train.planning import COLUMNS, memory_plan, row

PAGE = Path(workbench.__file__).parent / "train" / "SCALING.md"
LSTM = {"kind": "lstm", "d_hidden": 8}
FACTOR = 3.0
"""between what references and what compiled backends keep of tiny layers"""


@pytest.mark.parametrize(
    ("mixers", "train"),
    [
        ([XL, SPAN, FAST, XL], {}),
        ([LSTM, FAST], {"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9}}),
        ([XL], {"optimizer": {"kind": "asgd", "lr": 0.1}}),
        ([SPAN, SPAN], {"optimizer": {"kind": "adagrad", "lr": 0.1, "clip": "per_tensor"}}),
    ],
)
def test_weights_optimizer_and_carry_are_exact(mixers, train, tmp_path):
    model = {"d_model": 8, "stack": [{"block": {"mixer": m}} for m in mixers]}
    asked = recipe(write_text(tmp_path / "text.txt"), model, steps=4, **train)
    run = workbench.start(asked, out=tmp_path / "run")
    list(run)
    plan = memory_plan(asked, n_symbols=run.model.vocab_size)
    trainer = run._trainer
    sums = [x for entry in trainer.optimizer.state.values() for x in entry.values()]
    assert plan.weights_bytes == sum(p.nbytes for p in run.model.parameters())
    assert plan.gradients_bytes == plan.weights_bytes and plan.gathered_bytes == 0
    assert plan.optimizer_bytes == sum(x.nbytes for x in sums if isinstance(x, torch.Tensor))
    assert plan.carry_bytes == carries.nbytes(trainer.carry)


@pytest.mark.parametrize("mixer", [XL, SPAN, FAST])
def test_what_blocks_keep_is_near(mixer, tmp_path):
    model = {"d_model": 8, "stack": [{"block": {"mixer": mixer}, "repeat": 2}]}
    asked = recipe(write_text(tmp_path / "text.txt"), model)
    planned, real = (memory_plan(asked, n_symbols=9, device=on) for on in ("meta", "cpu"))
    assert real.kept_bytes / FACTOR < planned.kept_bytes < real.kept_bytes * FACTOR
    assert (planned.carry_bytes, planned.optimizer_bytes) == (
        real.carry_bytes, real.optimizer_bytes)  # fmt: skip
    again = memory_plan(asked.model_copy(update={
        "train": asked.train.model_copy(update={"recompute": True})}), n_symbols=9)  # fmt: skip
    assert again.kept_bytes < planned.kept_bytes


def test_processes_take_their_share():
    large = load_recipe("txl-enwik8-large")
    one, four, spread = (
        memory_plan(large, n, shard=s) for n, s in ((1, False), (4, False), (4, True))
    )
    assert four.carry_bytes * 4 == one.carry_bytes and four.kept_bytes * 4 == one.kept_bytes
    assert four.weights_bytes == one.weights_bytes and four.gradients_bytes == 2 * one.weights_bytes
    assert spread.weights_bytes == one.weights_bytes // 4
    assert spread.optimizer_bytes == one.optimizer_bytes // 4
    with pytest.raises(ConfigError, match="5 processes cannot share"):
        memory_plan(large, 5)


def test_the_page_has_these_numbers():
    lines = re.findall(r"^\| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    tables = [i for i, cells in enumerate(rows) if tuple(cells) == COLUMNS]
    assert len(tables) == 2
    for start, (processes, shard) in zip(tables, ((1, False), (8, True)), strict=True):
        found = rows[start + 2 : start + 2 + 5]
        assert len({cells[0] for cells in found}) == 5
        for cells in found[:2]:
            assert cells == row(
                cells[0], memory_plan(load_recipe(cells[0]), processes, shard=shard)
            )
