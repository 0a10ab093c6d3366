"""`workbench evaluate`: what a split of a run's text costs, measured in one process or several."""

from __future__ import annotations

import argparse
import json
from typing import Any

from workbench.cli_data import say


def add_evaluate(commands: Any) -> None:
    about = "measure a trained model on a split of its text, as its recipe says"
    parser = commands.add_parser(
        "evaluate",
        help=about,
        description=f"{about}. Several processes share the work, with the same result: "
        "torchrun --standalone --nproc-per-node 2 -m workbench evaluate RUN",
    )
    parser.add_argument("folder", help="the folder of a run")
    parser.add_argument("--split", choices=("train", "valid", "test"), default="test")
    parser.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change the recipe, such as eval.context_len=512; as often as wanted",
    )
    parser.add_argument("--json", action="store_true", help="all that is known, for programs")
    parser.set_defaults(run=evaluate_split)


def evaluate_split(given: argparse.Namespace) -> None:
    """Write the mean over a split, in process 0 alone."""
    from workbench.config import dump, load, override
    from workbench.errors import DataError
    from workbench.metrics import describe
    from workbench.models.language_model import LanguageModel
    from workbench.reading import check_symbols
    from workbench.recipe import Recipe, of_text
    from workbench.train import distributed
    from workbench.train.__main__ import overrides_of
    from workbench.train.environment import choose_device
    from workbench.train.evaluate import check_length, evaluate
    from workbench.train.folder import RunFolder

    folder = RunFolder(given.folder)
    changes = _measuring(overrides_of(given.set))
    recipe = load(Recipe, override(dump(of_text(folder.recipe())), changes))
    world = distributed.world(recipe.train.device)
    corpus = recipe.data.corpus.open()
    tokens = corpus.splits[given.split]
    if not len(tokens):
        raise DataError(f"{corpus.name} has no split {given.split}; give another one by --split")
    check_length(tokens, recipe.eval, f"{corpus.name}, {given.split}")
    model = folder.load_model(given.which).to(choose_device(recipe.train.device))
    assert isinstance(model, LanguageModel), "what the recipe of a text builds"
    check_symbols(model, corpus.vocabulary)
    it = evaluate(model, tokens, recipe.eval, world=world)
    if world.leads and given.json:
        found = {
            "recipe": recipe.name, "split": given.split, "which": given.which,
            "loss_nats": it.mean_nats, "tokens": it.tokens, "settings": it.settings,
            "seconds": round(it.seconds, 3), "processes": world.size,
        }  # fmt: skip
        say(json.dumps(found, indent=1))
    elif world.leads:
        say(f"{corpus.name}, {given.split}: {describe(it.mean_nats, corpus.unit)}")
        say(f"{it.tokens:,} tokens in {it.seconds:.1f} s; {it.settings}")
    distributed.leave()


def _measuring(changes: dict[str, Any]) -> dict[str, Any]:
    """Changes that leave the model what it was trained to be.

    Raises:
        ConfigError: one does not.
    """
    from workbench.errors import ConfigError

    for path in changes:
        if not path.startswith(("eval.", "data.corpus")) and path != "train.device":
            raise ConfigError(
                f"--set {path}: a model that is trained stays as it is; change eval.*, "
                "data.corpus or train.device alone"
            )
    return changes
