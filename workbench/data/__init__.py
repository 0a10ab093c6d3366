"""Corpora, vocabularies and the batches cut from them.

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
