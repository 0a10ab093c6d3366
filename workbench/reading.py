"""How a trained model is given text: from a run or a bare model, in symbols or ids, as a state.

`Reader` is the one place where text is read on: the past is kept as the model's own state, so that
a token costs the same however long the text is (attention: as long as its memory).
Shapes: B rows side by side, T tokens of a piece, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from workbench import carry as carries
from workbench.carry import Carry
from workbench.config import load
from workbench.data.corpus import Corpus
from workbench.data.vocabulary import BYTEWISE, UNKNOWN, Vocabulary, printable
from workbench.errors import ConfigError, DataError, DataMissing
from workbench.models.base import Model, evaluating
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.base import Limits
from workbench.recipe import AnyRecipe, Recipe, of_text
from workbench.train.config import EvalConfig
from workbench.train.environment import choose_device
from workbench.train.folder import RunFolder

PIECE = 256
"""tokens of a forward pass while a prompt is read; changes memory, not the result"""


@runtime_checkable
class Opened(Protocol):
    """What has a model, its recipe and its text, such as a `Run` or a notebook's `View`."""

    @property
    def model(self) -> Model: ...
    @property
    def recipe(self) -> AnyRecipe: ...
    @property
    def corpus(self) -> Corpus: ...


Source = LanguageModel | Opened | RunFolder | Path | str
Text = str | bytes | Tensor | Sequence[int]


