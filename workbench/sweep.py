"""Many runs from one table: recipes and overrides, each a training, and a comparison at the end.

    recipe: span-python-tiny            # of every run that names no other
    overrides: {train.steps: 300}       # of every run
    runs:                               # one by one ...
      - {name: spans}
      - {name: delta, recipe: delta-python-tiny}
    grid:                               # ... and each of them with every combination of these
      train.optimizer.lr: [1.0e-3, 2.0e-3]
      train.seed: [1, 2]

Everything is resolved and checked before anything is started. A sweep's folder has a run folder for
each run, `notebooks/` with the executed notebooks, `logs/`, and `compare.ipynb`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from workbench.cluster.job import Job
from workbench.config import Config, Positive, load
from workbench.errors import ConfigError, WorkbenchError
from workbench.recipe import Loader, Recipe, load_recipe, of_text
from workbench.train.folder import RunFolder

NOTEBOOKS, LOGS, FIGURES = "notebooks", "logs", "figures"
"""folders of a sweep that are no runs"""
NAME = re.compile(r"[\w+=.,-]+")


class SweepRun(Config):
    """One line of the table."""

    name: str
    """of the run's folder"""
    recipe: str | None = None
    """a name, or a `.yaml` file beside the table; the table's recipe if not given"""
    overrides: dict[str, Any] = {}
    """values at dotted paths, over those of the table"""


class Sweep(Config):
    """A table of runs."""

    name: str | None = None
    """of the sweep's folder in `runs/`; the file's name if not given"""
    about: str = ""
    """one sentence for whoever compares"""
    recipe: str | None = None
    """of runs that name none"""
    overrides: dict[str, Any] = {}
    """values at dotted paths, for every run"""
    runs: tuple[SweepRun, ...] = ()
    """the runs; the recipe alone if not given"""
    grid: dict[str, list[Any]] = {}
    """dotted path -> values; each run is made with every combination of them"""
    processes: Positive = 1
    """that share each batch of a run"""


class Planned(NamedTuple):
    """A run of a sweep, checked."""

    name: str
    recipe: Recipe
    job: Job

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.job.out)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train; more time than it had means that there is."""
        if self.folder.status().get("state") != "done":
            return False
        had = self.folder.recipe().train.max_seconds
        reason = [row["reason"] for row in self.folder.records("done")][-1:]
        return reason != ["time"] or had == self.recipe.train.max_seconds


def load_sweep(path: str | Path) -> Sweep:
    """Read a table.

    Raises:
        ConfigError: there is none, or a field in it is wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"there is no table {file}; give the path of a YAML file that lists runs")
    try:
        data = yaml.load(file.read_text("utf-8"), Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{file}: expected named fields at the top, got {data!r:.60}")
    table = load(Sweep, {"name": file.stem, **data}, where=file.name)
    if not table.runs and table.recipe is None:
        raise ConfigError(f"{file.name}: there is nothing to run; give a recipe, or runs")
    return table


def plan(table: Sweep, folder: Path, beside: Path = Path()) -> list[Planned]:
    """All runs of a table, each checked as far as that goes without its text.

    Args:
        table: what to run.
        folder: of the sweep.
        beside: where recipes that are files are looked for: the table's folder.

    Raises:
        ConfigError: a recipe or an override is wrong, two runs have one name, or a run's folder
            holds something else; the message says which run.
    """
    lines = table.runs or (SweepRun(name="", recipe=table.recipe),)
    found = [
        _planned(table, line, values, folder, beside)
        for line in lines
        for values in combinations(table.grid)
    ]
    for name, count in Counter(run.name for run in found).items():
        if count > 1:
            raise ConfigError(
                f"{table.name}: {count} runs are called '{name}'; give each a name of its own"
            )
    return found


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value for each path; one empty choice where there are no paths.

    Raises:
        ConfigError: a path has no values.
    """
    if empty := [path for path, values in grid.items() if not values]:
        raise ConfigError(f"grid.{empty[0]}: got no values, expected a list such as [1, 2]")
    return [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]


def _planned(
    table: Sweep, line: SweepRun, values: Mapping[str, Any], folder: Path, beside: Path
) -> Planned:
    recipe = line.recipe or table.recipe
    parts = [line.name, *_labels(values)]
    name = "-".join(part for part in parts if part) or Path(str(recipe)).stem
    where = f"{table.name}: run '{name}'"
    if recipe is None:
        raise ConfigError(f"{where} names no recipe, and the table has none for all")
    if not NAME.fullmatch(name) or name.startswith(".") or name in (NOTEBOOKS, LOGS, FIGURES):
        raise ConfigError(
            f"{where}: its name must do for a folder: letters, digits and _+=.,- (and not "
            f"{NOTEBOOKS}, {LOGS} or {FIGURES})"
        )
    if recipe.endswith((".yaml", ".yml")):
        recipe = str((beside / Path(recipe).expanduser()).resolve())
    overrides = {**table.overrides, **line.overrides, **values}
    executed = folder / NOTEBOOKS / f"{name}.ipynb"
    job = Job(recipe, folder / name, executed, overrides, table.processes)
    try:
        resolved = of_text(load_recipe(recipe, overrides))
        RunFolder(job.out, writes=False).check(resolved)
    except WorkbenchError as error:
        raise ConfigError(f"{where}: {error}") from None
    return Planned(name, resolved, job)


def _labels(values: Mapping[str, Any]) -> list[str]:
    """Short names of the values of a grid, such as `lr0.001`, for the names of runs."""
    labels = []
    for path, value in values.items():
        parts = path.split(".")
        # as much of the path as tells it from the others
        for n in range(1, len(parts) + 1):
            end = parts[-n:]
            if sum(other.split(".")[-n:] == end for other in values) == 1:
                break
        labels.append(".".join(end) + _label(value))
    return labels


def _label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        # alternatives of a slot differ in their kinds, if in nothing else
        text = ",".join(f"{k}={v}" if k != "kind" else str(v) for k, v in value.items())
    else:
        text = str(value)
    return re.sub(r"[^\w+=.,-]+", "", text)
