"""Trains in two processes, of which the second meets what is not finite, or that compute twice."""

import sys
from pathlib import Path

import safetensors.torch
import torch
from tiny_run import recipe

import workbench
from workbench.train import distributed, guard


def same_when_recomputed(text: str, out: str) -> None:
    """Whether blocks that are computed twice give the same bits, under DDP and in pieces."""
    weights = []
    for recompute in (False, True):
        asked = recipe(Path(text), recompute=recompute, micro_batches=2)
        fields = {"train.device": "cpu", "data.batch_size": 8}
        run = workbench.start(asked, fields, out=Path(out) / str(recompute))
        run.until(4)
        weights.append([p.detach().clone() for p in run.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def main(text: str, out: str, how: str) -> None:
    torch.set_num_threads(1)
    if how == "recompute":
        same_when_recomputed(text, out)
        distributed.leave()
        return
    told = {"precision": "fp16"} if how == "fp16" else {"on_nonfinite": "skip"}
    fields = {"train.device": "cpu", "data.batch_size": 4}
    run = workbench.start(recipe(Path(text), **told), fields, out=Path(out) / "run")
    trainer = run._trainer
    rank, bias = trainer.world.rank, run.model.vocabulary.output.bias

    def broken(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if rank == 1 and trainer.step in (1, 4) else gradient

    bias.register_hook(broken)
    for _ in range(6):
        with trainer.random():
            trainer.update()
    guard.save(run.folder, trainer.guard.found)
    weights = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    weights = {n: w for n, w in weights.items() if n != "vocabulary.embedding.weight"}
    scale = torch.tensor(trainer.scale.value() or 0.0)
    told_of = {**weights, "scale": scale, "skipped": trainer.meters.skipped}
    safetensors.torch.save_file(told_of, Path(out) / f"{rank}.safetensors")
    distributed.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
