"""Corpora, vocabularies and the batches cut from them.

A text's way through the rooms:

    where it comes from
      published           the papers' corpora; `rules` and `lm1b` number their symbols
      registry, raw       what is published (data/registry.yaml); got, checked, found on this disk
      download, archives  from mirrors by way of `transfer`, unpacked by way of `compressed`
      text                a text of the user's; `sources` finds its files, `learning` its vocabulary
      python_source       the text that every machine has
    how it becomes a corpus
      corpus, vocabulary  what every one is; ids and symbols of all levels (`bpe` is apart)
      store, places       made once and kept whole; locks, and folders aside until then
      prepare             from `pieces`, byte ranges of files, by way of `symbols` (`words` numbers
                          those) and `tables` of their counts, to ids; a `crew` of `worker`
                          processes does the `jobs`
    how training reads it
      batches             what all orders share; `ahead` prepares the next ones
      segments            contiguous streams, and `data` of a recipe; `sentences`: shuffled ones
      retrieval           pairs of keys and values instead of a text

Each name is loaded on first use: the workers of a preparation import this package, and neither
PyTorch nor pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.data.batches import Batch, Order
    from workbench.data.corpus import Corpus, CorpusConfig
    from workbench.data.raw import check, get
    from workbench.data.segments import DataConfig, Segments
    from workbench.data.sentences import Sentences
    from workbench.data.text import from_strings
    from workbench.data.vocabulary import Vocabulary

_HOMES = {
    "Batch": "batches",
    "Corpus": "corpus",
    "CorpusConfig": "corpus",
    "DataConfig": "segments",
    "Order": "batches",
    "Segments": "segments",
    "Sentences": "sentences",
    "Vocabulary": "vocabulary",
    "check": "raw",
    "from_strings": "text",
    "get": "raw",
}

__all__ = [
    "Batch",
    "Corpus",
    "CorpusConfig",
    "DataConfig",
    "Order",
    "Segments",
    "Sentences",
    "Vocabulary",
    "check",
    "from_strings",
    "get",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"workbench.data has no '{name}'; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"workbench.data.{_HOMES[name]}"), name)
