"""Checkpoints of the papers' code as run folders of ours, and back under their names.

    import_checkpoint("model.pt", "runs/xl").folder.load_model()
    import_published("adaptive-span-enwik8", "runs/span")
    export_checkpoint("runs/xl", "again.pt")

Nothing of a foreign file is ever run (`workbench.originals.reader`). What the authors' program does
not write into its file is asked for, with its own default; the answer is in the result, in the
recipe's notes and in the run folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from workbench.config import dump, load
from workbench.data import registry
from workbench.errors import ConfigError
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.originals.checkpoint import (
    ADAPTIVE_SPAN,
    AWD_LSTM,
    FAST_WEIGHT,
    MODULES,
    TRANSFORMER_XL,
    Original,
    find,
)
from workbench.originals.links import in_their_layout
from workbench.originals.optimizer import FoundOptimizer, find_optimizer, statistics
from workbench.originals.published import CHECKPOINTS, fetch
from workbench.originals.reader import read
from workbench.originals.rebuild import rebuild
from workbench.recipe import Recipe, load_recipe
from workbench.train import checkpoint
from workbench.train.environment import describe
from workbench.train.folder import RunFolder, recipe_sha256

LAYOUT, BUFFERS = "original/layout.json", "original/buffers.safetensors"
"""of an imported run: the original's names, shapes and ties; its buffers"""
PAPERS = {
    TRANSFORMER_XL: "arXiv:1901.02860",
    ADAPTIVE_SPAN: "arXiv:1905.07799",
    AWD_LSTM: "arXiv:1708.02182",
    FAST_WEIGHT: "arXiv:2102.11174",
}
NO_TEXT = "the-text-of-{}-symbols"
"""stands for the path of a text that nobody named"""
RULES = {FAST_WEIGHT: TRANSFORMER_XL}
"""code bases that number symbols as another one does"""


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint."""

    folder: RunFolder
    original: Original
    optimizer: FoundOptimizer | None
    """the optimizer in the file"""
    recipe: str | None
    """the recipe that said what the file does not say of the model, if one was given"""
    statistics: bool
    """its running statistics were taken over, for a run that starts from this one"""

    def __str__(self) -> str:
        """For people: what it was, what was taken for what it does not say, what was left."""
        parameters = sum(p.numel() for p in self.folder.load_model().parameters())
        lines = [f"{self.original.codebase} model of {parameters:,} parameters: {self.folder.path}"]
        text = dump(self.folder.recipe())["data"]["corpus"].get("path")
        if text == NO_TEXT.format(self.original.vocab_size):
            lines.append("its text is not known: import with a corpus to score, prompt or evaluate")
        if self.recipe and self.original.asked:
            lines.append(f"taken for {', '.join(self.original.asked)}: what {self.recipe} says")
        else:
            lines += [f"taken for {k}: {v!r}" for k, v in self.original.asked.items()]
        if self.optimizer and self.optimizer.state_keys:
            step = (
                "" if self.optimizer.step is None else f" after {self.optimizer.step:.0f} updates"
            )
            taken = "taken over" if self.statistics else "not taken over"
            lines.append(f"{taken}: the statistics of {self.optimizer.kind}{step}")
        return "\n".join(lines)


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    recipe: str | Path | None = None,
    asked: Mapping[str, Any] | None = None,
    corpus: Mapping[str, Any] | None = None,
    optimizer: str | Path | None = None,
) -> Imported:
    """Turn a checkpoint of the papers' code into a run folder.

    Args:
        path: the authors' file: `model.pt` of Transformer-XL, a checkpoint of adaptive-span, the
            file of AWD-LSTM's `--save`, `best_model.pt` or `latest_model.pt` of lmtool.
        out: a new folder for the run.
        recipe: a recipe whose text, training and evaluation the run shall have, and from which what
            the file does not say (ramp, dropout, ...) is taken; the model is the file's.
        asked: what the file does not say; see `workbench.originals.checkpoint.ASKED`.
        corpus: the text, as in a recipe; by default the published one with so many symbols.
        optimizer: the file of its optimizer, where that is another one (Transformer-XL, lmtool).
            Running statistics of Adam, Adagrad and SGD are taken over for a run that begins with
            `train: {start_from: <out>, start_optimizer: continued}`.

    Raises:
        HostileFile: the file names or does something that weights do not need; nothing was run.
        CheckpointError: it is torn, or is not what it says.
        UnknownOriginal: it holds no model of the four code bases, or one that was changed.
        ConfigError: an option does not fit, or `out` is in use.
    """
    base = load_recipe(recipe) if recipe is not None else None
    if base is not None and not isinstance(base, Recipe):
        raise ConfigError(f"recipe {base.name} is about no text; give one of a language model")
    name, value = Path(path).name, read(path)
    original = find(value, asked)
    config = _model_config(original, base, asked)
    plan = _plan(original, config, base, corpus, name)
    folder = RunFolder(out)
    if folder.exists():
        raise ConfigError(f"out: {folder.path} holds a run already; give a new folder")
    folder.check(plan)
    model = rebuild(original, config, name)
    symbols = plan.data.n_symbols
    if symbols not in (None, original.vocab_size):
        raise ConfigError(
            f"{name} knows {original.vocab_size} symbols, but {plan.data.dataset} has {symbols}; "
            "give its own text as corpus"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    layout = Layout.of(original)
    layout.write(folder)
    moving = find_optimizer(value if optimizer is None else read(optimizer))
    names = [name for name, _ in model.named_parameters()]
    kept = statistics(original, moving, names) if moving else None
    state = {"optimizer": {"state": kept or {}}}
    sha256, told = recipe_sha256(plan), dump(plan)
    checkpoint.save(folder.checkpoints, 0, model, state, recipe_sha256=sha256, recipe=told)
    folder.begin(plan, describe(torch.device("cpu"), {"name": plan.data.dataset}))
    folder.set_status("done", 0, plan.train.steps, f"imported from {name}")
    said = base.name if base is not None and config is base.model else None
    return Imported(folder, original, moving, said, bool(kept))


def import_published(name: str, out: str | Path, *, url: str | None = None) -> Imported:
    """A checkpoint that its authors published, as a run folder with its experiment's recipe.

    Args:
        name: see `workbench.originals.published.CHECKPOINTS`.
        out: a new folder for the run.
        url: see `workbench.originals.published.fetch`.

    Raises:
        DataMissing, DataError: the file is not to be had, or is another one than before.
        and whatever `import_checkpoint` raises.
    """
    path = fetch(name, url)
    return import_checkpoint(path, out, recipe=CHECKPOINTS[name])


def _model_config(
    original: Original, base: Recipe | None, asked: Mapping[str, Any] | None
) -> ModelConfig:
    """The file's model; where the file does not say all of it, the recipe's, if one is given."""
    if base is None or not original.asked or original.codebase != ADAPTIVE_SPAN:
        return load(ModelConfig, original.model_config(), "model")
    if asked:
        raise ConfigError(
            f"the recipe {base.name} says {', '.join(asked)} too; give the recipe, or the options"
        )
    return base.model


def _plan(
    original: Original,
    config: ModelConfig,
    base: Recipe | None,
    corpus: Mapping[str, Any] | None,
    name: str,
) -> Recipe:
    """The recipe of the run: the model, and around it what is known of text and measurement."""
    notes = f"Weights imported from {name}, written by the authors' {original.codebase} code."
    if base is not None:
        data = {**dump(base), "model": dump(config)}
        data["source"]["notes"] = f"{data['source']['notes']} {notes}".strip()
        if corpus:
            data["data"]["corpus"] = corpus
        return load(Recipe, data)
    for key, value in original.asked.items():
        notes += f" {key}: {value!r}, which the file does not say."
    carry = original.asked.get("carry") or ("keep" if original.remembers else "reset")
    average = {ADAPTIVE_SPAN: "of_blocks", AWD_LSTM: "over_tokens"}.get(original.codebase, "exact")
    text = corpus or _corpus(original)
    length = {"segment_len": original.segment_len, "batch_size": 10}
    data = {
        "name": f"imported-{original.codebase}",
        "about": f"A model of the {original.codebase} code with its weights, from {name}.",
        "source": {
            "paper": PAPERS[original.codebase],
            "notes": f"{notes} How it was trained is not in the file either: train says nothing.",
        },
        "data": {"corpus": text, **length},
        "model": dump(config),
        "train": {"steps": 1, "optimizer": {"kind": "adam", "lr": 2.5e-4}, "carry": carry},
        "eval": {"method": "streams", **length, "carry": carry, "average": average},
    }
    return load(Recipe, data)


def _corpus(original: Original) -> dict[str, Any]:
    """The published text with so many symbols; where there is none, a name for what is missing."""
    rule = RULES.get(original.codebase, original.codebase)
    for (name, whose), n_symbols in registry.symbols().items():
        if whose == rule and n_symbols == original.vocab_size:
            return {"kind": "published", "name": name, "rule": rule}
    return {"kind": "text", "path": NO_TEXT.format(original.vocab_size), "level": "word"}


@dataclass(frozen=True)
class Layout:
    """How an original's state dict looks: what an export repeats.

    Attributes:
        codebase: see `workbench.originals.checkpoint.MODULES`.
        ctor: the original constructor's arguments.
        prefix: of every name.
        tensors: by name, `shape` and `dtype`, and for a tied one `same_as`, the name of the first.
        buffers: the values of those that are no parameters.
    """

    codebase: str
    ctor: dict[str, Any]
    prefix: str
    tensors: dict[str, dict[str, Any]]
    buffers: dict[str, Tensor]

    @classmethod
    def of(cls, original: Original) -> Layout:
        """The layout of a checkpoint that was found."""
        aliases = original.aliases()
        tensors: dict[str, dict[str, Any]] = {}
        for name, value in original.tensors.items():
            dtype = str(value.dtype).removeprefix("torch.")
            tensors[name] = {"shape": list(value.shape), "dtype": dtype}
            if name in aliases:
                tensors[name]["same_as"] = aliases[name]
        buffers = {name: original.tensors[name].contiguous() for name in original.buffers}
        return cls(original.codebase, original.ctor, original.prefix, tensors, buffers)

    @classmethod
    def at(cls, place: str | Path) -> Layout:
        """The layout of a run that was imported, or of a checkpoint of the papers' code.

        Raises:
            ConfigError: the run was not imported.
            CheckpointError, UnknownOriginal: the file is no such checkpoint.
        """
        folder = RunFolder(place)
        if not folder.exists():
            return cls.of(find(read(place)))
        if not (folder.path / LAYOUT).is_file():
            raise ConfigError(
                f"{folder.path} was not imported: the original's names and shapes are not known. "
                "Give as `like` a checkpoint of the same sizes from the original code, or a run "
                "imported from one"
            )
        told = json.loads((folder.path / LAYOUT).read_text("utf-8"))
        return cls(**told, buffers=safetensors.torch.load_file(folder.path / BUFFERS))

    def write(self, folder: RunFolder) -> None:
        told = {k: v for k, v in vars(self).items() if k != "buffers"}
        folder.artefact(LAYOUT).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        folder.artefact(BUFFERS).write_bytes(
            safetensors.torch.save({k: v.clone() for k, v in self.buffers.items()})
        )


def export_state_dict(model: LanguageModel, layout: Layout) -> dict[str, Tensor]:
    """Our model's numbers under the original's names, in its order.

    Tied tensors stand under all their names, buffers are there. AWD-LSTM's names begin with
    `model/` or `criterion/`.

    Raises:
        ConfigError: this is another model than the layout's.
    """
    links = MODULES[layout.codebase].links(layout.ctor)
    shapes = {name: torch.Size(about["shape"]) for name, about in layout.tensors.items()}
    ours = {name: p.detach().cpu() for name, p in model.named_parameters()}
    try:
        values = in_their_layout(ours, links, shapes)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"the model is not that of the given {layout.codebase} layout ({error}); give a "
            "checkpoint of the same sizes"
        ) from None
    if odd := sorted(ours.keys() - {name for link in links for name in link.ours}):
        raise ConfigError(f"the {layout.codebase} layout has no place for {odd[:4]}")
    result = {}
    for name, about in layout.tensors.items():
        first = about.get("same_as", name)
        value = layout.buffers[name] if name in layout.buffers else values[first]
        result[f"{layout.prefix}{name}"] = value.to(getattr(torch, about["dtype"]))
    return result


def export_checkpoint(
    run: str | Path, path: str | Path, *, which: str = "last", like: str | Path | None = None
) -> None:
    """Write a run's weights for the original code: `load_state_dict(torch.load(path))`.

    For AWD-LSTM the file holds `{"model": state dict, "criterion": state dict}`.

    Args:
        run: a run folder.
        path: the file to write.
        which: "last", or "best" by validation loss.
        like: a checkpoint of the original code with the same sizes, or a run that was imported from
            one; by default the run itself, which then must have been imported.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the file to write")
    layout = Layout.at(like if like is not None else run)
    model = RunFolder(run).load_model(which)
    if not isinstance(model, LanguageModel):
        raise ConfigError(f"{run} holds no language model, and the originals' models are such")
    flat = export_state_dict(model, layout)
    parts: dict[str, Any] = {}
    for name, value in flat.items():
        part, _, rest = name.rpartition("/")
        (parts.setdefault(part, {}) if part else parts)[rest] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parts, path)
