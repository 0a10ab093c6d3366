"""The optimizer's state in a checkpoint of the papers' code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import CheckpointError
from workbench.originals.names import Shell


@dataclass(frozen=True)
class FoundOptimizer:
    """An optimizer's state, which is read, and not taken over."""

    kind: str
    """as the file says or its state tells: adam, adagrad, asgd, sgd"""
    groups: tuple[dict[str, Any], ...]
    """settings of each group of parameters"""
    n_parameters: tuple[int, ...]
    """tensors in each group"""
    state_keys: frozenset[str]
    step: float | None
    """updates made"""


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
    if not isinstance(states, dict) or not all(isinstance(g, dict) for g in groups):
        raise CheckpointError("the checkpoint's optimizer has no state or groups")
    entries = [entry for entry in states.values() if isinstance(entry, dict)]
    keys = frozenset(key for entry in entries for key in entry)
    kinds = {"exp_avg": "adam", "ax": "asgd", "sum": "adagrad"}
    steps = [float(entry["step"]) for entry in entries if "step" in entry]
    return FoundOptimizer(
        kind=kind or next((kinds[k] for k in kinds if k in keys), "sgd"),
        groups=tuple({k: v for k, v in g.items() if k != "params"} for g in groups),
        n_parameters=tuple(len(g.get("params", ())) for g in groups),
        state_keys=keys,
        step=max(steps, default=None),
    )
