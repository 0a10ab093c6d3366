"""What the recipes are, side by side: for the command line, the notebook and whoever chooses.

A name is `<family>-<dataset>-<size>[-<twist>]`; the family is what stands before the dataset.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workbench.config import dump
from workbench.errors import ConfigError
from workbench.models.language_model import LanguageModel
from workbench.models.retrieval import RetrievalModel
from workbench.recipe import AnyRecipe, Recipe, Result, load_recipe, recipe_names

DATASETS = "enwik8|text8|wt103|wt2|ptbc|ptb|lm1b|python|books"
"""what datasets are called in the names of recipes"""


@dataclass(frozen=True)
class Entry:
    """One recipe in brief."""

    name: str
    family: str
    dataset: str
    about: str
    parameters: int | None
    """trainable numbers, as the source counts them; None where the text decides the size of the
    vocabulary"""
    published: list[dict[str, Any]]
    """metric, valid, test, source, unverified of each figure, the best known first; tables by the
    number of pairs where it has them"""
    paper: str
    code: str
    comparable: str | None
    """in which unit a result may be compared, and with whose; None where with no published one"""


def entries(words: Sequence[str] = ()) -> list[Entry]:
    """The recipes whose names hold all of `words`, sorted by name.

    Raises:
        ConfigError: there is none.
    """
    names = [name for name in recipe_names() if all(word in name for word in words)]
    if not names:
        raise ConfigError(
            f"no recipe has {' and '.join(repr(word) for word in words)} in its name. "
            f"Recipes: {', '.join(recipe_names())}"
        )
    return [entry(load_recipe(name)) for name in names]


def matching(found: Sequence[Entry], text: str) -> list[Entry]:
    """Those of some entries that have every word of a text in their name, dataset, paper or what
    they are about; capitals and small letters alike.

    Args:
        found: entries.
        text: words between blanks; none leaves all.
    """
    words = text.lower().split()

    def told(e: Entry) -> str:
        return " ".join((e.name, e.family, e.dataset, e.about, e.paper)).lower()

    return [e for e in found if all(word in told(e) for word in words)]


def entry(recipe: AnyRecipe) -> Entry:
    """One recipe in brief; where its source counts no parameters, its model is built without memory
    to count them."""
    source = recipe.source
    return Entry(
        name=recipe.name,
        family=family(recipe.name),
        dataset=recipe.data.dataset,
        about=recipe.about,
        parameters=source.parameters or count_parameters(recipe),
        published=[published(result) for result in source.results],
        paper=source.paper,
        code=source.code,
        comparable=recipe.data.corpus.comparable if isinstance(recipe, Recipe) else None,
    )


def published(result: Result) -> dict[str, Any]:
    """A published figure as plain data, without the tables that it does not have."""
    return {name: value for name, value in dump(result).items() if value != {}}


def family(name: str) -> str:
    """What stands before the dataset in a recipe's name; the first word where none is named."""
    found = re.match(rf"(.+?)-(?:{DATASETS})\b", name)
    return found[1] if found else name.partition("-")[0]


def count_parameters(recipe: AnyRecipe) -> int | None:
    """Trainable numbers of the recipe's model; None where only the text knows its symbols."""
    model = unfilled(recipe)
    return None if model is None else model.n_parameters


def unfilled(recipe: AnyRecipe) -> LanguageModel | RetrievalModel | None:
    """The recipe's model without its numbers; None where only the text knows its symbols."""
    n_symbols = recipe.data.n_symbols
    if n_symbols is None:
        return None
    with torch.device("meta"):
        return recipe.model.build(n_symbols)


def parts(model: nn.Module) -> dict[str, dict[str, int]]:
    """Trainable numbers: part of the model -> layer -> how many.

    A part of the whole model, such as the vocabulary, stands under its own name instead of a
    layer; a tensor that layers share counts once, in the first of them.
    """
    found: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        whole, *inside = name.split(".")
        where, part = inside[:2] if whole == "blocks" else (whole, whole)
        numbers = found.setdefault("norms" if part.endswith("_norm") else part, {})
        numbers[where] = numbers.get(where, 0) + parameter.numel() * parameter.requires_grad
    return found


def figure(published: Sequence[dict[str, Any]]) -> str:
    """The best known figure in words, such as `1.06 bpc`; a question mark where unverified."""
    for result in published:
        for split, note in (("test", ""), ("valid", " (valid)")):
            if (value := result[split]) is not None:
                return f"{value:g} {result['metric']}{note}{' ?' * result['unverified']}"
        table = result.get("by_pairs", {})
        if pairs := [(n, loss) for n, loss in table.items() if loss is not None]:
            (fewest, first), (most, last) = pairs[0], pairs[-1]
            return f"{first:g} to {last:g} {result['metric']} ({fewest} to {most} pairs)"
    return "-"


def row(e: Entry) -> dict[str, str | int | None]:
    """An entry as the columns of a table."""
    return {
        "recipe": e.name,
        "dataset": e.dataset,
        "parameters": e.parameters,
        "published": figure(e.published),
        "about": e.about,
    }


def table(found: Sequence[Entry]) -> str:
    """The recipes as text: name, dataset, parameters, published result."""
    rows = [("recipe", "dataset", "parameters", "published")]
    for e in found:
        size = "-" if e.parameters is None else f"{e.parameters:,}"
        rows.append((e.name, e.dataset, size, figure(e.published)))
    a, b, c, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(f"{n:<{a}}  {d:<{b}}  {size:>{c}}  {best}" for n, d, size, best in rows)