class Subject(NamedTuple):
    """A model, and what is known about its text."""

    model: LanguageModel
    recipe: Recipe | None
    vocabulary: Vocabulary | None
    missing: DataMissing | None = None
    """why a run has no vocabulary: its corpus is not here"""

    def symbols(self) -> Vocabulary:
        """The vocabulary.

        Raises:
            ConfigError: a bare model came without one.
            DataMissing: the corpus of a run, which has it, is not here.
        """
        if self.missing is not None:
            raise self.missing
        if self.vocabulary is None:
            raise ConfigError(
                "got text, but a bare model knows ids only; give vocabulary=corpus.vocabulary, a "
                "run instead of its model, or ids instead of text"
            )
        return self.vocabulary

    def encode(self, text: Text) -> Tensor:
        """(n,) int64 ids of a text, or of ids as they are; unknown symbols become `<unk>`.

        Raises:
            ConfigError: text for a bare model.
            DataError: ids that the model does not have, or bytes that are no UTF-8.
        """
        if isinstance(text, str | bytes):
            text = self._ids(text) if text else []
        try:
            ids, size = torch.as_tensor(text), self.model.vocab_size
        except (TypeError, ValueError, RuntimeError):
            raise DataError(f"got {text!r:.60}, expected text, bytes or a row of ids") from None
        if ids.numel() == 0:
            return torch.empty(0, dtype=torch.long)
        whole = ids.ndim == 1 and not ids.is_floating_point()
        if not whole or not 0 <= int(ids.long().min()) <= int(ids.long().max()) < size:
            raise DataError(
                f"got ids {ids.tolist()!s:.60}, expected one row of whole numbers from 0 to "
                f"{size - 1}, the symbols that the model knows"
            )
        return ids.long().cpu()

    def _ids(self, text: str | bytes) -> Tensor:
        vocabulary = self.symbols()
        return vocabulary.encode(text if vocabulary.level in BYTEWISE else _decoded(text))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids; "" for a bare model."""
        return self.vocabulary.decode(torch.as_tensor(ids).long()) if self.vocabulary else ""

    def labels(self, ids: Tensor) -> list[str]:
        """A printable label of each id; for a bare model its number."""
        known = self.vocabulary
        return [known.symbol(i) if known else str(i) for i in ids.tolist()]

    def unknown(self, text: Text) -> list[str]:
        """Symbols of a text that the vocabulary lacks, each once, in order of appearance."""
        if not isinstance(text, str | bytes) or not text or self.symbols().unknown is None:
            return []
        vocabulary, text = self.symbols(), _decoded(text)
        pieces = text.split() if vocabulary.level == "word" else list(text)
        each = (p for p in dict.fromkeys(pieces) if p != UNKNOWN)
        return [printable(p) for p in each if vocabulary.unknown in vocabulary.ids(p).tolist()]


def _decoded(text: str | bytes) -> str:
    try:
        return text if isinstance(text, str) else text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"got bytes that are no UTF-8 text ({error}); give a str") from None


def open_source(source: Source, vocabulary: Vocabulary | Corpus | None = None) -> Subject:
    """The model and vocabulary of a run, wherever it is.

    Args:
        source: a model, a run, or the folder of one (its last checkpoint, on the recipe's device).
        vocabulary: of a bare model, or instead of the run's own.

    Without the run's corpus, which has its vocabulary, the model knows ids only.

    Raises:
        ConfigError, CheckpointError: no run of a text in the folder, or no checkpoint yet.
    """
    given = vocabulary.vocabulary if isinstance(vocabulary, Corpus) else vocabulary
    if isinstance(source, LanguageModel):
        return Subject(source, None, given)
    missing = None
    if isinstance(source, Opened):
        recipe, model = of_text(source.recipe), source.model
        given = given or source.corpus.vocabulary
    else:
        folder = source if isinstance(source, RunFolder) else RunFolder(source)
        recipe = of_text(folder.recipe())
        model = folder.load_model().to(choose_device(recipe.train.device))
        try:
            given = given or recipe.data.corpus.open().vocabulary
        except DataMissing as error:
            missing = error
    assert isinstance(model, LanguageModel), "what the recipe of a text builds"
    if given is not None:
        check_symbols(model, given)
    return Subject(model, recipe, given, missing)


def check_symbols(model: LanguageModel, vocabulary: Vocabulary) -> None:
    """Refuse a text that a run's model was not made for.

    Raises:
        ConfigError: it has more or fewer symbols than the model.
    """
    if vocabulary.size != model.vocab_size:
        raise ConfigError(
            f"got a text of {vocabulary.size} symbols, but the model knows {model.vocab_size}; "
            "expected the text that it was trained on. Correct data.corpus in the run's recipe"
        )


def reading(subject: Subject, context_len: int | None = None) -> EvalConfig:
    """How a text is read from its start on.

    `carried` wherever the state allows, `windows` where position codes restart at each segment.

    Args:
        subject: the model.
        context_len: past tokens that each attention layer sees, or of a window. None: the model's
            own memory; where that is none, the length of its training segments.

    Raises:
        ConfigError: nothing says how long the context is.
    """
    model = subject.model
    restarts = model.config.restarting is not None
    # layers that would see the present token alone, and more if they were given memory
    blind = any(b.mixer.reach() == 0 and b.mixer.reach(1) for b in model.layers)
    if context_len is None and (restarts or blind):
        if subject.recipe is None:
            raise ConfigError(
                "the model keeps no memory between segments, and a bare model does not say how "
                "long its segments are; give context_len, the past tokens that it may see"
            )
        context_len = subject.recipe.data.segment_len
    method = "windows" if restarts else "carried"
    return load(EvalConfig, {"method": method, "context_len": context_len})


State = Carry | Tensor
"""the carry; or, where position codes restart, the (B, W) newest tokens"""


def rows(state: State, index: Sequence[int]) -> State:
    """The state of some rows, in this order; a row may be taken more than once."""
    if isinstance(state, Tensor):
        return state[list(index)]
    return carries.map_tensors(lambda x: x[list(index)], state)


class Reader:
    """Tokens in, the distribution of the next one out.

    Args:
        model: any model.
        config: as `reading` gives it.
        state: of `batch_size` rows, to read on from; None begins a text.
        batch_size: rows.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: EvalConfig,
        batch_size: int = 1,
        state: State | None = None,
    ) -> None:
        self.model, self.config = model, config
        self._modules = list(model.modules())
        self.recomputes = config.method == "windows"
        """whether each token costs a pass over its whole window"""
        self.state = self._begin(batch_size) if state is None else state

    def _begin(self, batch_size: int) -> State:
        if self.recomputes:
            return torch.empty(batch_size, 0, dtype=torch.long)
        context_len, clamp_len = self.config.context_len, self.config.clamp_len
        limits = Limits(context_len, "beyond_self", clamp_len, constant_weights=True)
        return self.model.initial_carry(batch_size, limits)

    def read(self, ids_BT: Tensor) -> Tensor:
        """Read on.

        Args:
            ids_BT: at least one token for each row, on any device.

        Returns:
            (B, C) log-probabilities of the token that follows.
        """
        with evaluating(self.model, self._modules):
            if isinstance(self.state, Tensor):
                self.state = torch.cat([self.state, ids_BT.cpu()], 1)[:, -self._window :]
                fresh = self.model.initial_carry(len(ids_BT), Limits(same_length="off"))
                hidden_BTD = self._run(self.state, fresh)[0]
            else:
                for piece_BT in ids_BT.split(PIECE, dim=1):
                    hidden_BTD, self.state = self._run(piece_BT, self.state)
            return self.model.vocabulary.log_probs(hidden_BTD)[:, 0]

    def _run(self, ids_BT: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """What the softmax reads after the last token, (B, 1, D), and the new carry."""
        ids_BT = ids_BT.to(self.model.device)
        hidden_B1D, carry = self.model(ids_BT, carry, 1 if ids_BT.shape[1] > 1 else None)
        return hidden_B1D, carry

    @property
    def _window(self) -> int:
        assert self.config.context_len is not None, "EvalConfig lets no window be without a length"
        return self.config.context_len
