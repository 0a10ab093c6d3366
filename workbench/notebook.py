"""What the notebooks share: parameters checked at once, runs found and opened, figures kept.

A notebook is a view of a run folder. It says early, in one sentence, what is wrong with its
parameters, and leaves what it drew in the folder's `figures/`, where the report finds it.
"""

from __future__ import annotations

# before PyTorch: the page has something to do meanwhile
import workbench.widgets.ahead  # noqa: F401

# isort: split
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import torch
from IPython.display import HTML, display

from workbench.attendance import in_batch
from workbench.books import place as place
from workbench.books import told as told
from workbench.config import dump, load, nearest
from workbench.data.corpus import Corpus
from workbench.errors import ConfigError, DataMissing
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.attention import AttentionConfig
from workbench.plots.live import bundle, progress_bar
from workbench.plots.passages import Passage, plain, render
from workbench.probe import FAST_WEIGHTS
from workbench.reading import check_symbols, open_source, reading
from workbench.recipe import Recipe, load_recipe, of_text
from workbench.train.config import EvalConfig
from workbench.train.evaluate import Evaluation
from workbench.train.folder import RunFolder


class View(NamedTuple):
    """A run, opened to be looked at."""

    folder: RunFolder
    recipe: Recipe
    model: LanguageModel
    """in evaluation mode"""
    corpus: Corpus


def choose_recipe(
    name: str, overrides: Mapping[str, Any] | None = None, **train: float | int | None
) -> Recipe:
    """The recipe of a parameters cell, with its shortcuts applied.

    Args:
        name: a recipe's name or a path to a `.yaml` file.
        overrides: values at dotted paths.
        train: fields of `train` that have a parameter of their own; None leaves the recipe's.

    Raises:
        ConfigError: no such recipe, or a wrong override.
    """
    if not isinstance(overrides, Mapping | None):
        raise ConfigError(
            f"parameter overrides: got {overrides!r}, expected values at dotted paths such as "
            "{'train.steps': 200}; with papermill use -y 'overrides: {train.steps: 200}'"
        )
    path = place(name) if str(name).endswith((".yaml", ".yml")) else name
    own = {f"train.{field}": value for field, value in train.items() if value is not None}
    return of_text(load_recipe(path, {**(overrides or {}), **own}))


def open_folder(run: str | Path, parameter: str = "run") -> RunFolder:
    """The run folder of a parameters cell.

    Args:
        run: where.
        parameter: that said so.

    Raises:
        DataMissing: there is no run at this place.
    """
    path = place(run)
    if not (path / "recipe.yaml").is_file():
        others = sorted(p.parent.name for p in path.parent.glob("*/recipe.yaml"))
        found = f" {nearest(path.name, others)}" if others else ""
        reason = "is a folder without recipe.yaml" if path.is_dir() else "does not exist"
        raise DataMissing(
            f"parameter {parameter}: {path} {reason}, expected the folder of a run.{found} "
            "Train one with notebooks/train.ipynb (its parameter `out` is this folder)."
        )
    return RunFolder(path)


def open_run(run: str | Path, which: str = "last", parameter: str = "run") -> View:
    """Open a run with its model and corpus.

    Args:
        run: the run folder, as in a parameters cell.
        which: `last` or `best` checkpoint.
        parameter: that names the folder.

    Raises:
        DataMissing: no run there, or its corpus is gone.
        ConfigError: its corpus is one of other symbols.
        CheckpointError: no checkpoint yet, or a torn or foreign one.
    """
    if which not in ("last", "best"):
        prefix = "" if parameter == "run" else f"{parameter}_"
        raise ConfigError(f"parameter {prefix}checkpoint: got '{which}', expected 'last' or 'best'")
    folder = open_folder(run, parameter)
    recipe, model = of_text(folder.recipe()), folder.load_model(which)
    assert isinstance(model, LanguageModel)
    if torch.cuda.is_available() and recipe.train.device != "cpu":
        model = model.cuda()
    corpus = recipe.data.corpus.open()
    check_symbols(model, corpus.vocabulary)
    return View(folder, recipe, model, corpus)


