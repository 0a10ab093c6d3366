"""Every case, family by family."""

from __future__ import annotations

from collections.abc import Callable

from bench.case import Case
from bench.cases import attention, evaluation, fast_weights, models, recurrent, vocabulary

GROUPS: dict[str, Callable[[], list[Case]]] = {
    "fast_weights": fast_weights.cases,
    "recurrent": recurrent.cases,
    "attention": attention.cases,
    "vocabulary": vocabulary.cases,
    "evaluation": evaluation.cases,
    "models": models.cases,
    "more_models": models.more_cases,
}
