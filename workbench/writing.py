"""A text that a model writes on and on: begun from a prompt, stopped, and gone on with.

    text = Writing(view)
    for token in text.begin(Ask("def ", length=200)):
        ...
    text.symbols, text.bits, text.tips

Shapes: n tokens of the text.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch

from workbench.data.vocabulary import BYTEWISE, Vocabulary
from workbench.errors import ConfigError
from workbench.generation import Generation, Past, Stop, generate
from workbench.metrics import bits_per_token
from workbench.models.language_model import LanguageModel
from workbench.reading import Opened, Subject, open_source
from workbench.watching import Written, watch

CONTINUES = "·"
"""a token that is the rest of the character before it"""


class Ask(NamedTuple):
    """How a text is to be written; see `generate`."""

    prompt: str = ""
    length: int = 200
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop: Stop = ()
    """"" is no stop, as an empty input says"""
    seed: int | None = None


class Writing:
    """One text, from its prompt to where it has come to.

    Args:
        source: a run, a notebook's `View`, or a model.
        alternatives: how many of the likeliest tokens to keep at each.
        vocabulary: for a bare model.

    Attributes:
        ids: of the whole text, the prompt first.
        written: what was known when each token after the prompt was drawn.
        seed: of the last generation.
        settings: how the past is read.
    """

    def __init__(
        self,
        source: Opened | LanguageModel,
        *,
        alternatives: int = 5,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self._source, self._vocabulary = source, vocabulary
        self.subject: Subject = open_source(source, vocabulary)
        self.alternatives = alternatives
        self.ids: list[int] = []
        self.written: list[Written] = []
        self.seed, self.settings = 0, ""
        self._past: Past | None = None

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.ids) - len(self.written)

    @property
    def can_go_on(self) -> bool:
        """Whether there is a text that ended cleanly, to go on from."""
        return self._past is not None

    def begin(self, ask: Ask, *, look: bool = True) -> Generator[Written, None, None]:
        """Write anew; to stop, leave the loop and close what it iterates over.

        Raises:
            ConfigError, DataError: as `generate`, before the text that is there is given up.
        """
        generation = self._generate(ask, ask.prompt, None, ask.seed)
        self.ids, self.written, self._past = generation.prompt.tolist(), [], None
        return self._run(generation, look, before=0)

    def go_on(self, ask: Ask, *, look: bool = True) -> Generator[Written, None, None]:
        """Write on from where the text ended, by the state that was kept: nothing is read again.

        The prompt of `ask` is not looked at. A seed that is given is moved on by the tokens written
        so far, or the same random numbers would come again.

        Raises:
            ConfigError: no text was begun, or its writing failed; or as `generate`.
        """
        if self._past is None:
            raise ConfigError("there is no text to go on with yet; write one first")
        seed = None if ask.seed is None else ask.seed + len(self.written)
        generation = self._generate(ask, "", self._past, seed)
        # the last token is this generation's prompt
        return self._run(generation, look, before=len(self.ids) - 1)

    def _generate(self, ask: Ask, prompt: str, past: Past | None, seed: int | None) -> Generation:
        generation = generate(
            self._source,
            prompt,
            past=past,
            length=ask.length,
            temperature=ask.temperature,
            top_k=ask.top_k,
            top_p=ask.top_p,
            stop=() if ask.stop == "" else ask.stop,
            seed=seed,
            vocabulary=self._vocabulary,
        )
        self.seed, self.settings = generation.seed, generation.settings
        return generation

    def _run(
        self, generation: Generation, look: bool, before: int
    ) -> Generator[Written, None, None]:
        whole, count = False, 0
        tokens = watch(
            generation,
            self.subject.model,
            before=before,
            alternatives=self.alternatives,
            look=look,
        )
        try:
            for token in tokens:
                self.ids.append(token.id)
                self.written.append(token)
                count, whole = count + 1, True
                yield token
                # an error from here on would leave a state that has read more than was told
                whole = False
            whole = True
        finally:
            self._past = generation.stop().past() if whole and count else None

    @property
    def symbols(self) -> list[str]:
        """(n,) each token as text."""
        return spelt(self.subject.vocabulary, self.ids)

    @property
    def bits(self) -> list[float]:
        """(n,) what each token cost; 0 for those of the prompt."""
        return [0.0] * self.n_prompt + [bits_per_token(t.nats) for t in self.written]

    @property
    def text(self) -> str:
        """The whole text; "" for a bare model."""
        return self.subject.decode(self.ids)

    def label(self, token: int) -> str:
        """One token of the vocabulary by itself."""
        return self.subject.labels(torch.tensor([token]))[0]

    def tip(self, index: int) -> str:
        """What is said of a token when it is pointed at.

        Args:
            index: in the whole text, from 0.
        """
        if index < self.n_prompt:
            return f"{self.label(self.ids[index])}   (prompt)"
        token = self.written[index - self.n_prompt]
        others = "   ".join(
            f"{self.label(i)} {probability(nats):.1%}" for i, nats in token.alternatives
        )
        return (
            f"{self.label(token.id)}   {probability(token.nats):.2%}, "
            f"{bits_per_token(token.nats):.2f} bits, rank {token.rank}\nlikeliest:   {others}"
        )


def probability(nats: float) -> float:
    """Of a token that costs so much."""
    return float(torch.tensor(-nats, dtype=torch.float64).exp())


def spelt(vocabulary: Vocabulary | None, ids: Sequence[int]) -> list[str]:
    """(n,) tokens as parts of a running text.

    Where tokens are bytes, a character stands at its first byte as soon as it is complete, and
    `CONTINUES` at the others. Until then, and where it never is, each of its bytes is a lone
    surrogate, which `style.visible` shows as `\\xNN`. Words keep the blank that parts them.
    """
    if vocabulary is None:
        return [str(i) for i in ids]
    if vocabulary.level not in BYTEWISE:
        gap = " " if vocabulary.level == "word" else ""
        return [vocabulary.symbol(i) + gap for i in ids]
    known = {i: vocabulary.raw(torch.tensor([i])) for i in set(ids)}
    raws = [known[i] for i in ids]
    owner = [at for at, raw in enumerate(raws) for _ in raw]
    parts = [""] * len(raws)
    place = 0
    for character in b"".join(raws).decode("utf-8", errors="surrogateescape"):
        parts[owner[place]] += character
        place += len(character.encode("utf-8", errors="surrogateescape"))
    return [part or CONTINUES for part in parts]
