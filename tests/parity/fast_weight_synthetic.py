"""The fast-weight paper's synthetic retrieval: batches, outputs, gradients, first updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.golden import Comparison, Golden, Unknown
from workbench.config import load
from workbench.data.batches import Batch
from workbench.data.retrieval import Sequences, questions
from workbench.models.feature_maps import Favor
from workbench.models.retrieval import RetrievalModel, RetrievalModelConfig
from workbench.originals import fast_weight_synthetic as synthetic
from workbench.originals.links import in_their_layout, load_parameters
from workbench.train.config import TrainConfig
from workbench.train.trainer import Trainer


def run(golden: Golden, dtype: torch.dtype) -> Comparison:
    """Run everything a file records and compare it (`Unknown`)."""
    kind = golden.meta["codebase"].removeprefix("fast-weight-transformers/synthetic").strip()
    compare = Comparison(golden, str(dtype).removeprefix("torch."))
    runs: dict[str, Callable[[Golden, torch.dtype, Comparison], None]] = {
        "(associativeRetrievalDataset.DataLoader)": run_generator,
        "(main.train)": run_steps,
        "": run_model,
    }
    if kind not in runs:
        raise Unknown(f"{golden.name}: code base '{golden.meta['codebase']}'")
    runs[kind](golden, dtype, compare)
    return compare


def run_generator(golden: Golden, dtype: torch.dtype, compare: Comparison) -> None:
    """Training batches and an evaluation sequence, number by number."""
    ctor = golden.ctor
    if set(ctor) != {"n_keys", "n_values", "seq_len", "replace"} or (
        ctor["n_keys"] != ctor["n_values"]
    ):
        raise Unknown(f"{golden.name}: sequences of {ctor}")
    source = Sequences(ctor["n_keys"], ctor["seq_len"], ctor["replace"], golden.meta["numpy_seed"])

    def compare_samples(at: str, samples: list[Any]) -> None:
        tokens_BT, targets_BQ = questions(samples)
        compare.out(f"{at}/x", tokens_BT[:, :-1].unflatten(1, (-1, 2)).transpose(1, 2))
        compare.out(f"{at}/q", tokens_BT[:, -1:])
        compare.out(f"{at}/y", targets_BQ)

    for i in range(sum(key.endswith("/q") for key in golden.keys("out/batch"))):
        samples = [source.sample() for _ in range(golden.meta["batch"])]
        compare_samples(f"out/batch{i}", [(k, v, np.array([q])) for k, v, q in samples])
    keys, values, queries = source.all_queries()
    # theirs repeats the sequence for each query; ours asks one sequence several queries
    single = np.split(queries, len(queries))
    compare_samples("out/all_queries", [(keys, values, query) for query in single])


def tokens(golden: Golden, at: str) -> tuple[Tensor, Tensor]:
    """A recorded batch as our models read it."""
    pairs_BT2, queries_BQ = golden.tensor(f"{at}/x").transpose(1, 2), golden.tensor(f"{at}/q")
    return torch.cat([pairs_BT2.flatten(1), queries_BQ], dim=1), golden.tensor(f"{at}/y")


def build(golden: Golden, dtype: torch.dtype) -> RetrievalModel:
    """Our model with the file's parameters."""
    config = load(RetrievalModelConfig, synthetic.model_config(golden.ctor), "model")
    model = config.build(2 * golden.ctor["n_keys"]).to(dtype)
    unused = synthetic.unused(golden.ctor)
    theirs = golden.parameters()
    if "grad_is_none" in golden.meta and set(golden.meta["grad_is_none"]) != unused:
        raise Unknown(f"{golden.name}: expected {sorted(unused)} to have no gradient")
    used = {name: value for name, value in theirs.items() if name not in unused}
    load_parameters(model, synthetic.links(golden.ctor), used, golden.name)
    return model


def set_projection(golden: Golden, model: RetrievalModel, key: str) -> None:
    """FAVOR+: the random matrix that the original drew for a pass."""
    if isinstance(model.feature_map, Favor):
        if key not in golden:
            raise Unknown(f"{golden.name}: there is no projection `{key}`")
        matrix = golden.tensor(key)
        model.feature_map.draw = lambda: matrix


def run_model(golden: Golden, dtype: torch.dtype, compare: Comparison) -> None:
    """One batch: answers, loss, gradients."""
    model = build(golden, dtype)
    set_projection(golden, model, "extra/Omega")
    tokens_BT, targets_BQ = tokens(golden, "input")
    y_BQV = model(tokens_BT[:, :-1].unflatten(1, (-1, 2)), tokens_BT[:, -1:])
    compare.out("out/y_hat", y_BQV.squeeze(1))
    loss = model.nll(tokens_BT, targets_BQ, ())[0].mean()
    compare.out("out/loss", loss)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    theirs = in_their_layout(grads, synthetic.links(golden.ctor), golden.shapes())
    for name, grad in theirs.items():
        compare.grad("grad", name, grad)


class Recorded:
    """The file's own batches, for the trainer."""

    ext_len = 0

    def __init__(self, golden: Golden):
        steps = range(golden.meta["train"]["steps"])
        self._left = iter([tokens(golden, f"input/step{i}") for i in steps])

    def next(self) -> Batch:
        return Batch(*next(self._left), fresh=True, lr_scale=1.0)


def run_steps(golden: Golden, dtype: torch.dtype, compare: Comparison) -> None:
    """The first updates of our trainer: losses before each."""
    plan = golden.meta["train"]
    if set(plan) != {"lr", "optim", "steps"} or plan["optim"] != "adam":
        raise Unknown(f"{golden.name}: training with {plan}")
    model = build(golden, dtype)
    optimizer = {"kind": "adam", "lr": plan["lr"]}
    config = load(TrainConfig, {"steps": plan["steps"], "optimizer": optimizer}, "train")
    trainer = Trainer(model, Recorded(golden), config, golden.name)
    for i in range(plan["steps"]):
        set_projection(golden, model, f"extra/step{i}/Omega")
        trainer.update()
        compare.out(f"out/step{i}/loss", trainer.record(elapsed_s=0.0).loss_nats)