def open_benchmark(path: str | Path, words: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows that `make bench` wrote.

    Args:
        path: of `bench.json`.
        words: keep only computations whose name and size hold all of them, and the limits.

    Raises:
        DataMissing: there is no such file, or no row is left.
    """
    file = place(path)
    if not file.is_file():
        raise DataMissing(f"{file} does not exist, expected the rows of a benchmark: `make bench`")
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))

    def fits(row: dict[str, Any]) -> bool:
        return all(word in f"{row['name']} {row['size']}" for word in words)

    if not any(fits(row) for row in rows if row["group"] != "limits"):
        raise DataMissing(f"{file}: no computation's name and size hold the words {list(words)}")
    return [row for row in rows if row["group"] == "limits" or fits(row)]


def evaluation_settings(recipe: Recipe, max_tokens: int | None) -> EvalConfig:
    """How the recipe measures, over the first `max_tokens` of a text if that is given."""
    plain = dump(recipe.eval)
    if max_tokens is not None:
        plain["max_tokens"] = max_tokens
    return load(EvalConfig, plain, where="parameter eval")


def running_settings(view: View) -> EvalConfig:
    """How to score a text whose past runs on from its start to its end, as a cache needs it."""
    config = reading(open_source(view))
    if config.method == "carried":
        return config
    plain = {"method": "streams", "batch_size": 1, "segment_len": view.recipe.data.segment_len}
    return load(EvalConfig, {**plain, "carry": view.recipe.train.carry})


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over tokens; yields what `evaluate` calls with tokens done and tokens in all."""
    pause = 5 if in_batch() else 0.5
    with progress_bar(unit="token", unit_scale=True, desc=name, mininterval=pause) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _kinds(recipe: Recipe) -> tuple[list[int], list[int]]:
    blocks = recipe.model.block_configs()
    spans = [i for i, b in enumerate(blocks) if isinstance(b.mixer, AttentionConfig)]
    fast = [i for i, b in enumerate(blocks) if isinstance(b.mixer, FAST_WEIGHTS)]
    return spans, fast


def attention_layers(recipe: Recipe) -> list[int]:
    """Which layers attend.

    Raises:
        ConfigError: none does; says which notebook to open instead.
    """
    attention, fast = _kinds(recipe)
    if not attention:
        instead = "fast_weights.ipynb" if fast else "evaluate.ipynb"
        raise ConfigError(
            f"parameter run: recipe '{recipe.name}' has no attention layer, so there are no spans "
            f"and no attention maps. For this run open notebooks/{instead}; for this notebook "
            "train a recipe such as span-python-tiny."
        )
    return attention


def fast_weight_layers(recipe: Recipe) -> list[int]:
    """Which layers have fast weights that are written by keys and values known beforehand.

    Raises:
        ConfigError: none has; says which notebook to open instead.
    """
    attention, fast = _kinds(recipe)
    if not fast:
        instead = "attention_span.ipynb" if attention else "evaluate.ipynb"
        raise ConfigError(
            f"parameter run: recipe '{recipe.name}' has no fast-weight layer of the kinds that can "
            "be drawn (fast_weight, delta_rnn, delta_lstm). For this run open "
            f"notebooks/{instead}; for this notebook train a recipe such as delta-python-tiny."
        )
    return fast


def pick(name: str, value: int, count: int, what: str) -> int:
    """Check a parameter that counts from 1, and count from 0 as Python does.

    Raises:
        ConfigError: out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= count:
        raise ConfigError(f"parameter {name}: got {value!r}, expected 1 to {count} ({what})")
    return value - 1


def spans(view: View) -> list[list[float]]:
    """Learned span of each head of each layer that has spans, in tokens; [] where none has.

    Dynamic spans: their mean over the tokens that the model read last.
    """
    return view.model.readings().get("span", [])


def span_spread(view: View) -> list[list[float]] | None:
    """Standard deviation of dynamic spans over the tokens that the model read last; None where no
    layer, or not each layer with spans, has dynamic ones."""
    spread = view.model.readings().get("span_spread")
    return spread if spread and len(spread) == len(spans(view)) else None


def pick_head(
    view: View, layer: int | None, head: int | None
) -> tuple[int, int, float | None, int]:
    """The attention layer and head of a parameters cell, or those of the longest span.

    Returns:
        which attention layer and which head, from 0, the head's span in tokens (None where it
        learns none) and the width of its soft edge.

    Raises:
        ConfigError: no such layer or head.
    """
    layers = attention_layers(view.recipe)
    mixers = [view.recipe.model.block_configs()[i].mixer for i in layers]
    with_span = [i for i, m in enumerate(mixers) if m.span is not None]
    found = dict(zip(with_span, spans(view), strict=True))
    if layer is None:
        at = max(found, key=lambda i: max(found[i])) if found else 0
    else:
        at = pick("layer", layer, len(layers), "attention layers")
    if head is None:
        at_head = found[at].index(max(found[at])) if at in found else 0
    else:
        at_head = pick("head", head, mixers[at].n_heads, "heads of that layer")
    if at not in found:
        return at, at_head, None, 0
    return at, at_head, found[at][at_head], mixers[at].span.ramp


def held_out(corpus: Corpus) -> list[str]:
    """The splits that are scored, the last in detail: valid, and test where there is one."""
    return [split for split in ("valid", "test") if len(corpus.splits[split])]


def symbols(corpus: Corpus, ids: Any) -> list[str]:
    """Tokens as text for pictures; words keep the blank that parts them."""
    gap = " " if corpus.unit == "word" else ""
    return [corpus.vocabulary.symbol(int(i)) + gap for i in ids]


def bytes_per_token(corpus: Corpus, ids: torch.Tensor) -> float | None:
    """Mean length of tokens in UTF-8; None at word level, where `<unk>` hides what the text was.

    Args:
        corpus: which has the vocabulary.
        ids: (n,) the tokens that were scored.
    """
    return None if corpus.unit == "word" else len(corpus.vocabulary.raw(ids)) / len(ids)


def show(fig: go.Figure) -> None:
    """Put a figure on the page, without plotly's upload button."""
    display(bundle(fig), raw=True)


