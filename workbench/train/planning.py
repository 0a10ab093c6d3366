"""How much memory training a recipe takes, without training it: `workbench/train/SCALING.md`.

Weights, gradients, the optimizer's sums and the carry are counted exactly, on tensors without
numbers. What the blocks keep for the backward pass is what the reference of each op keeps, which
compiled backends undercut (`--device` counts those); the vocabulary's part, temporary results and
the allocator's gaps come on top.

    python -m workbench.train.planning txl-enwik8-large span-enwik8-large --processes 8 --shard
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench import carry as carries
from workbench.config import dump, load
from workbench.errors import ConfigError
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.recipe import AnyRecipe, Recipe, load_recipe, of_text
from workbench.train.averaging import AveragedSGD
from workbench.train.config import TrainConfig

MOST_SEGMENTS = 10_000
"""until a memory is full, at most"""


@dataclass(frozen=True)
class MemoryPlan:
    """What one of the processes holds, in bytes, at the end of a forward pass."""

    parameters: int
    """numbers of the whole model, not bytes"""
    weights_bytes: int
    gradients_bytes: int
    """with DDP's copy of them, where several processes do not shard"""
    optimizer_bytes: int
    gathered_bytes: int
    """sharded: both ends of the vocabulary with their gradient, and two blocks at a time"""
    carry_bytes: int
    """of this process's rows, when every memory is full"""
    kept_bytes: int
    """for the backward pass, by all blocks for the rows of one micro-batch"""
    kept_bytes_per_token: int
    """the same for one token of one row, in a block on average"""

    @property
    def total_bytes(self) -> int:
        held = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes
        return held + self.gathered_bytes + self.carry_bytes + self.kept_bytes


def memory_plan(
    recipe: AnyRecipe,
    processes: int = 1,
    *,
    shard: bool = False,
    n_symbols: int | None = None,
    device: str = "meta",
) -> MemoryPlan:
    """Count before anything is spent.

    Args:
        recipe: of a text.
        processes: that share each batch.
        shard: as `train.shard`.
        n_symbols: of the vocabulary, where only the text knows them.
        device: `meta` computes nothing; on a real one the blocks run once, in one row, and what
            their backends keep there is counted.

    Raises:
        ConfigError: the rows cannot be shared evenly, or nobody knows the symbols.
    """
    recipe = of_text(recipe)
    n_symbols = n_symbols or recipe.data.n_symbols
    if n_symbols is None:
        raise ConfigError("only the text knows how many symbols there are; give n_symbols")
    rows, left = divmod(recipe.data.batch_size, processes)
    if left or rows % recipe.train.micro_batches:
        raise ConfigError(
            f"data.batch_size is {recipe.data.batch_size}, which {processes} processes cannot "
            f"share evenly in {recipe.train.micro_batches} pieces each; change one of them"
        )
    with torch.device("meta"):
        model = _untrimmed(recipe.model).build(n_symbols)
        optimizer = _sums_bytes(model, recipe.train)
    with torch.device(device):
        it = model if device == "meta" else _untrimmed(recipe.model).build(n_symbols)
        kept, carry = _of_a_row(it, recipe)
    weights = sum(p.nbytes for p in model.parameters())
    share = processes if shard else 1
    blocks = [sum(p.nbytes for p in block.parameters()) for block in model.layers]
    ends = weights - sum(p.nbytes for p in set(model.blocks.parameters()))
    copies = 2 if processes > 1 and not shard else 1
    return MemoryPlan(
        parameters=model.n_parameters,
        weights_bytes=weights // share,
        gradients_bytes=copies * weights // share,
        optimizer_bytes=optimizer // share,
        gathered_bytes=2 * (ends + max(blocks)) if share > 1 else 0,
        carry_bytes=carry * rows,
        kept_bytes=kept * rows // recipe.train.micro_batches,
        kept_bytes_per_token=kept // (recipe.data.segment_len * len(model.blocks)),
    )


def _untrimmed(config: ModelConfig) -> ModelConfig:
    """As long as no head has shortened its memory: how far it reaches is not known without one."""

    def changed(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: False if k == "trim_memory" else changed(v) for k, v in x.items()}
        return [changed(v) for v in x] if isinstance(x, list | tuple) else x

    return load(ModelConfig, changed(dump(config)))


def _sums_bytes(model: LanguageModel, config: TrainConfig) -> int:
    """What the optimizer remembers after an update, and once it averages."""
    optimizer = config.optimizer.build(model, config.clip_norm)
    if isinstance(optimizer, AveragedSGD):
        optimizer.begin()
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    optimizer.step()
    for p in model.parameters():
        p.grad = None
    sums = [x for state in optimizer.state.values() for x in state.values()]
    return sum(x.nbytes for x in sums if isinstance(x, Tensor))


def _of_a_row(model: LanguageModel, recipe: Recipe) -> tuple[int, int]:
    """Of one row: what blocks keep for the backward pass, and the carry when all is full."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in own:
            # held, so that no other takes its number
            kept[storage._cdata] = storage
        return x

    x_BTD = torch.ones(1, recipe.data.segment_len, model.config.d_model, requires_grad=True)
    each: list[int] = []
    carry = []
    model.train()
    for block, first in zip(model.layers, model.initial_carry(1), strict=True):
        state = _full(lambda s, b=block, x=x_BTD: b(x, s)[1], first)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            y_BTD, state = block(x_BTD, state)
        each.append(sum(storage.nbytes() for storage in kept.values()))
        kept.clear()
        carry.append(state)
        x_BTD = y_BTD.detach().requires_grad_()
    # all inputs, and what one block keeps while it is run again
    again = len(each) * x_BTD.nbytes + max(each)
    n_bytes, full = again if recipe.train.recompute else sum(each), tuple(carry)
    return n_bytes, carries.nbytes(full) if recipe.train.carry == "keep" else 0


@torch.no_grad()
def _full(step: Any, state: Any) -> Any:
    """A state that has stopped growing."""
    for _ in range(MOST_SEGMENTS):
        new = step(state)
        if carries.nbytes((new,)) == carries.nbytes((state,)):
            break
        state = new
    return state


COLUMNS = (
    "recipe", "parameters", "weights", "gradients", "optimizer", "gathered", "carry", "kept",
    "in all", "kept by a token and block",
)  # fmt: skip


def row(name: str, plan: MemoryPlan) -> list[str]:
    """A recipe's plan in millions and GiB, under `COLUMNS`; the last one in KiB."""
    parts = (
        plan.weights_bytes, plan.gradients_bytes, plan.optimizer_bytes, plan.gathered_bytes,
        plan.carry_bytes, plan.kept_bytes, plan.total_bytes,
    )  # fmt: skip
    numbers = [f"{n / 2**30:.2f}" for n in parts]
    each = f"{plan.kept_bytes_per_token / 1024:.0f}"
    return [name, f"{plan.parameters / 1e6:.1f}", *numbers, each]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table of recipes as Markdown."""
    parser = argparse.ArgumentParser(description="memory that a process of a training run takes")
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--device", default="meta", help="count what backends keep on cpu, cuda")
    given = parser.parse_args(arguments)
    lines = [list(COLUMNS), ["---"] + ["---:"] * (len(COLUMNS) - 1)]
    for name in given.recipes:
        plan = memory_plan(
            load_recipe(name), given.processes, shard=given.shard, device=given.device
        )
        lines.append(row(name, plan))
    sys.stdout.write("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
