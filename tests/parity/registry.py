"""Which code base a golden file is from, and who runs it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

from parity import adaptive_span, awd_lstm, fast_weight, fast_weight_synthetic, transformer_xl
from parity.golden import Comparison, Deviation, Golden, Unknown

Run = Callable[[Golden, torch.dtype], Comparison]

RUNS: dict[str, Run] = {
    "transformer-xl/pytorch": transformer_xl.run,
    "adaptive-span": adaptive_span.run,
    "awd-lstm-lm": awd_lstm.run,
    "lmtool-fwms/src": fast_weight.run,
    "fast-weight-transformers/synthetic": fast_weight_synthetic.run,
}


def files(folder: Path) -> list[Path]:
    """Everything in a golden folder that should be a golden file."""
    if not folder.is_dir():
        return []
    hidden, notes = (".", "README"), (".md", ".txt", ".json")
    return sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and not p.name.startswith(hidden) and p.suffix not in notes
    )


def check(path: Path) -> list[Deviation]:
    """All deviations of a file; see `compare` for the errors."""
    return [d for comparison in compare(path) for d in comparison.deviations]


def compare(path: Path) -> list[Comparison]:
    """Run a file in every precision in which it can be compared.

    Raises:
        NotBuilt: it needs what the workbench lacks; the message names the feature.
        Unknown: its meta is not understood.
        OnlyABug: there is nothing in it that should be the same.
        AssertionError: we compute something else.
    """
    golden = Golden(path)
    run = _run_of(golden)
    exact = "out" in golden.meta.get("stored_in_float64", [])
    precisions = [torch.float64] if exact else [torch.float32, torch.float64]
    comparisons = [run(golden, dtype) for dtype in precisions]
    for comparison in comparisons:
        comparison.finish()
    return comparisons


def family(path: Path) -> str:
    """The code base that a file says it is from; "unknown" where it says none."""
    try:
        return re.split(r"[ ,/(]", str(Golden(path).meta["codebase"]))[0]
    except (Unknown, OSError, ValueError):
        return "unknown"


def _run_of(golden: Golden) -> Run:
    """By what the file says of itself; its name means nothing."""
    codebase = golden.meta["codebase"]
    for where, run in RUNS.items():
        if codebase.startswith(where):
            return run
    raise Unknown(f"{golden.name}: the code base '{codebase}' is not known")
