"""A notebook-driven research workbench for sequence models that carry state.

    import workbench

    run = workbench.start("a-recipe", {"train.steps": 200}, out="runs/mine")
    for record in run:
        ...
    workbench.evaluate(run.model, run.corpus.splits["test"], run.recipe.eval)
    workbench.generate(run, "def ").text
    workbench.score(run, "def f(x):").nll_nats

Importing this package builds and compiles nothing; each name below is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.generation import Generation, generate
    from workbench.laws import check_mixer
    from workbench.recipe import Recipe, load_recipe
    from workbench.scoring import Score, score
    from workbench.train.evaluate import Evaluation, evaluate
    from workbench.train.folder import RunFolder
    from workbench.train.launch import LaunchedRun
    from workbench.train.run import Run
    from workbench.train.start import start

__version__ = "0.1.0"

_HOMES = {
    "Generation": "workbench.generation",
    "generate": "workbench.generation",
    "check_mixer": "workbench.laws",
    "Score": "workbench.scoring",
    "score": "workbench.scoring",
    "Recipe": "workbench.recipe",
    "load_recipe": "workbench.recipe",
    "Evaluation": "workbench.train.evaluate",
    "evaluate": "workbench.train.evaluate",
    "RunFolder": "workbench.train.folder",
    "LaunchedRun": "workbench.train.launch",
    "Run": "workbench.train.run",
    "start": "workbench.train.start",
}

__all__ = [
    "Evaluation",
    "Generation",
    "LaunchedRun",
    "Recipe",
    "Run",
    "RunFolder",
    "Score",
    "check_mixer",
    "evaluate",
    "generate",
    "load_recipe",
    "score",
    "start",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"workbench has no '{name}'; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
