"""What a run trains on and how its model is measured on the way: a text, or retrieval."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch

from workbench.data.retrieval import RetrievalBatches, questions
from workbench.data.segments import Batches, Segments
from workbench.errors import DataError
from workbench.models.base import Model
from workbench.models.language_model import LanguageModel
from workbench.recipe import AnyRecipe, Recipe, RetrievalRecipe
from workbench.train.evaluate import evaluate


class Measured(NamedTuple):
    """One validation."""

    loss_nats: float
    """mean over the targets"""
    targets: int
    method: str
    context_len: int | None = None


class Task(ABC):
    """What a recipe trains on."""

    vocab_size: int
    info: dict[str, Any]
    """plain data that identifies it, for the run folder"""

    @abstractmethod
    def batches(self, device: torch.device) -> Batches:
        """A fresh source of training batches."""

    @abstractmethod
    def validate(self, model: Model, step: int) -> Measured:
        """Measure a model after so many updates."""


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
        for split in ("train", "valid"):
            if len(self.corpus.splits[split]) < 2:
                raise DataError(
                    f"the {split} split of {self.corpus.name} has "
                    f"{len(self.corpus.splits[split])} tokens, expected at least 2; give a longer "
                    "text"
                )
        self.vocab_size, self.info = self.corpus.vocabulary.size, self.corpus.info

    def batches(self, device: torch.device) -> Segments:
        data = self.recipe.data
        return Segments(
            self.corpus.splits["train"],
            data.batch_size,
            data.segment_len,
            ext_len=data.ext_len,
            device=device,
        )

    def validate(self, model: Model, step: int) -> Measured:
        assert isinstance(model, LanguageModel)
        tokens = self.corpus.splits["valid"][: self.recipe.train.eval_tokens]
        config = self.recipe.eval.model_copy(update={"max_tokens": None})
        result = evaluate(model, tokens, config)
        return Measured(result.mean_nats, result.tokens, result.method, result.context_len)


class RetrievalTask(Task):
    """To give back the value that a key was last written with."""

    def __init__(self, recipe: RetrievalRecipe):
        self.recipe, self.vocab_size = recipe, recipe.data.n_symbols
        self.info = {"name": recipe.data.dataset, "n_pairs": recipe.data.n_pairs}

    def batches(self, device: torch.device) -> RetrievalBatches:
        return RetrievalBatches(self.recipe.data, self.recipe.train.seed, device)

    def validate(self, model: Model, step: int) -> Measured:
        """New sequences, which depend on the seed and the step alone."""
        config = self.recipe.eval
        source = self.recipe.data.sequences(self.recipe.train.seed, step)
        drawn = [source.all_queries() for _ in range(config.n_sequences)]
        asked = questions([(k, v, queries[: config.max_queries]) for k, v, queries in drawn])
        device = next(model.parameters()).device
        tokens_BT, targets_BQ, asked_BQ = (x.to(device) for x in asked)
        model.eval()
        with torch.no_grad():
            nll_BQ, _ = model.nll(tokens_BT, targets_BQ, ())
        return Measured(float(nll_BQ[asked_BQ].mean()), int(asked_BQ.sum()), "queries")
