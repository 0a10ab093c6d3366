"""Text that a model wrote while it learnt, as passages to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.plots.passages import Passage

MOST = 8
"""samples on a still page: the first, the last, and evenly many between"""


def passage(row: Mapping[str, Any], unit: str = "character") -> Passage:
    """One sample, its prompt in bold.

    Args:
        row: of `samples.jsonl`.
        unit: what a token is.
    """
    title = f"after update {row['step']:,}: {row['bits']:.2f} bits per {unit} that it wrote"
    return Passage(title, [*row["prompt"], *row["text"]], given=len(row["prompt"]))


def passages(rows: Sequence[Mapping[str, Any]], unit: str = "character") -> list[Passage]:
    """How the text of a model changed while it learnt: at most `MOST` samples, oldest first.

    Args:
        rows: of `samples.jsonl`, oldest first.
        unit: what a token is.
    """
    if not rows:
        return []
    kept = np.unique(np.linspace(0, len(rows) - 1, MOST).round().astype(int))
    return [passage(rows[i], unit) for i in kept.tolist()]
