"""Corpora, vocabularies and the batches cut from them."""

from workbench.data import published, python_source, text  # noqa: F401  the kinds register themselves
from workbench.data.corpus import Corpus, CorpusConfig
from workbench.data.raw import check, get
from workbench.data.segments import Batch, DataConfig, Segments, check_length
from workbench.data.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "Corpus",
    "CorpusConfig",
    "DataConfig",
    "Segments",
    "Vocabulary",
    "check",
    "check_length",
    "get",
]
