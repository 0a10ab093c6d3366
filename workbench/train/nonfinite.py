"""Where a loss or a gradient stops being finite: a broken update, computed once more.

from workbench.train import nonfinite

print(nonfinite.replay("runs/mine"))
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from workbench.carry import Carry
from workbench.data.batches import Batch
from workbench.errors import CheckpointError, ConfigError
from workbench.models.base import Model
from workbench.train import checkpoint
from workbench.train.distributed import ALONE
from workbench.train.folder import RunFolder
from workbench.train.gradients import Gradients
from workbench.train.lock import release
from workbench.train.run import Run
from workbench.train.start import start


@dataclass(frozen=True)
class Replay:
    """What a broken update looked like; names are those of the model's parts."""

    step: int
    """the update, counted from 1"""
    loss_nats: float
    """its loss, without penalties"""
    weight: str | None
    """the first weight that was not finite before it"""
    carried: str | None
    """the first layer whose state was not finite before it"""
    module: str | None
    """the first module, in the order of computing, whose output was not finite"""
    parameter: str | None
    """the first parameter, in the order of the backward pass, whose gradient was not finite"""
    same_batch: bool
    """whether the batch is the one that was saved: if not, the text has changed since"""

    def __str__(self) -> str:
        lines = [f"update {self.step}, loss {self.loss_nats:.4g} nats"]
        for found, text in (
            (self.weight, "before it the weight {} was not finite"),
            (self.carried, "before it the carried state of {} was not finite"),
            (self.module, "the first output that is not finite is that of {}"),
            (self.parameter, "the first gradient that is not finite is that of {}"),
        ):
            if found is not None:
                lines.append(text.format(found))
        if not any((self.weight, self.carried, self.module, self.parameter)):
            lines.append("all that a module gave and all gradients are finite here")
        if not self.same_batch:
            lines.append("the batch is not the one that was saved: the text has changed since")
        return "\n  ".join(lines)


def replay(folder: str | Path, step: int | None = None) -> Replay:
    """Compute a broken update once more, and see where it breaks.

    The last checkpoint before it, or the beginning, is continued in a temporary copy, with
    validations as they were, up to the update before. The run folder stays as it is. A run of
    several processes is replayed in this one: the same batches, but other dropout.

    Args:
        folder: the run folder.
        step: which of the batches in its `nonfinite/`; None: the last one.

    Raises:
        ConfigError: no such batch was saved.
        CheckpointError: the saved batch cannot be read.
    """
    source = RunFolder(folder)
    saved = _saved(source, step)
    tensors = _read(saved)
    step = int(saved.stem.removeprefix("step-"))
    with tempfile.TemporaryDirectory(prefix="workbench-replay-") as place:
        copy = Path(place) / "run"
        _copy_checkpoint(source, copy, step)
        # the clock of that run is not what it is about
        run = start(source.recipe(), {"train.max_seconds": None}, out=copy)
        try:
            run.until(step - 1)
            assert run.step == step - 1, "a run does not end before a batch that it has read"
            return _look(run, tensors)
        finally:
            release(copy)


def _saved(source: RunFolder, step: int | None) -> Path:
    paths = sorted((source.path / "nonfinite").glob("step-*.safetensors"))
    wanted = [p for p in paths if step is None or p.stem == f"step-{step:07d}"]
    if not wanted:
        known = ", ".join(str(int(p.stem.removeprefix("step-"))) for p in paths)
        raise ConfigError(
            f"{source.path} holds no batch of update {step if step is not None else 'any'} in "
            f"nonfinite/; saved are: {known or 'none, no loss was other than finite'}"
        )
    return wanted[-1]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None


def _copy_checkpoint(source: RunFolder, copy: Path, step: int) -> None:
    """The newest whole checkpoint before an update, in a folder that `start` continues."""
    for path in checkpoint.folders(source.checkpoints):
        try:
            found = checkpoint.verify(path)
        except CheckpointError:
            continue
        if found.step < step:
            shutil.copytree(path, copy / "checkpoints" / f"step-{found.step:07d}")
            RunFolder(copy).begin(source.recipe(), source.environment())
            return


def _look(run: Run, saved: dict[str, Tensor]) -> Replay:
    """The next update of a run, taken apart and not made."""
    trainer, model = run._trainer, run.model
    with trainer.random():
        batch = trainer.segments.next()
        start = trainer.start_carry(batch)
        weight = next((n for n, p in model.named_parameters() if not _finite(p)), None)
        carried = next((f"layer {i}" for i, s in enumerate(start) if not _finite(s)), None)
        loss, module, parameter = _take_apart(run, batch, start)
    same = all(
        torch.equal(ours.cpu(), saved[name])
        for name, ours in (("tokens_BT", batch.tokens_BT), ("targets_BT", batch.targets_BT))
    )
    return Replay(run.step + 1, loss, weight, carried, module, parameter, same)


def _take_apart(run: Run, batch: Batch, start: Carry) -> tuple[float, str | None, str | None]:
    trainer, model = run._trainer, run.model
    # as the update was, but not compiled and not recomputed: modules are called once, by name
    plain = trainer.config.model_copy(update={"compile": False, "recompute": False})
    gradients = Gradients(model, plain, ALONE)
    gradients.scale.restore(trainer.scale.state())
    model.train()
    model.zero_grad(set_to_none=True)
    with _watching(model) as (outputs, grads):
        terms, _ = gradients.add(batch, start, trainer.step)
    return float(terms["nll"]), next(iter(outputs), None), next(iter(grads), None)


@contextmanager
def _watching(model: Model) -> Iterator[tuple[list[str], list[str]]]:
    """Inside, names are collected of modules whose outputs, and of parameters whose gradients, are
    not finite."""
    outputs: list[str] = []
    grads: list[str] = []

    def output(name: str) -> Any:
        def look(module: nn.Module, args: Any, result: Any) -> None:
            if not _finite(result):
                outputs.append(f"{name or 'the model'} ({type(module).__name__})")

        return look

    def grad(name: str) -> Any:
        def look(parameter: Tensor) -> None:
            if parameter.grad is not None and not _finite(parameter.grad):
                grads.append(name)

        return look

    handles = [m.register_forward_hook(output(n)) for n, m in model.named_modules()]
    handles += [
        p.register_post_accumulate_grad_hook(grad(n))
        for n, p in model.named_parameters()
        if p.requires_grad
    ]
    try:
        yield outputs, grads
    finally:
        for handle in handles:
            handle.remove()


def _finite(value: Any) -> bool:
    """Whether all numbers in nested tuples of tensors are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    return all(_finite(x) for x in value) if isinstance(value, tuple | list) else True
