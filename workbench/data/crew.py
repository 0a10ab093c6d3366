"""Who does the jobs of a preparation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from workbench.data import jobs


class Crew:
    """The process itself: for texts so small that workers would not be worth their start."""

    def map(self, asked: Iterable[dict[str, Any]]) -> Iterator[Any]:
        """The results of jobs, in their order."""
        return map(jobs.perform, asked)
