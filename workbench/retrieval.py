"""Associative retrieval over the number of pairs: the curves of arXiv:2102.11174 section 6.1.

One training a point, each in a run folder of its own, so that a sweep that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go
import torch

from workbench.data.retrieval import RetrievalConfig
from workbench.errors import ConfigError, NonFiniteLoss
from workbench.plots.retrieval import Example, loss_by_pairs
from workbench.recipe import RetrievalRecipe, load_recipe
from workbench.train.folder import RunFolder, recipe_sha256
from workbench.train.records import Record
from workbench.train.start import start

See = Callable[[RetrievalRecipe, Record], bool]
"""what looks on while a point is trained: called with each record, False stops there"""
LEFT = ("interrupted", "stopped")
"""reasons after which a training is to be continued: by a signal, by who looked on"""


class Point(NamedTuple):
    """One training."""

    recipe: str
    n_pairs: int
    loss: float | None
    """lowest validation; None where training diverged before the first"""
    steps: int
    reason: str
    """why it ended, as in a done record; `diverged` where the loss became NaN or infinite;
    `stopped` where who looked on wanted so"""
    seconds: float


def retrieval_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> RetrievalRecipe:
    """A recipe of associative retrieval.

    Raises:
        ConfigError: there is no such recipe, it has no pairs, or an override is wrong.
    """
    recipe = load_recipe(name, overrides)
    if not isinstance(recipe, RetrievalRecipe):
        raise ConfigError(
            f"recipe '{name}' is a language model's, expected one of associative retrieval, such "
            "as retrieval-capacity-64-dpfp1; for this one open notebooks/train.ipynb"
        )
    return recipe


def published(name: str) -> dict[int, float | None]:
    """The source's loss by number of pairs; {} where there is none, None where it diverged."""
    tables = [result.by_pairs for result in retrieval_recipe(name).source.results]
    return next((table for table in tables if table), {})


def capacity(name: str) -> int | None:
    """How many keys can be orthogonal in a recipe's memory: its features; None for softmax."""
    recipe = retrieval_recipe(name)
    with torch.device("meta"):
        feature_map = recipe.model.build(recipe.data.n_symbols).feature_map
    return feature_map.n_features if feature_map is not None else None


def example(replace: bool, n_pairs: int = 8, seed: int = 1) -> Example:
    """A sequence of the task, as training sees them.

    Args:
        replace: capacity (False), or update: then the first sequence of this seed whose key was
            overwritten before it is asked for.
        n_pairs: keys, and values.
        seed: of the sequences.
    """
    config = RetrievalConfig(n_pairs=n_pairs, replace=replace, batch_size=1)
    sequences = config.sequences(seed)
    while True:
        keys, values, query = sequences.sample()
        found = Example(keys.tolist(), (values - n_pairs).tolist(), query)
        if len(found.written) > 1 or not replace:
            return found


