"""Runs side by side: what differs in their recipes, and what came of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench import export
from workbench.config import dump, nearest
from workbench.errors import DataMissing
from workbench.kept import evaluation, manifest, records, status
from workbench.metrics import bits_per_token, perplexity
from workbench.notebook import place
from workbench.plots.latex import latex
from workbench.plots.table import flat
from workbench.recipe import AnyRecipe
from workbench.train import storage
from workbench.train.folder import RunFolder

Cell = str | int | float | None
NAMES = ("name", "about", "source")
"""fields of a recipe that say what it is called, and nothing of what it does"""


def open_runs(sweep: str | Path, runs: Sequence[str | Path] = ()) -> dict[str, RunFolder]:
    """The runs of a parameters cell by their names: those of `runs`, or all of a sweep's folder.

    Runs that have not begun are left out.

    Raises:
        DataMissing: there is no run at all.
    """
    paths = [place(run) for run in runs] or sorted(place(sweep).glob("*/"))
    found = {path.name: RunFolder(path) for path in paths if RunFolder(path).exists()}
    if not found:
        where = place(sweep)
        others = sorted(p.parents[1].name for p in where.parent.glob("*/*/recipe.yaml"))
        hint = f" {nearest(where.name, sorted(set(others)))}" if others else ""
        raise DataMissing(
            f"parameter sweep: no run folder in {', '.join(map(str, runs)) or where}.{hint} Give a "
            "folder that holds runs, such as `workbench sweep` makes, or the runs' own folders"
        )
    return found


def differing(recipes: Mapping[str, AnyRecipe]) -> dict[str, dict[str, Any]]:
    """Which fields of recipes differ: dotted path -> run -> value, without a run that lacks it."""
    plain = {
        run: flat({k: v for k, v in dump(recipe).items() if k not in NAMES})
        for run, recipe in recipes.items()
    }
    paths = dict.fromkeys(path for values in plain.values() for path in values)
    found = {}
    for path in paths:
        values = {run: own[path] for run, own in plain.items() if path in own}
        if len(values) < len(plain) or len({json.dumps(v) for v in values.values()}) > 1:
            found[path] = values
    return found


def difference_table(recipes: Mapping[str, AnyRecipe]) -> list[dict[str, Cell]]:
    """A row for each field that differs, a column for each run."""
    return [
        {"field": path, **{run: _cell(values.get(run, "")) for run in recipes}}
        for path, values in differing(recipes).items()
    ]


def _cell(value: Any) -> Cell:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return value if isinstance(value, int | float | str) else json.dumps(value)


def row(name: str, folder: RunFolder) -> dict[str, Cell]:
    """One run in the table: size, tokens, losses, speed, time, memory, what computed it, state.

    Perplexity is told where a token is a word or a part of one. Memory is the most that was held
    at once: by PyTorch's tensors on a GPU, by the whole process on a CPU.

    Raises:
        RunFolderError: records, state or evaluation are not what they should be.
    """
    train, result = records(folder, "train"), evaluation(folder)
    best, test = best_validation(folder), result.get("splits", {}).get("test")
    words = test is not None and result.get("unit", "character") != "character"
    speeds = [x for r in train if (x := r.get("tokens_per_s")) is not None]
    peaks = [x for r in train if (x := r.get("peak_bytes")) is not None]
    ran = {f"{op}: {backend}" for r in train for op, backend in r.get("backends", {}).items()}
    seconds = [x for r in records(folder) if (x := r.get("elapsed_s")) is not None]
    last = train[-1] if train else {}
    return {
        "run": name,
        "recipe": folder.recipe().name,
        "parameters": n_parameters(folder),
        "tokens": last.get("tokens"),
        "valid bits": round(best, 4) if best is not None else None,
        "test bits": round(bits_per_token(test["loss_nats"]), 4) if test else None,
        "test perplexity": round(perplexity(test["loss_nats"]), 2) if test and words else None,
        "tokens/s": round(statistics.median(speeds)) if speeds else None,
        "minutes": round(seconds[-1] / 60, 2) if seconds else None,
        "peak MB": round(max(peaks) / 1e6, 1) if peaks else None,
        "carry MB": round(last["memory_bytes"] / 1e6, 3) if "memory_bytes" in last else None,
        "processes": last.get("processes", 1) if train else None,
        "backends": ", ".join(sorted(ran)) or "torch",
        "state": state(status(folder)),
    }


def table(
    folders: Mapping[str, RunFolder], recipes: Mapping[str, AnyRecipe], most: int = 4
) -> list[dict[str, Cell]]:
    """A row for each run, with up to `most` fields of their recipes that differ among them.

    A column that is empty in every row is left out.

    Raises:
        RunFolderError: a file of a run is not what it should be.
    """
    fields = several(recipes, dict.fromkeys(folders, 0.0), most)
    names = short(list(fields))
    rows = []
    for run, folder in folders.items():
        first, *rest = row(run, folder).items()
        own = {names[path]: _cell(values.get(run, "")) for path, values in fields.items()}
        rows.append(dict([first, *own.items(), *rest]))
    return [{n: v for n, v in r.items() if any(x.get(n) is not None for x in rows)} for r in rows]


def short(paths: Sequence[str]) -> dict[str, str]:
    """Dotted paths by as many of their last words as tell them apart."""
    found = {}
    for path in paths:
        words, others = path.split("."), [f".{other}" for other in paths if other != path]
        ends = (".".join(words[-n:]) for n in range(1, len(words)))
        alone = (end for end in ends if not any(o.endswith(f".{end}") for o in others))
        found[path] = next(alone, path)
    return found


def save_table(folder: RunFolder, rows: Sequence[Mapping[str, Cell]]) -> list[Path]:
    """Keep the table as `comparison.csv` and `comparison.tex` in a folder.

    Returns:
        the two files.
    """
    written = []
    for name, text in files(rows).items():
        path = folder.artefact(name)
        storage.replace(path, text.encode(), durable=False)
        written.append(path)
    return written


def files(rows: Sequence[Mapping[str, Cell]]) -> dict[str, str]:
    """The table for other programs: name of a file -> what is in it."""
    columns = export.long(rows)
    caption = "Runs side by side. Bits are per token of the text; lower is better."
    return {
        "comparison.csv": export.csv_text(columns),
        "comparison.tex": latex(columns, caption, label="tab:runs"),
    }


def state(told: Mapping[str, Any]) -> str:
    """How a run stands, with its step where it is not done."""
    if not told:
        return "not begun"
    if told.get("state") == "done":
        return "done"
    return f"{told.get('state')} at {told.get('step', 0):,} of {told.get('steps', 0):,}"


def best_validation(folder: RunFolder) -> float | None:
    """The lowest validation of a run, in bits per token; None before the first."""
    losses = [x for r in records(folder, "eval") if (x := r.get("loss_nats")) is not None]
    return bits_per_token(min(losses)) if losses else None


def n_parameters(folder: RunFolder) -> int | None:
    """Trainable numbers of a run's model, which is built without memory; None before its first
    checkpoint, which knows the size of the vocabulary."""
    manifests = sorted(folder.checkpoints.glob("*/manifest.json"))
    if not manifests:
        return None
    vocab_size = manifest(manifests[-1])["vocab_size"]
    with torch.device("meta"):
        model = folder.recipe().model.build(vocab_size)
    return int(model.n_parameters)


def validated(folders: Mapping[str, RunFolder]) -> dict[str, float]:
    """The best validation of each run that has one, in bits per token."""
    found = {name: best_validation(folder) for name, folder in folders.items()}
    return {name: bits for name, bits in found.items() if bits is not None}


def several(
    recipes: Mapping[str, AnyRecipe], runs: Mapping[str, float], most: int = 6
) -> dict[str, dict[str, Any]]:
    """The fields with several values among some runs, for a picture each.

    Args:
        recipes: of all runs.
        runs: those that count.
        most: fields; those first that differ among runs of one recipe, which is what a sweep
            varies; then those in which most runs have a partner with the same value.
    """
    fields_of = differing({run: recipe for run, recipe in recipes.items() if run in runs})

    def kinds(values: Mapping[str, Any], recipe: str | None = None) -> int:
        own = (v for run, v in values.items() if recipe in (None, recipes[run].name))
        return len({json.dumps(v) for v in own})

    names = {recipe.name for run, recipe in recipes.items() if run in runs}
    rank = {
        path: (any(kinds(values, name) > 1 for name in names), len(values) - kinds(values))
        for path, values in fields_of.items()
        if kinds(values) > 1
    }
    chosen = sorted(rank, key=rank.__getitem__, reverse=True)[:most]
    return {path: fields_of[path] for path in chosen}
