"""Associative retrieval over the number of pairs: the curves of arXiv:2102.11174 section 6.1.

One training a point, each in a run folder of its own, so that a sweep that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from workbench.errors import ConfigError, NonFiniteLoss
from workbench.recipe import RetrievalRecipe, load_recipe
from workbench.train.folder import RunFolder
from workbench.train.run import start


class Point(NamedTuple):
    """One training."""

    recipe: str
    n_pairs: int
    loss: float | None
    """lowest validation; None where training diverged before the first"""
    steps: int
    reason: str
    """why it ended, as in a done record; `diverged` where the loss became NaN or infinite"""
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


def sweep(
    names: Sequence[str],
    pairs: Sequence[int],
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
) -> Iterator[Point]:
    """Train each recipe at each number of pairs; every point is given when it is done.

    Args:
        names: of the recipes.
        pairs: numbers of pairs; empty: those of each recipe's published table.
        out: folder of the run folders, `<out>/<recipe>/<pairs>`; what is there is continued.
        overrides: values at dotted paths for all of them, such as `{"train.steps": 1000}`.

    Raises:
        ConfigError: a recipe or an override is wrong; nothing has been trained yet.
    """
    recipes = [
        retrieval_recipe(name, {**(overrides or {}), "data.n_pairs": n_pairs})
        for name in names
        for n_pairs in (pairs or published(name))
    ]
    return (train(recipe, Path(out)) for recipe in recipes)


def train(recipe: RetrievalRecipe, out: Path) -> Point:
    """Train one recipe to its end, in its place below `out`."""
    folder = RunFolder(out / recipe.name / f"{recipe.data.n_pairs:03d}")
    try:
        for _ in start(recipe, out=folder.path):
            pass
        reason = folder.records("done")[-1]["reason"]
    except NonFiniteLoss:
        reason = "diverged"
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
