"""A recipe: one experiment as data, from the corpus to the way it is measured.

Recipes are YAML files in `workbench/recipes/`, found by name; a path to any other `.yaml` works
too. A recipe may say `extends: name` once: it is then merged over that recipe, which must not
extend another. What a run used is written resolved into its folder, so a run explains itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from workbench.config import Config, Positive, dump, load, nearest, override
from workbench.data.retrieval import RetrievalConfig
from workbench.data.segments import DataConfig
from workbench.errors import ConfigError
from workbench.models.language_model import ModelConfig
from workbench.models.retrieval import RetrievalModelConfig
from workbench.train.config import EvalConfig, RetrievalEvalConfig, TrainConfig

# the compiled parser where there is one, ten times as fast; both make plain data only
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Result(Config):
    """One published figure."""

    metric: Literal["bpc", "ppl", "loss"]
    """bits per character, perplexity per word, or the loss as the source defines it"""
    valid: float | None = None
    test: float | None = None
    source: str
    """where the figure stands"""
    unverified: bool = False
    """recalled from a paper or a user's report, not checked against it"""
    by_pairs: dict[int, float | None] = {}
    """of retrieval: the lowest loss of a validation by data.n_pairs; null where it diverged"""
    steps_by_pairs: dict[int, int] = {}
    """of retrieval: updates until the run was stopped, by data.n_pairs"""

    @field_validator("by_pairs", "steps_by_pairs", mode="before")
    @classmethod
    def _plain_keys(cls, table: Any) -> Any:
        """Numbers again, after JSON has made text of a mapping's keys."""
        if not isinstance(table, dict):
            return table
        return {int(k) if isinstance(k, str) and k.isdigit() else k: v for k, v in table.items()}


class Source(Config):
    """Where the experiment comes from."""

    paper: str = ""
    """such as arXiv:1905.07799"""
    code: str = ""
    """the original script, if there is one"""
    results: tuple[Result, ...] = ()
    """the published figures, the best known first"""
    parameters: Positive | None = None
    """trainable numbers of the original model, counted by building it; a test compares ours"""
    criterion_parameters: Annotated[int, Field(ge=0)] = 0
    """further ones that the original keeps in its loss function, and we in the vocabulary"""
    notes: str = ""
    """what differs from the source, or what to know about it"""


class Experiment(Config):
    """What every recipe says, whatever it trains on."""

    name: str
    """<family>-<dataset>-<size>[-<twist>]"""
    about: str = ""
    """one sentence for people choosing a recipe"""
    source: Source = Source()
    train: TrainConfig

    def to_yaml(self) -> str:
        """The resolved recipe, every field written out; `load_recipe` reads it back."""
        return yaml.safe_dump(dump(self), sort_keys=False, allow_unicode=True, width=100)


class RetrievalRecipe(Experiment):
    """Synthetic associative retrieval: `data: {kind: retrieval, ...}`."""

    data: RetrievalConfig
    model: RetrievalModelConfig
    eval: RetrievalEvalConfig = RetrievalEvalConfig()

    @model_validator(mode="after")
    def _nothing_about_texts(self) -> Self:
        for field in ("carry", "eval_tokens", "valid"):
            if getattr(self.train, field) != TrainConfig.model_fields[field].default:
                raise ValueError(
                    f"train.{field} is about texts; sequences of pairs are whole, and `eval` says "
                    "how many of them are measured. Leave it out"
                )
        if self.train.recompute:
            raise ValueError(
                "train.recompute is about stacks of blocks, and a retrieval model has one layer; "
                "leave it out"
            )
        return self


