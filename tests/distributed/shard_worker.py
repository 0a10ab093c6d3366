"""Trains one recipe after another: `OUT TEXT UNTIL NAME...`; says what each process holds.

Each case goes on in the folder of its name, to the checkpoint of update UNTIL or to its end.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import workbench
from workbench.config import load
from workbench.recipe import Recipe
from workbench.train import distributed
from workbench.train.run import Run

XL = {"kind": "attention", "n_heads": 2, "d_head": 8, "memory_len": 6}
SPAN = {
    **XL, "attend_self": False, "memory_start": "zeros",
    "positions": {"kind": "relative_learned", "max_distance": 6},
    "span": {"limit": 6, "ramp": 3, "initial": 0.1, "penalty": 0.05},
}  # fmt: skip
DYNAMIC = {**SPAN, "span": {**SPAN["span"], "dynamic": True}}
DELTA = {"kind": "fast_weight", "n_heads": 2, "d_head": 8, "rule": "delta"}
LSTM = {"kind": "lstm", "d_hidden": 32, "p_weight": 0.3}
ADAM = {"kind": "adam", "lr": 3e-3}
RARE = {"kind": "adaptive", "cutoffs": [3, 6], "div_val": 2}
FEED = {"kind": "feed_forward", "d_ffn": 48}

CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "transformer-xl": ([XL, XL], {"train.optimizer": ADAM}),
    "delta": ([DELTA, DELTA], {"train.optimizer": {**ADAM, "kind": "adamw"}}),
    "delta, recomputed": ([DELTA, DELTA], {"train.recompute": True}),
    "spans": ([SPAN, SPAN], {}),
    "dynamic spans": ([DYNAMIC, XL], {}),
    "pieces": ([XL, DELTA], {"train.micro_batches": 2}),
    "rare symbols": ([XL, DELTA], {"model.vocabulary": RARE}),
    "averaged": ([LSTM, LSTM], {
        "train.optimizer": {"kind": "asgd", "lr": 0.5}, "train.eval_every": 3,
    }),
}  # fmt: skip


def recipe(name: str, text: str) -> Recipe:
    mixers, changes = CASES[name]
    channel = {} if LSTM in mixers else {"channel": FEED}
    data = {
        "name": "sharded",
        "data": {"corpus": {"kind": "text", "path": text}, "segment_len": 7, "batch_size": 12},
        "model": {"d_model": 32, "stack": [{"block": {"mixer": m, **channel}} for m in mixers]},
        "train": {
            "steps": 20, "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
            "clip_norm": 0.5, "log_every": 5, "eval_every": 10, "eval_tokens": 60,
            "checkpoint_every": 10, "device": "cpu", "shard": True,
        },
        "eval": {"segment_len": 32, "batch_size": 2},
    }  # fmt: skip
    for path, value in changes.items():
        section, key = path.split(".")
        data[section][key] = value  # type: ignore[index]
    return load(Recipe, data)


def held(run: Run) -> dict[str, int]:
    """Bytes of weights and of the optimizer's sums in this process."""
    optimizer = run._trainer.optimizer
    sums = [x for state in optimizer.state.values() for x in state.values()]
    return {
        "weights": sum(p.nbytes for group in optimizer.param_groups for p in group["params"]),
        "sums": sum(x.nbytes for x in sums if isinstance(x, Tensor)),
    }


def main(out: str, text: str, until: str, *names: str) -> None:
    """Train each case into a folder of its name, in float64."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name in names:
        run = workbench.start(recipe(name, text), out=Path(out) / name)
        for record in run:
            if record.kind == "checkpoint" and record.step == int(until):
                break
        (Path(out) / f"{name} {run.world.rank}.json").write_text(json.dumps(held(run)))
        # the whole model can be measured by all together, at any time
        it = workbench.evaluate(
            run.model, run.corpus.splits["valid"], run.recipe.eval, world=run.world
        )
        if run.leads:
            (Path(out) / f"{name}.txt").write_text(repr(it.mean_nats))
    distributed.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
