"""Corpora: a text as memory-mapped token ids in three splits, with its vocabulary and record.

The slot is `data.corpus`. Its members say where the text comes from; `open` prepares it once and
afterwards only maps the files (milliseconds).
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.config import Choice
from workbench.data.pieces import readable
from workbench.data.vocabulary import BYTEWISE, Vocabulary
from workbench.errors import DataError, WorkbenchError


class CorpusConfig(Choice):
    """Where the text comes from."""

    @property
    def dataset(self) -> str:
        """What to call it in a list of experiments."""
        return str(self.model_dump(include={"kind"})["kind"])

    @property
    def n_symbols(self) -> int | None:
        """Size of the vocabulary where it is known without the text; None where it is not."""
        return None

    @property
    def comparable(self) -> str | None:
        """With which published figures a result may be compared; None where with none."""
        return None

    @abstractmethod
    def open(self) -> Corpus:
        """Prepare the corpus if that was not done before, then open it.

        Raises:
            DataMissing: the text is not there.
            DataError: it is there and cannot be used.
        """


class Corpus:
    """A prepared text, read-only.

    Attributes:
        name: what to call it in titles.
        level: "byte", "char", "word" or "bpe".
        unit: what a token counts as in results: "character" (byte and char level), "word", or
            "token" (BPE level).
        vocabulary: ids and symbols; read at first use.
        splits: "train", "valid", "test": 1-D token ids in the smallest storage type, mapped.
        info: plain data that identifies the text (sha256, sizes, rule of the splits, ...).
        folder: where the prepared files are.
    """

    def __init__(
        self,
        folder: Path,
        info: dict[str, Any],
        restore: Callable[[], Vocabulary],
        splits: dict[str, Tensor],
    ) -> None:
        self.folder = folder
        self.info = info
        self.name: str = info["name"]
        self.level: str = info["level"]
        self.unit: str = info["unit"]
        self.splits = splits
        self._restore = restore

    @cached_property
    def vocabulary(self) -> Vocabulary:
        # hundreds of thousands of words take longer than all else at opening
        try:
            return self._restore()
        except WorkbenchError:
            raise
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._damaged(self.folder / "vocabulary.json", f"{error}", "symbols") from None

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(ids):,}" for name, ids in self.splits.items())
        symbols = self.info["vocabulary_size"]
        return f"Corpus({self.name}, {self.level} level, {symbols} symbols; {sizes})"

    @property
    def comparable(self) -> str:
        """With which results, of other runs or of papers, one on this text may be compared."""
        if told := self.info.get("comparable"):
            return str(told)
        same = f"only with runs on the same sha256 {self.info['sha256']}, split and vocabulary"
        # rules of published corpora may leave out bytes
        whole = self.level in BYTEWISE and "rule" not in self.info
        return same + ("; bits per byte with every level" if whole else "")

    def files(self) -> list[dict[str, Any]]:
        """The recorded source files: sha256, bytes, path and split ("" where files are cut)."""
        lines = (self.folder / "files.jsonl").read_text("ascii").splitlines()
        return [json.loads(line) for line in lines]

    def text(self, split: str) -> bytes:
        """A split as bytes: exact at byte and BPE level; words are parted as `decode` does."""
        return self.vocabulary.raw(self.splits[split])

    def check(self) -> None:
        """Read the prepared files again and compare them with the recorded sha256.

        Raises:
            DataError: a file was altered after its preparation.
        """
        tokens = {f"{split}.bin": known for split, known in self.info["tokens_sha256"].items()}
        for name, expected in {**tokens, **self.info.get("files_sha256", {})}.items():
            path = self.folder / name
            with readable(path), path.open("rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
            if got != expected:
                raise self._damaged(path, f"sha256 {got}", expected)

    def _damaged(self, path: Path, got: str, expected: str) -> DataError:
        return DataError(
            f"{path}: got {got}, expected {expected}. Delete the folder {self.folder}; it is "
            "prepared again on next use."
        )
