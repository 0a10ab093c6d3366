"""Text that a model writes while it learns, kept as data in the run folder.

`samples.jsonl` has a line a sample, oldest first: `{step, prompt, text, bits, temperature, seed,
tokens}`, where `bits` is the mean cost of a token under the model itself. Sampling draws with
numbers of its own, from a copy of the weights: a run is the same, bit for bit, with samples and
without, and the same text is written again where updates are repeated after a crash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from workbench.data.corpus import Corpus
from workbench.errors import ConfigError, DataError
from workbench.generation import generate
from workbench.metrics import bits_per_token
from workbench.models.language_model import LanguageModel
from workbench.reading import open_source
from workbench.recipe import AnyRecipe, of_text
from workbench.train import storage
from workbench.train.launch import LaunchedRun
from workbench.train.records import CheckpointRecord, Record, TrainRecord
from workbench.train.start import AnyRun

SAMPLES = "samples.jsonl"


@dataclass(frozen=True)
class SampleSettings:
    """What is written, and how often."""

    every: int = 100
    """updates; a sample is drawn at the first training record at or after each multiple, or, where
    several processes train, at the first checkpoint; 0 for none"""
    length: int = 240
    """tokens"""
    prompt: str = ""
    """what comes before; empty: as after the end of a line"""
    temperature: float = 0.8
    seed: int = 1
    """the same numbers for every sample, so that what changes is the model"""

    def check(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            ConfigError: names the parameter.
        """
        if self.every < 0 or self.length < 1:
            raise ConfigError(
                f"samples: got every {self.every} updates and {self.length} tokens, expected 0 or "
                "more updates and 1 or more tokens"
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"samples: got temperature {self.temperature!r}, expected 0 or more")


class Sampler:
    """Draws samples of a run as its records come.

    Use:
        sampler = Sampler(run, SampleSettings(every=100))
        for record in run:
            sampler.see(record)

    Args:
        run: of a text, new or continued: samples of updates that it will repeat are dropped.
        settings: how often, and what.

    Raises:
        ConfigError: a setting makes no sense, or the run trains on no text.
        DataError: the vocabulary lacks symbols of the prompt.
    """

    def __init__(self, run: AnyRun, settings: SampleSettings) -> None:
        settings.check()
        of_text(run.recipe)
        self._run, self._settings = run, settings
        self._path = run.folder.path / SAMPLES
        # refused before anything is trained
        subject = open_source(run)
        if unknown := subject.unknown(settings.prompt):
            raise DataError(
                f"samples: got a prompt with {', '.join(unknown[:8])}, which the text lacks; "
                "expected symbols of its own"
            )
        subject.encode(settings.prompt)
        self._rewind(run.step)

    def _rewind(self, step: int) -> None:
        kept = [row for row in read(self._path.parent) if row["step"] <= step]
        self._last = kept[-1]["step"] if kept else 0
        if self._path.is_file():
            with storage.writing(SAMPLES, self._path.parent):
                text = "".join(json.dumps(row) + "\n" for row in kept)
                storage.replace(self._path, text.encode())

    def see(self, record: Record) -> dict[str, Any] | None:
        """Draw a sample if it is time, and keep it.

        Raises:
            CannotWrite: the disk is full or read-only.
        """
        every = self._settings.every
        # of several processes this one has no more than their checkpoints
        telling = CheckpointRecord if isinstance(self._run, LaunchedRun) else TrainRecord
        if record.step < self._last:
            # processes that died begin again at a checkpoint
            self._rewind(record.step)
        if not every or not isinstance(record, telling):
            return None
        if record.step // every == self._last // every:
            return None
        row = self._draw(record.step)
        with storage.writing(SAMPLES, self._path.parent):
            storage.append(self._path, (json.dumps(row) + "\n").encode())
        self._last = record.step
        return row

    def _draw(self, step: int) -> dict[str, Any]:
        settings = asdict(self._settings)
        del settings["every"]
        written = generate(
            Snapshot(snapshot(self._run), self._run.recipe, self._run.corpus),
            settings["prompt"],
            length=settings.pop("length"),
            temperature=settings["temperature"],
            seed=settings["seed"],
        )
        tokens = list(written)
        bits = bits_per_token(sum(token.nats for token in tokens) / len(tokens))
        return {"step": step, **settings, "text": written.text, "bits": bits, "tokens": len(tokens)}


class Snapshot(NamedTuple):
    """What `generate` asks of a run."""

    model: LanguageModel
    recipe: AnyRecipe
    corpus: Corpus


def snapshot(run: AnyRun) -> LanguageModel:
    """A copy of a run's model as it is now, in evaluation mode: reading a text with the model in
    training itself would change what its layers report of the text that they learn from."""
    model = run.model
    assert isinstance(model, LanguageModel)
    if isinstance(run, LaunchedRun):
        # not the one in training, which other processes have
        return model
    with torch.random.fork_rng(devices=[]):
        copy = model.config.build(model.vocab_size)
    copy.load_state_dict(model.state_dict())
    return copy.to(model.device).eval()


def read(folder: Path) -> list[dict[str, Any]]:
    """The samples of a run folder, oldest first; what is none is left out, as the folder may be
    anybody's."""
    path = folder / SAMPLES
    rows = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if is_sample(row):
            rows.append(row)
    return rows


def is_sample(row: object) -> bool:
    """Whether plain data is a line of `samples.jsonl`."""
    return (
        isinstance(row, Mapping)
        and isinstance(row.get("step"), int)
        and isinstance(row.get("text"), str)
        and isinstance(row.get("prompt"), str)
        and isinstance(row.get("bits"), int | float)
    )
