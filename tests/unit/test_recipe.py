"""Recipes: each one shipped loads and builds; wrong ones are refused with path and cure."""

import pytest
import torch
import yaml

from workbench.config import dump
from workbench.errors import ConfigError
from workbench.recipe import Recipe, load_recipe, recipe_names

SPAN = "span-python-tiny"
DELTA = "delta-python-tiny"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_on_the_meta_device(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.about
    with torch.device("meta"):
        model = recipe.model.build(recipe.data.n_symbols or 256)
    assert model.n_parameters > 0
    if (said := recipe.source.parameters) is not None:
        assert model.n_parameters == said + recipe.source.criterion_parameters


@pytest.mark.parametrize("name", recipe_names())
def test_resolved_recipe_reads_back_equal(name, tmp_path):
    recipe = load_recipe(name, {"train.seed": 77})
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe and recipe.train.seed == 77


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"train.stpes": 3}, "train: there is no field 'stpes' here. Did you mean 'steps'?"),
        ({"train.steps": "many"}, "train.steps: "),
        ({"modle.d_model": 3}, "there is no 'modle'. Did you mean 'model'?"),
        ({"model.stack.0.block.mixer.kind": "attenton"}, "Did you mean 'attention'?"),
        ({"data.corpus.kind": "enwik99"}, "data.corpus: there is no kind 'enwik99'"),
        ({"train.optimizer.lr": "1e-3"}, "train.optimizer.lr: got the text '1e-3'"),
        ({"model.stack.0.block.mixer.span.limit": 1000}, "no head can learn a key"),
        ({"model.positions": {"kind": "sinusoid"}}, "eval.method is carried"),
    ],
    ids=str,
)
def test_wrong_overrides_say_where_and_what_instead(overrides, says):
    with pytest.raises(ConfigError) as error:
        load_recipe(SPAN, overrides)
    assert says in str(error.value)


def test_redrawn_features_cannot_be_carried():
    favor = {"model.stack.0.block.mixer.feature_map": {"kind": "favor"}}
    with pytest.raises(ConfigError, match=r"train\.carry: reset, or redraw: never"):
        load_recipe(DELTA, favor)
    assert load_recipe(DELTA, favor | {"train.carry": "reset"})


def test_memory_that_would_always_be_empty_is_refused():
    with pytest.raises(ConfigError, match="always be empty"):
        load_recipe(
            SPAN,
            {"train.carry": "reset", "model.stack.0.block.mixer.memory_start": "empty"},
        )


def test_tokens_are_not_repeated_to_a_state_that_would_count_them_twice():
    with pytest.raises(ConfigError, match=r"data\.ext_len is 4, but layer 0.*train\.carry: reset"):
        load_recipe("delta-python-tiny", {"data.ext_len": 4})
    load_recipe("delta-python-tiny", {"data.ext_len": 4, "train.carry": "reset"})
    load_recipe("span-python-tiny", {"data.ext_len": 4})


def test_a_context_that_carried_fast_weights_cannot_have_is_refused():
    with pytest.raises(ConfigError, match=r"context_len: null, or eval\.method: windows"):
        load_recipe(DELTA, {"eval.context_len": 64})
    assert load_recipe(DELTA, {"eval.context_len": 64, "eval.method": "windows"})
    with pytest.raises(ConfigError, match="windows needs context_len"):
        load_recipe(DELTA, {"eval.method": "windows"})


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ConfigError, match=f"Did you mean '{SPAN}'"):
        load_recipe("span-pyton-tiny")
    with pytest.raises(ConfigError, match="no recipe file"):
        load_recipe("somewhere/else.yaml")


def write(path, data):
    path.write_text(yaml.safe_dump(data))
    return path


def test_extends_merges_one_level(tmp_path):
    base = write(tmp_path / "base.yaml", dump(load_recipe(SPAN)))
    child = write(
        tmp_path / "child.yaml",
        {
            "extends": str(base),
            "name": "child",
            "train": {"steps": 55, "optimizer": {"kind": "sgd", "lr": 0.1}},
        },
    )
    recipe = load_recipe(child)
    assert recipe.name == "child" and recipe.train.steps == 55
    assert recipe.train.optimizer.kind == "sgd", "another kind replaces, it does not merge"
    assert recipe.train.schedule == load_recipe(SPAN).train.schedule
    grandchild = write(tmp_path / "grandchild.yaml", {"extends": str(child), "name": "g"})
    with pytest.raises(ConfigError, match="one level only"):
        load_recipe(grandchild)


@pytest.mark.parametrize("text", ["[1, 2]", "just words", ": :\n- x", ""])
def test_files_that_are_no_recipes(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="recipe '"):
        load_recipe(path)


def test_json_schema_describes_every_field():
    schema = Recipe.model_json_schema()
    assert schema["properties"]["train"] and "steps" in str(schema)