class Recipe(Experiment):
    """A language model on a text: data, model, training, evaluation."""

    data: DataConfig
    model: ModelConfig
    eval: EvalConfig

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for layer, block in enumerate(self.model.block_configs()):
            if why := block.mixer.unfit(self.train.carry):
                raise ValueError(f"layer {layer}: {why}")
        repeats = self.data.ext_len and self.train.carry == "keep"
        if repeats and (culprit := self.model.repeats_count_twice()):
            raise ValueError(
                f"data.ext_len is {self.data.ext_len}, but {culprit} would take in the repeated "
                "tokens twice. Set data.ext_len: 0, or train.carry: reset"
            )
        for name, config in (("eval", self.eval), ("train.valid", self.train.valid)):
            if config is not None and config.method == "carried":
                self._can_be_carried(name, config)
            if config is not None and config.order == "sentences" != self.data.order.kind:
                raise ValueError(
                    f"{name}.order is sentences, but data.order is {self.data.order.kind}; write "
                    f"{name}.order: contiguous, or data.order: {{kind: sentences}}"
                )
        valid = self.train.valid or self.eval
        if self.train.eval_tokens < valid.least_tokens:
            raise ValueError(
                f"train.eval_tokens is {self.train.eval_tokens}, but a validation by "
                f"{valid.describe()} needs at least {valid.least_tokens}; write so many, or give "
                "train.valid a smaller batch_size"
            )
        return self

    def _can_be_carried(self, name: str, config: EvalConfig) -> None:
        if kind := self.model.restarting:
            raise ValueError(
                f"{name}.method is carried, but the model's positions are {kind}, whose codes "
                "start again at every segment: the result would depend on how the text is cut. "
                f"Set {name}.method: windows or streams, or model.positions: {{kind: none}}"
            )
        looks_back = any(block.mixer.has_memory for block in self.model.block_configs())
        if config.context_len is not None and not looks_back:
            raise ValueError(
                f"{name}.context_len is {config.context_len}, but a carried recurrent state has "
                f"seen all before it. Set {name}.context_len: null, or {name}.method: windows"
            )


AnyRecipe = Recipe | RetrievalRecipe


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package, sorted."""
    folder = resources.files("workbench") / "recipes"
    return sorted(f.name[: -len(".yaml")] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str | Path, overrides: Mapping[str, Any] | None = None) -> AnyRecipe:
    """Find, merge and check a recipe.

    Args:
        name: a name from `recipe_names()`, or a path that ends in `.yaml`.
        overrides: values at dotted paths, such as `{"train.steps": 200}`.

    Raises:
        ConfigError: no such recipe, or a field in it is wrong; every fault is listed.
    """
    return from_data(override(_merged(name), overrides or {}))


def from_data(data: dict[str, Any]) -> AnyRecipe:
    """A recipe from plain data, complete as `to_yaml` writes it.

    Raises:
        ConfigError: a field in it is wrong; every fault is listed.
    """
    if isinstance(data.get("data"), dict) and data["data"].get("kind") == "retrieval":
        return load(RetrievalRecipe, data)
    return load(Recipe, data)


def of_text(recipe: AnyRecipe) -> Recipe:
    """The recipe of a language model.

    Raises:
        ConfigError: it trains on no text; says where to go instead.
    """
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"recipe '{recipe.name}' is associative retrieval, which has no text; for it open "
            "notebooks/retrieval.ipynb"
        )
    return recipe


def _merged(name: str | Path) -> dict[str, Any]:
    data = _read(name)
    base_name = data.pop("extends", None)
    if base_name is None:
        return data
    base = _read(base_name)
    if "extends" in base:
        raise ConfigError(
            f"recipe '{name}' extends '{base_name}', which extends '{base['extends']}': "
            f"one level only. Extend '{base['extends']}' and repeat what '{base_name}' changes"
        )
    return _merge(base, data)


def _merge(base: Any, change: Any) -> Any:
    """Mappings merge field by field; everything else, and any change of `kind`, replaces."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if "kind" in change and change["kind"] != base.get("kind"):
        return change
    return base | {k: _merge(base[k], v) if k in base else v for k, v in change.items()}


def _read(name: str | Path) -> dict[str, Any]:
    if str(name).endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"there is no recipe file {path}; give a path that exists, or a name")
        text = path.read_text(encoding="utf-8")
    else:
        names = recipe_names()
        if name not in names:
            raise ConfigError(f"there is no recipe '{name}'. {nearest(str(name), names)}")
        text = (resources.files("workbench") / "recipes" / f"{name}.yaml").read_text("utf-8")
    try:
        data = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe '{name}' is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"recipe '{name}': expected named fields at the top, got {data!r:.60}")
    return data
