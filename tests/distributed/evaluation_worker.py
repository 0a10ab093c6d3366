"""Measures every case of `CASES` and writes what came out: `OUT`, alone or under `torchrun`."""

import sys
from typing import Any

import torch
from torch import Tensor

from workbench.config import load
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.recipe import load_recipe
from workbench.train import distributed
from workbench.train.config import EvalConfig
from workbench.train.distributed import World
from workbench.train.evaluate import evaluate
from workbench.train.sharing import from_all
from workbench.train.tasks import open_task

VOCAB, MARK = 11, 3
XL = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 5}
FAST = {"kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "delta"}
DRAWING = {
    "kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "sum", "read_norm": "output",
    "feature_map": {"kind": "favor", "n_projections": 3, "redraw": "each_pass"},
}  # fmt: skip
CACHE = {"window": 5, "theta": 0.7, "lam": 0.2}
WINDOWS = {"method": "windows", "context_len": 6}
STREAMS = {"method": "streams", "batch_size": 5, "segment_len": 4}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "windows": (XL, {**WINDOWS, "batch_size": 4}),
    "windows of one pass": (XL, {**WINDOWS, "batch_size": 100}),
    "windows in streams": (FAST, {**WINDOWS, "batch_size": 4, "n_streams": 3}),
    "windows, later ones": (XL, {**WINDOWS, "skip_first": True}),
    "windows, drawing": (DRAWING, {**WINDOWS, "batch_size": 4}),
    "carried": (XL, {"context_len": 3, "batch_size": 5, "segment_len": 7}),
    "carried in one row": (FAST, {"segment_len": 7}),
    "carried with a cache": (XL, {"context_len": 3, "segment_len": 7, "cache": CACHE}),
    "streams": (XL, STREAMS),
    "fewer streams than processes": (FAST, {**STREAMS, "batch_size": 1}),
    "streams with context": (XL, {**STREAMS, "ext_len": 2}),
    "streams, of blocks": (XL, {**STREAMS, "average": "of_blocks"}),
    "streams, over tokens": (FAST, {**STREAMS, "average": "over_tokens"}),
    "streams with a cache": (XL, {**STREAMS, "cache": CACHE}),
    "streams, drawing": (DRAWING, {**STREAMS, "carry": "reset"}),
    "sentences": (XL, {**STREAMS, "order": "sentences"}),
    "two tokens": (XL, {**WINDOWS, "max_tokens": 2}),
}
RETRIEVAL = ["retrieval-update-64-tanh-fwm", "retrieval-capacity-64-favor64"]


def model_of(mixer: dict[str, Any]) -> LanguageModel:
    """Two layers, with larger weights than at birth: a wrong context shows in every digit."""
    torch.manual_seed(5)
    data = {"d_model": 8, "stack": [{"block": {"mixer": mixer}, "repeat": 2}], "p_embedding": 0.3}
    model = load(ModelConfig, data).build(VOCAB)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.3)
    return model


def text(n: int = 103) -> Tensor:
    draw = torch.Generator().manual_seed(n)
    ids = torch.randint(VOCAB, (n,), generator=draw)
    ids[torch.rand(n, generator=draw) < 0.2] = MARK
    ids[0] = MARK
    return ids.to(torch.uint8)


def measured(world: World) -> dict[str, Tensor]:
    """What came out, nats first, by case."""
    found = {}
    for name, (mixer, config) in CASES.items():
        seen: list[tuple[int, int]] = []
        # processes draw differently, as in training; what they measure must not depend on it
        torch.manual_seed(world.rank)
        it = evaluate(
            model_of(mixer), text(), load(EvalConfig, config), world=world,
            progress=lambda *x, seen=seen: seen.append(x),
        )  # fmt: skip
        assert seen == sorted(seen) and seen[-1][0] <= seen[-1][1], name
        found[name] = it.nll_nats
        found[f"{name}: rest"] = torch.cat([it.positions, torch.tensor([it.tokens, it.divisor])])
    for name in RETRIEVAL:
        task = open_task(load_recipe(name, {"data.n_pairs": 9, "eval.n_sequences": 4}))
        torch.manual_seed(5)
        model = task.recipe.model.build(task.vocab_size)
        torch.manual_seed(world.rank)
        it = task.validate(model, 10, world)
        found[name] = torch.tensor([it.loss_nats, it.targets], dtype=torch.float64)
    return found


def main(out: str) -> None:
    """Measure, see that all processes have the same, write."""
    torch.set_num_threads(1)
    world = distributed.world()
    found = measured(world)
    for name, values in found.items():
        if any(not torch.equal(x, values) for x in from_all(values, world)):
            sys.exit(f"{name}: the processes measured differently")
    if world.leads:
        torch.save(found, out)
    distributed.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
