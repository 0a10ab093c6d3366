"""The corpora of the papers, with the vocabulary rule of the code base that a recipe follows.

The same text has another vocabulary in each code base: the Transformer-XL and fast-weight codes
lose the newlines of enwik8 (204 symbols), the adaptive-span and AWD-LSTM codes keep them (205).
"""

from __future__ import annotations

from typing import Literal

from workbench.config import model_validator
from workbench.data import store
from workbench.data.corpus import Corpus, CorpusConfig
from workbench.errors import DataMissing

Name = Literal["enwik8", "text8", "wikitext-2", "wikitext-103", "ptb", "ptb-char", "lm1b"]
Rule = Literal["transformer-xl", "adaptive-span", "awd-lstm"]

# (corpus, rule): symbols. The counts of lm1b and ptb-char are assumed, their files were not seen
SYMBOLS: dict[tuple[str, str], int] = {
    ("enwik8", "transformer-xl"): 204,
    ("enwik8", "adaptive-span"): 205,
    ("enwik8", "awd-lstm"): 205,
    ("text8", "transformer-xl"): 27,
    ("text8", "adaptive-span"): 28,
    ("wikitext-2", "awd-lstm"): 33_278,
    ("wikitext-2", "transformer-xl"): 33_278,
    ("wikitext-103", "transformer-xl"): 267_735,
    ("wikitext-103", "adaptive-span"): 267_735,
    ("wikitext-103", "awd-lstm"): 267_735,
    ("ptb", "awd-lstm"): 10_000,
    ("ptb", "transformer-xl"): 10_000,
    ("ptb-char", "awd-lstm"): 50,
    ("lm1b", "transformer-xl"): 793_470,
}


class Published(CorpusConfig):
    """A corpus that papers report on."""

    kind: Literal["published"] = "published"
    name: Name
    rule: Rule
    """whose preparation: which symbols there are and in which order they are numbered"""

    @model_validator(mode="after")
    def _known(self) -> Published:
        if (self.name, self.rule) not in SYMBOLS:
            rules = ", ".join(rule for name, rule in SYMBOLS if name == self.name)
            raise ValueError(f"rule: {self.name} was not used by {self.rule}; choose from: {rules}")
        return self

    @property
    def dataset(self) -> str:
        return self.name

    @property
    def n_symbols(self) -> int:
        return SYMBOLS[self.name, self.rule]

    def open(self) -> Corpus:
        folder = store.root() / self.name
        raise DataMissing(
            f"corpus {self.name}: got no text in {folder}, expected train.txt, valid.txt and "
            "test.txt there; put them there, or train on {kind: text, path: ...}"
        )
