"""What goes along with training and is no part of it: samples of text, and the machine's limit."""

from __future__ import annotations

from typing import Any

from workbench import limits
from workbench.recipe import Recipe
from workbench.samples import Sampler, SampleSettings
from workbench.train.records import Record
from workbench.train.start import AnyRun


class Company:
    """Sees the records of a run as they come, and keeps samples and limit in its folder.

    Args:
        run: new or continued; the limit is measured here, before it has anything to do.
        samples: what is written, and how often; a run that trains on no text has none.

    Raises:
        ConfigError, DataError: the samples cannot be drawn as told.
    """

    def __init__(self, run: AnyRun, samples: SampleSettings) -> None:
        self.run = run
        text = isinstance(run.recipe, Recipe)
        self._sampler = Sampler(run, samples) if text and samples.every else None
        self._limit = limits.of_run(run)
        self.limit = self._limit.tokens_per_s if self._limit else None
        """tokens a second that the machine allows at best"""

    def see(self, record: Record) -> dict[str, Any] | None:
        """Take in one record; gives the sample that was drawn, if it was time.

        Raises:
            CannotWrite: the disk is full or read-only.
        """
        if self._limit is not None:
            # not before: a folder with a file in it and no run is somebody else's
            limits.keep(self.run.folder.path, self._limit)
            self._limit = None
        return self._sampler.see(record) if self._sampler is not None else None
