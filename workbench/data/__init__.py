"""Corpora, vocabularies and the batches cut from them.

Each name is loaded on first use: the workers of a preparation import this package, and neither
PyTorch nor pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.data.corpus import Corpus, CorpusConfig
    from workbench.data.segments import Batch, DataConfig, Segments, check_length
    from workbench.data.vocabulary import Vocabulary

_HOMES = {
    "Batch": "segments",
    "Corpus": "corpus",
    "CorpusConfig": "corpus",
    "DataConfig": "segments",
    "Segments": "segments",
    "Vocabulary": "vocabulary",
    "check_length": "segments",
}

__all__ = [
    "Batch",
    "Corpus",
    "CorpusConfig",
    "DataConfig",
    "Segments",
    "Vocabulary",
    "check_length",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"workbench.data has no '{name}'; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"workbench.data.{_HOMES[name]}"), name)
