"""Beginning and continuing a run: everything is checked here, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import torch.distributed as dist

from workbench import kernels
from workbench.config import dump, load, override
from workbench.data.ahead import ahead
from workbench.data.batches import Batches, Reader
from workbench.errors import CheckpointError, ConfigError
from workbench.models.base import Model
from workbench.models.language_model import build_model
from workbench.recipe import AnyRecipe, Experiment, load_recipe
from workbench.train import checkpoint, distributed
from workbench.train.distributed import World
from workbench.train.environment import choose_device, describe
from workbench.train.folder import RunFolder, origin_of, recipe_sha256
from workbench.train.gradients import check_pieces
from workbench.train.launch import LaunchedRun
from workbench.train.lock import hold
from workbench.train.run import Run
from workbench.train.tasks import Task, open_task
from workbench.train.trackers import Tracker, check_trackers, open_trackers
from workbench.train.trainer import Trainer

AnyRun = Run | LaunchedRun


@overload
def start(
    recipe: AnyRecipe | str | Path,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    processes: Literal[1] = 1,
    trackers: Sequence[str | Tracker] = (),
) -> Run: ...
@overload
def start(
    recipe: AnyRecipe | str | Path,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    processes: int = 1,
    trackers: Sequence[str | Tracker] = (),
) -> AnyRun: ...
def start(
    recipe: AnyRecipe | str | Path,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    processes: int = 1,
    trackers: Sequence[str | Tracker] = (),
) -> AnyRun:
    """Begin a run, or continue the one that `out` holds.

    Everything is checked before anything is written. Under `torchrun` all processes call this with
    the same arguments, and share each batch; any number of them continues what another began.

    Args:
        recipe: a recipe, a name, or a path that ends in `.yaml`.
        overrides: values at dotted paths, such as `{"train.steps": 200}`.
        out: the run folder; `runs/<name of the recipe>` if not given.
        processes: how many share each batch. Several are started as processes of their own when the
            run is iterated over, see `LaunchedRun`; on GPUs each has its own.
        trackers: `tensorboard`, `wandb`, or objects with `log(record)` and `close()`.

    Raises:
        ConfigError: a fault in the recipe or an argument, or `out` holds something else.
        DataMissing, DataError: the corpus is not there or cannot be used.
        CheckpointError: the checkpoints of `out` are damaged or foreign, or those of
            `train.start_from` are another model's.
    """
    if not isinstance(recipe, Experiment):
        recipe = load_recipe(recipe, overrides)
    elif overrides:
        recipe = load(type(recipe), override(dump(recipe), overrides))
    check_trackers(trackers)
    path = Path(out) if out is not None else Path("runs") / recipe.name
    if processes != 1:
        return _launch(recipe, path, processes, trackers)
    world = distributed.world(recipe.train.device)
    with world.listening():
        return _agreed(recipe, RunFolder(path, writes=world.leads), world, trackers)


def _agreed(
    recipe: AnyRecipe, folder: RunFolder, world: World, trackers: Sequence[str | Tracker]
) -> Run:
    """The run, when all processes agree that it can begin."""
    with world.agreeing():
        device = choose_device(recipe.train.device)
        # what process 0 finds is what all go on from
        found, origin = _checkpoints(recipe, folder) if world.leads else (None, None)
        task, batches, model = _parts(recipe, folder, Reader(device, world.rank, world.size))
    identities = world.from_all([recipe_sha256(recipe), task.info.get("tokens_sha256")])
    with world.agreeing():
        _check_alike(identities)
    places = world.from_leader([x and str(x.path) for x in (found, origin)])
    with world.agreeing():
        found, origin = (x and checkpoint.read(Path(x)) for x in places)
        if origin is not None:
            checkpoint.load_weights(origin, model)
    trainer = Trainer(model, ahead(batches, device), recipe.train, recipe.name, world)
    run = Run(recipe, task, folder, trainer)
    with world.agreeing():
        if origin is not None and recipe.train.start_optimizer == "continued":
            trainer.adopt(checkpoint.load_state(origin))
        if found is not None:
            run._restore(found)
        if world.leads:
            run.tracking = open_trackers(trackers, folder, recipe, run.step)
        kernels.prepare()
        kernels.forget()
    # none of us is looking at the folder any more
    with world.agreeing():
        if world.leads:
            hold(folder.path, run)
            folder.begin(recipe, folder.environment() or describe(device, task.info))
    run._open(found)
    return run


def _check_alike(identities: list[list[str | None]]) -> None:
    """Refuse processes that were started with different recipes, or have different texts.

    Args:
        identities: of each process, the sha256 of its recipe and of its text.
    """
    for rank, other in enumerate(identities):
        for what, here, there in zip(("recipe", "text"), identities[0], other, strict=True):
            if here != there:
                raise ConfigError(
                    f"process {rank} of {len(identities)} was started with another {what} than "
                    f"process 0: its sha256 is {there}, expected {here}. Give all machines the "
                    "same command and the same corpus"
                )


def _launch(
    recipe: AnyRecipe, path: Path, processes: int, trackers: Sequence[str | Tracker]
) -> LaunchedRun:
    """A run in several processes, all of it checked; none is started yet."""
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ConfigError(f"processes: got {processes!r}, expected 1 or more")
    if dist.is_available() and dist.is_torchelastic_launched():
        raise ConfigError(
            f"processes: got {processes}, but torchrun has started this process as one of several "
            "already; leave processes out"
        )
    distributed.check_gpus(recipe.train.device, processes)
    choose_device(recipe.train.device)
    folder = RunFolder(path)
    found, origin = _checkpoints(recipe, folder)
    # on the CPU: the GPUs are the processes'
    task, _, model = _parts(recipe, folder, Reader("cpu", 0, processes))
    if (weights := found or origin) is not None:
        checkpoint.load_weights(weights, model)
    step = found.step if found else None
    objects = [x for x in trackers if not isinstance(x, str)]
    return LaunchedRun(
        recipe, task, folder, processes, model,
        step=step,
        track=[x for x in trackers if isinstance(x, str)],
        tracking=open_trackers(objects, folder, recipe, step or 0),
    )  # fmt: skip


def _checkpoints(
    recipe: AnyRecipe, folder: RunFolder
) -> tuple[checkpoint.Checkpoint | None, checkpoint.Checkpoint | None]:
    """What a run continues from, and what it takes its first weights from, if anything."""
    folder.check(recipe)
    found = _checkpoint_of(folder, recipe)
    return found, None if found else origin_of(recipe)


class _Parts(NamedTuple):
    task: Task
    batches: Batches
    model: Model


def _parts(recipe: AnyRecipe, folder: RunFolder, reader: Reader) -> _Parts:
    """What trains on what, checked for this folder and for so many processes."""
    # refused before a text is prepared for it
    reader.rows(recipe.data.batch_size)
    check_pieces(recipe.train, recipe.data.batch_size, World(size=reader.world_size))
    task = open_task(recipe)
    _same_corpus(folder, task)
    batches = task.batches(reader)
    model: Model = build_model(recipe.model, task.vocab_size, seed=recipe.train.seed)
    task.check(model.to(reader.device))
    return _Parts(task, batches, model)


def _same_corpus(folder: RunFolder, task: Task) -> None:
    before = folder.environment().get("corpus", {}).get("tokens_sha256")
    now = task.info.get("tokens_sha256")
    if before is not None and before != now:
        raise ConfigError(
            f"out: the run in {folder.path} was begun on another text: its corpus had sha256 "
            f"{before}, {task.info['name']} has {now} now. Give another folder, or restore the text"
        )


def _checkpoint_of(folder: RunFolder, recipe: AnyRecipe) -> checkpoint.Checkpoint | None:
    """The newest whole checkpoint of the folder."""
    found = checkpoint.newest(folder.checkpoints)
    if found is None:
        return None
    expected, got = recipe_sha256(recipe), found.manifest["recipe_sha256"]
    if got != expected:
        raise CheckpointError(
            f"{found.path} belongs to another recipe (sha256 {got[:12]}, this one has "
            f"{expected[:12]}); nothing was written. Take it out of the folder, or give another "
            "folder to begin anew"
        )
    return found
