"""What a run trains on and how its model is measured on the way: a text, or retrieval."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.data.batches import Batches, Reader
from workbench.data.retrieval import RetrievalBatches, questions
from workbench.models import draws
from workbench.models.base import Model, evaluating
from workbench.models.language_model import LanguageModel
from workbench.recipe import AnyRecipe, Recipe, RetrievalRecipe
from workbench.train.config import EvalConfig
from workbench.train.distributed import ALONE, World, own_seed
from workbench.train.evaluate import check, check_length, evaluate
from workbench.train.records import EvalRecord
from workbench.train.sharing import share, unequal


class Validation(NamedTuple):
    """One validation."""

    loss_nats: float
    """mean over the targets"""
    targets: int
    method: str
    context_len: int | None = None
    settings: str = ""
    """the method with everything that changes its result"""

    def record(self, step: int, averaged_from: int | None, elapsed_s: float) -> EvalRecord:
        """What a run says of it; see there."""
        return EvalRecord(
            step=step,
            split="valid",
            loss_nats=self.loss_nats,
            tokens=self.targets,
            method=self.method,
            context_len=self.context_len,
            settings=self.settings,
            averaged_from=averaged_from,
            elapsed_s=elapsed_s,
        )


class Task(ABC):
    """What a recipe trains on."""

    vocab_size: int
    info: dict[str, Any]
    """plain data that identifies it, for the run folder"""

    @abstractmethod
    def batches(self, reader: Reader) -> Batches:
        """A fresh source of training batches, for one of the processes that share them.

        Raises:
            ConfigError: the rows cannot be shared evenly.
        """

    @abstractmethod
    def check(self, model: Model) -> None:
        """Refuse a model that could not be validated, before it is trained."""

    @abstractmethod
    def validate(self, model: Model, step: int, world: World = ALONE) -> Validation:
        """Measure a model after so many updates, which all processes do together."""


def open_task(recipe: AnyRecipe) -> Task:
    """The recipe's task.

    Raises:
        DataMissing, DataError: its text is not there or cannot be used.
    """
    return RetrievalTask(recipe) if isinstance(recipe, RetrievalRecipe) else TextTask(recipe)


class TextTask(Task):
    """To predict the next token of a corpus."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.corpus = recipe, recipe.data.corpus.open()
        check_length(*self._validation(), f"{self.corpus.name}, valid")
        # a text without a test split is trained on all the same
        if len(test := self.corpus.splits["test"]):
            check_length(test, recipe.eval, f"{self.corpus.name}, test")
        self.vocab_size, self.info = self.corpus.vocabulary.size, self.corpus.info

    def batches(self, reader: Reader) -> Batches:
        data, seed = self.recipe.data, self.recipe.train.seed
        return data.order.batches(self.corpus, data, seed, reader)

    def check(self, model: Model) -> None:
        assert isinstance(model, LanguageModel)
        check(model, *self._validation())

    def validate(self, model: Model, step: int, world: World = ALONE) -> Validation:
        assert isinstance(model, LanguageModel)
        it = evaluate(model, *self._validation(), world=world)
        return Validation(it.mean_nats, it.tokens, it.method, it.context_len, it.settings)

    def _validation(self) -> tuple[Tensor, EvalConfig]:
        """What a validation reads, and how."""
        config = self.recipe.train.valid or self.recipe.eval
        tokens = self.corpus.splits["valid"][: self.recipe.train.eval_tokens]
        return tokens, config.model_copy(update={"max_tokens": None})


class RetrievalTask(Task):
    """To give back the value that a key was last written with."""

    def __init__(self, recipe: RetrievalRecipe):
        self.recipe, self.vocab_size = recipe, recipe.data.n_symbols
        self.info = {"name": recipe.data.dataset, "n_pairs": recipe.data.n_pairs}

    def batches(self, reader: Reader) -> RetrievalBatches:
        return RetrievalBatches(self.recipe.data, self.recipe.train.seed, reader)

    def check(self, model: Model) -> None:
        """Every model can be asked."""

    def validate(self, model: Model, step: int, world: World = ALONE) -> Validation:
        """New sequences, which depend on the seed and the step alone; each is a pass of its own,
        so that a map that draws at every pass is measured over as many draws."""
        config, seed = self.recipe.eval, self.recipe.train.seed
        source = self.recipe.data.sequences(seed, step)
        drawn = [source.all_queries() for _ in range(config.n_sequences)]
        asked = [(keys, values, q[: config.max_queries]) for keys, values, q in drawn]
        losses = []
        with evaluating(model):
            for i in share(len(asked), world).tolist():
                tokens_BT, targets_BQ = (x.to(model.device) for x in questions([asked[i]]))
                with draws.shared(own_seed(seed + step, i + 1), compiled=False):
                    losses.append(model.nll(tokens_BT, targets_BQ, ())[0].flatten())
        nats = torch.cat(unequal(losses, [len(q) for _, _, q in asked], world))
        settings = f"queries, n_sequences {config.n_sequences}, max_queries {config.max_queries}"
        return Validation(float(nats.mean()), len(nats), "queries", settings=settings)
