"""The optimizer's state in a checkpoint of the papers' code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from workbench.errors import CheckpointError
from workbench.originals.names import Shell
from workbench.originals.shells import same_tensor

if TYPE_CHECKING:
    from workbench.originals.checkpoint import Original


@dataclass(frozen=True)
class FoundOptimizer:
    """An optimizer as the authors' program wrote it."""

    kind: str
    """as the file says or its state tells: adam, adagrad, asgd, sgd"""
    groups: tuple[dict[str, Any], ...]
    """settings of each group of parameters"""
    n_parameters: tuple[int, ...]
    """tensors in each group"""
    state_keys: frozenset[str]
    step: float | None
    """updates made"""
    entries: tuple[dict[str, Any], ...]
    """the state of every parameter, in the optimizer's order; empty where it has none"""
    parameters: tuple[Any, ...]
    """in the same order: the parameters themselves, or their numbers"""


def find_optimizer(value: Any) -> FoundOptimizer | None:
    """The optimizer in what `reader.read` returned; None where there is none."""
    for candidate in _optimizers(value):
        kind, state = "", candidate
        if isinstance(candidate, Shell):
            kind, state = candidate.path.rpartition(".")[2].lower(), candidate.state
        if isinstance(state, dict) and {"state", "param_groups"} <= set(state):
            return _optimizer(kind, state)
    return None


def _optimizers(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict):
        yield from (value[k] for k in ("optimizer", "optimizer_state_dict") if k in value)
    elif isinstance(value, list):
        yield from value


def _optimizer(kind: str, value: Mapping[str, Any]) -> FoundOptimizer:
    states, groups = value["state"], value["param_groups"]
    if not (isinstance(states, dict) and isinstance(groups, list | tuple)):
        raise CheckpointError("the checkpoint's optimizer has no state or groups")
    if not all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups):
        raise CheckpointError("the checkpoint's optimizer has no state or groups")
    entries = [entry for entry in states.values() if isinstance(entry, dict)]
    keys = frozenset(key for entry in entries for key in entry)
    kinds = {"exp_avg": "adam", "ax": "asgd", "sum": "adagrad"}
    parameters = [p for g in groups for p in g.get("params", ())]
    steps = [_number(entry["step"]) for entry in entries if "step" in entry]
    return FoundOptimizer(
        kind=kind or next((kinds[k] for k in kinds if k in keys), "sgd"),
        groups=tuple({k: v for k, v in g.items() if k != "params"} for g in groups),
        n_parameters=tuple(len(g.get("params", ())) for g in groups),
        state_keys=keys,
        step=max(steps, default=None),
        entries=tuple(_entry(states, p) for p in parameters),
        parameters=tuple(parameters),
    )


def _number(value: Any) -> float:
    if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    raise CheckpointError(f"the checkpoint's optimizer counts with a {type(value).__name__}")


def _entry(states: Mapping[Any, Any], parameter: Any) -> dict[str, Any]:
    if not isinstance(parameter, int | Tensor):
        raise CheckpointError("the checkpoint's optimizer has parameters that are none")
    entry = states.get(parameter, {})
    return entry if isinstance(entry, dict) else {}


def statistics(
    original: Original, found: FoundOptimizer, names: Sequence[str]
) -> dict[int, dict[str, Any]] | None:
    """The optimizer's running statistics, rearranged for our parameters.

    Args:
        original: the model that it trained.
        found: Adam, Adagrad or SGD; averaged SGD keeps more than statistics.
        names: our parameters, in our optimizer's order.

    Returns:
        as a PyTorch optimizer's `state_dict()["state"]`; None where they do not map.
    """
    order = _order(original, found)
    if found.kind == "asgd" or len(order) != len(found.entries):
        return None
    theirs = dict(zip(order, found.entries, strict=True))
    ours: dict[int, dict[str, Any]] = {}
    for link in original.links():
        entries = [theirs.get(name, {}) for name in link.theirs]
        if len({frozenset(entry) for entry in entries}) != 1:
            return None
        for key in entries[0]:
            values = [entry[key] for entry in entries]
            shapes = [original.tensors[name].shape for name in link.theirs]
            if [getattr(v, "shape", None) for v in values] == shapes:
                new: Sequence[Any] = link.convert(values)
            elif len({_number(v) for v in values}) == 1:
                # the number of updates
                new = [values[0]] * len(link.ours)
            else:
                return None
            for name, value in zip(link.ours, new, strict=True):
                ours.setdefault(names.index(name), {})[key] = value
    return ours


def _order(original: Original, found: FoundOptimizer) -> list[str]:
    """The names of an optimizer's parameters: told by identity, else by the model's order."""
    aliases = original.aliases()
    own = [n for n in original.tensors if n not in original.buffers]
    if any(isinstance(p, Tensor) for p in found.parameters):
        names = [
            next((n for n in own if same_tensor(original.tensors[n], p)), "")
            for p in found.parameters
        ]
        return [aliases.get(name, name) for name in names]
    # a tied one counts where it comes first
    return list(dict.fromkeys(aliases.get(name, name) for name in own))
