"""Beginning and continuing a run: everything is checked here, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import kernels
from workbench.config import dump, load, override
from workbench.data.ahead import ahead
from workbench.data.batches import Reader
from workbench.errors import CheckpointError, ConfigError
from workbench.models.base import Model
from workbench.models.language_model import build_model
from workbench.recipe import AnyRecipe, Experiment, load_recipe
from workbench.train import checkpoint, distributed
from workbench.train.distributed import World
from workbench.train.environment import choose_device, describe
from workbench.train.folder import RunFolder, origin_of, recipe_sha256
from workbench.train.gradients import check_pieces
from workbench.train.lock import hold
from workbench.train.run import Run
from workbench.train.tasks import Task, open_task
from workbench.train.trainer import Trainer


def start(
    recipe: AnyRecipe | str | Path,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Run:
    """Begin a run, or continue the one that `out` holds.

    Everything is checked before anything is written. Under `torchrun` all processes call this with
    the same arguments, and share each batch; any number of them continues what another began.

    Args:
        recipe: a recipe, a name, or a path that ends in `.yaml`.
        overrides: values at dotted paths, such as `{"train.steps": 200}`.
        out: the run folder; `runs/<name of the recipe>` if not given.

    Raises:
        ConfigError: a fault in the recipe, or `out` holds something else.
        DataMissing, DataError: the corpus is not there or cannot be used.
        CheckpointError: the checkpoints of `out` are damaged or foreign, or those of
            `train.start_from` are another model's.
    """
    if not isinstance(recipe, Experiment):
        recipe = load_recipe(recipe, overrides)
    elif overrides:
        recipe = load(type(recipe), override(dump(recipe), overrides))
    world = distributed.world(recipe.train.device)
    path = Path(out) if out is not None else Path("runs") / recipe.name
    folder = RunFolder(path, writes=world.leads)
    folder.check(recipe)
    found = _checkpoint_of(folder, recipe, world)
    origin = None if found else origin_of(recipe)
    device = choose_device(recipe.train.device)
    task = open_task(recipe)
    _same_corpus(folder, task)
    batches = ahead(task.batches(Reader(device, world.rank, world.size)), device)
    check_pieces(recipe.train, recipe.data.batch_size, world)
    model: Model = build_model(recipe.model, task.vocab_size, seed=recipe.train.seed).to(device)
    task.check(model)
    if origin is not None:
        checkpoint.load_weights(origin, model)
    trainer = Trainer(model, batches, recipe.train, recipe.name, world)
    if origin is not None and recipe.train.start_optimizer == "continued":
        trainer.adopt(checkpoint.load_state(origin))
    run = Run(recipe, task, folder, trainer)
    if found is not None:
        run._restore(found)
    kernels.prepare()
    kernels.forget()
    # none of us may be looking at the folder still
    world.wait()
    if world.leads:
        hold(folder.path, run)
    folder.begin(recipe, folder.environment() or describe(device, task.info))
    run._open(found)
    return run


def _same_corpus(folder: RunFolder, task: Task) -> None:
    before = folder.environment().get("corpus", {}).get("tokens_sha256")
    now = task.info.get("tokens_sha256")
    if before is not None and before != now:
        raise ConfigError(
            f"out: the run in {folder.path} was begun on another text: its corpus had sha256 "
            f"{before}, {task.info['name']} has {now} now. Give another folder, or restore the text"
        )


def _checkpoint_of(
    folder: RunFolder, recipe: AnyRecipe, world: World
) -> checkpoint.Checkpoint | None:
    """What all processes continue from: what process 0 found whole."""
    found = checkpoint.newest(folder.checkpoints) if world.leads else None
    name = world.from_leader(found and found.path.name)
    if name is None:
        return None
    found = found or checkpoint.read(folder.checkpoints / name)
    expected, got = recipe_sha256(recipe), found.manifest["recipe_sha256"]
    if got != expected:
        raise CheckpointError(
            f"{found.path} belongs to another recipe (sha256 {got[:12]}, this one has "
            f"{expected[:12]}); nothing was written. Take it out of the folder, or give another "
            "folder to begin anew"
        )
    return found
