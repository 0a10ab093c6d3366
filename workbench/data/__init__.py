"""Corpora, vocabularies and the batches cut from them."""

from workbench.data import published, python_source, text  # noqa: F401  the kinds register themselves
from workbench.data.batches import Batch, Order
from workbench.data.corpus import Corpus, CorpusConfig
from workbench.data.segments import DataConfig, Segments, check_length
from workbench.data.text import from_strings
from workbench.data.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "Corpus",
    "CorpusConfig",
    "DataConfig",
    "Order",
    "Segments",
    "Vocabulary",
    "check_length",
    "from_strings",
]