def keep_figure(folder: RunFolder, name: str, fig: go.Figure) -> None:
    """Keep a figure as JSON in the run folder's `figures/`, where the report finds it."""
    (_figures(folder) / f"{name}.json").write_text(fig.to_json(), encoding="utf-8")


def save_figure(folder: RunFolder, name: str, fig: go.Figure) -> None:
    """Keep a figure as JSON in the run folder's `figures/`, and show it."""
    keep_figure(folder, name, fig)
    show(fig)


def keep_text(folder: RunFolder, name: str, passages: Sequence[Passage]) -> None:
    """Keep passages of text in the run folder's `figures/` as tokens and values."""
    text = json.dumps(plain(passages), allow_nan=False)
    (_figures(folder) / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def save_text(folder: RunFolder, name: str, passages: Sequence[Passage]) -> None:
    """Keep passages of text in the run folder's `figures/`, and show them."""
    keep_text(folder, name, passages)
    display(HTML(render(passages)))


def comparable(corpus: Corpus, scores: Mapping[str, Evaluation]) -> str:
    """With which other results these may be compared, and what speaks against it.

    Args:
        corpus: the text.
        scores: split -> evaluation.
    """
    sizes = {split: len(corpus.splits[split]) for split in scores}
    # methods leave out a few tokens at the ends of rows; what asks for less leaves out more
    short = [s for s, score in scores.items() if score.tokens < 0.95 * sizes[s]]
    parts = [f"{scores[s].tokens:,} of {sizes[s]:,} tokens of {s}" for s in short]
    return corpus.comparable + (f"; but only {' and '.join(parts)} were scored" if parts else "")


def _figures(folder: RunFolder) -> Path:
    path = folder.artefact("figures")
    path.mkdir(parents=True, exist_ok=True)
    return path