class Sweep:
    """Several recipes, each trained at several numbers of pairs. Iterate to train.

    Args:
        names: of the recipes, by what figures call them.
        pairs: numbers of pairs; empty: those of each recipe's published table.
        out: folder of the run folders, `<out>/<recipe>/<pairs>`; what is there is continued.
        overrides: values at dotted paths for all of them, such as `{"train.steps": 1000}`.

    Attributes:
        points: the trainings done so far, those of an earlier session as soon as `find` was called
            or it is iterated over.

    Raises:
        ConfigError: a recipe or an override is wrong; nothing has been trained yet.
    """

    def __init__(
        self,
        names: Mapping[str, str],
        pairs: Sequence[int],
        out: str | Path,
        overrides: Mapping[str, Any] | None = None,
    ):
        self.names, self.out = names, Path(out)
        self.published = {name: published(name) for name in names.values()}
        self.recipes = [
            retrieval_recipe(name, {**(overrides or {}), "data.n_pairs": n_pairs})
            for name in names.values()
            for n_pairs in (pairs or self.published[name])
        ]
        self.recipes.sort(key=lambda recipe: recipe.data.n_pairs)
        self._points: dict[tuple[str, int], Point] = {}

    @property
    def points(self) -> list[Point]:
        """The trainings done so far, fewest pairs first."""
        return sorted(self._points.values(), key=lambda point: point.n_pairs)

    def find(self) -> list[Point]:
        """The points whose run folders say that they are done; nothing is trained."""
        found = (known(recipe, self.out) for recipe in self.recipes)
        self._points = {(p.recipe, p.n_pairs): p for p in found if p is not None}
        return self.points

    def __len__(self) -> int:
        return len(self.recipes)

    def __iter__(self) -> Iterator[Point]:
        """Fewest pairs first, so that the curves grow side by side; each point when it is done.

        A signal that interrupts a training ends the sweep with it; iterate again to go on.
        """
        return self.run()

    def run(self, see: See | None = None) -> Iterator[Point]:
        """As iterating, while somebody looks on, who may stop it: iterate again to go on."""
        self.find()
        for recipe in self.recipes:
            point = train(recipe, self.out, see)
            self._points[point.recipe, point.n_pairs] = point
            yield point
            if point.reason in LEFT:
                return

    def measured(self, name: str) -> dict[int, float | None]:
        """A recipe's loss by number of pairs, as far as it is known."""
        return {point.n_pairs: point.loss for point in self.points if point.recipe == name}

    def describe(self, point: Point) -> str:
        """A point in a line, with what is published."""
        known = self.published[point.recipe].get(point.n_pairs)
        loss = "none" if point.loss is None else f"{point.loss:.4f}"
        return (
            f"{point.recipe} at {point.n_pairs} pairs: loss {loss} (published "
            f"{'-' if known is None else f'{known:.4f}'}) after {point.steps:,} updates, "
            f"{point.seconds:.0f} s, ended by {point.reason}"
        )

    def figure(self, scale: Literal["linear", "log"] = "linear") -> go.Figure:
        """The curves so far, beside the published ones."""
        return loss_by_pairs(
            {word: self.measured(name) for word, name in self.names.items()},
            {word: self.published[name] for word, name in self.names.items()},
            {word: capacity(name) for word, name in self.names.items()},
            scale,
            [recipe.data.n_pairs for recipe in self.recipes],
        )


def train(recipe: RetrievalRecipe, out: Path, see: See | None = None) -> Point:
    """Train one recipe to its end, in its place below `out`.

    Args:
        recipe: what to train.
        out: folder of the run folders.
        see: called with each record; False stops there, after a checkpoint.
    """
    folder = place_of(recipe, out)
    try:
        run, reason = start(recipe, out=folder.path), ""
        records = iter(run)
        for record in records:
            if see is not None and not see(recipe, record) and record.kind != "done":
                run.save()
                reason = "stopped"
                break
        # what is left of the iterator says in the status where the run was left
        del records
        reason = reason or _reason(folder)
    except NonFiniteLoss:
        reason = "diverged"
    return _point(recipe, folder, reason)


def place_of(recipe: RetrievalRecipe, out: Path) -> RunFolder:
    """The run folder of a point."""
    return RunFolder(out / recipe.name / f"{recipe.data.n_pairs:03d}")


def known(recipe: RetrievalRecipe, out: Path) -> Point | None:
    """A point that was trained to its end, as its run folder tells; None where none was."""
    folder = place_of(recipe, out)
    if not folder.exists() or folder.status().get("state") != "done":
        return None
    if recipe_sha256(folder.recipe()) != recipe_sha256(recipe):
        return None
    return _point(recipe, folder, _reason(folder))


def _reason(folder: RunFolder) -> str:
    reason: str = folder.records("done")[-1]["reason"]
    return reason


def _point(recipe: RetrievalRecipe, folder: RunFolder, reason: str) -> Point:
    rows = folder.records()
    losses = [row["loss_nats"] for row in rows if row["kind"] == "eval"]
    return Point(
        recipe.name,
        recipe.data.n_pairs,
        min((x for x in losses if x is not None), default=None),
        folder.status()["step"],
        reason,
        rows[-1]["elapsed_s"] if rows else 0.0,
    )
