"""Every published experiment is a recipe and has its sizes; every family has a quick one that runs.

`published_recipes.txt` holds the figures of the papers and of the authors' scripts, apart from our
recipes: a `-` says nothing. Parameters were counted by building the authors' models; those of a
criterion (awd-wt103-qrnn: 1,203) are counted too.
"""

from pathlib import Path

import pytest

import workbench
from workbench.catalogue import family
from workbench.recipe import Recipe, load_recipe, recipe_names
from workbench.train.records import EvalRecord, TrainRecord


def table():
    head, *lines = (Path(__file__).parent / "published_recipes.txt").read_text().splitlines()
    return [dict(zip(head.split(), line.split(), strict=True)) for line in lines]


PUBLISHED = {row["recipe"]: row for row in table()}
TINY = [name for name in recipe_names() if "-tiny" in name]


def sizes(recipe):
    """Ours, under the names of the table."""
    train = recipe.train
    found = {
        "recipe": recipe.name,
        "dataset": recipe.data.dataset.partition(" ")[0],
        # another test builds the model and counts
        "parameters": recipe.source.parameters,
        "optimizer": train.optimizer.kind,
        "lr": train.optimizer.lr,
        "steps": train.steps,
        "warmup": train.schedule.warmup_steps,
        "clip": train.clip_norm,
        "batch": recipe.data.batch_size,
    }
    if not isinstance(recipe, Recipe):
        return found | {"d_model": recipe.model.d_key}
    blocks = recipe.model.block_configs()
    mixer, channel = blocks[0].mixer, blocks[0].channel
    return found | {
        "segment": recipe.data.segment_len,
        "layers": len(blocks),
        "d_model": recipe.model.d_model,
        "heads": getattr(mixer, "n_heads", None),
        "memory": getattr(mixer, "memory_len", 0),
        # hidden units: of the channel mixer, else of a recurrent layer
        "d_ffn": getattr(channel, "d_ffn", getattr(mixer, "d_hidden", None)),
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_experiment_is_a_recipe_of_its_sizes(name):
    recipe = load_recipe(name)
    ours = sizes(recipe)
    for field, value in PUBLISHED[name].items():
        if value != "-":
            text = str(ours[field])
            assert text == value or float(text) == float(value), f"{field}: {text}, not {value}"


def test_a_recipe_says_where_it_comes_from():
    sources = {name: load_recipe(name).source for name in recipe_names()}
    assert [n for n, s in sources.items() if not (s.paper or s.code or s.notes)] == []


def test_every_family_has_a_tiny_recipe():
    assert {family(name) for name in recipe_names()} == {family(name) for name in TINY}


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_trains(name, tmp_path):
    few = {"train.steps": 2, "train.log_every": 1, "train.schedule": {"kind": "constant"}}
    if isinstance(load_recipe(name), Recipe):
        few |= {"train.eval_tokens": 300}
    records = list(workbench.start(name, few, out=tmp_path / "run"))
    assert sum(isinstance(record, TrainRecord) for record in records) == 2
    assert any(isinstance(record, EvalRecord) for record in records)
