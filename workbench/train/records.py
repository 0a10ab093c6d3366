"""Records: what a run says about itself, one line of JSON each. Units are in the names."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """Training since the record before."""

    kind: ClassVar[str] = "train"
    step: int
    """Updates done."""
    tokens: int
    """Targets scored so far."""
    loss_nats: float
    """Mean over the tokens since the record before, without penalties."""
    penalties: dict[str, float] = field(default_factory=dict)
    """Mean of each named term that the objective added, nats per token."""
    lr: float
    """Rate of the last update."""
    grad_norm: float
    """Of the last update that was made, before clipping."""
    tokens_per_s: float
    """Training alone, without validation and checkpoints."""
    elapsed_s: float
    """On the clock over all sessions of this run."""
    memory_bytes: int
    """Held by the carry."""
    readings: dict[str, list[list[float]]] = field(default_factory=dict)
    """What the mixers report, such as the span of each head of each layer."""
    backends: dict[str, str] = field(default_factory=dict)
    """Which implementation of each op ran."""
    precision: str = "fp32"
    """Of matrix products: `fp32`, `bf16` or `fp16`."""
    compiled: bool = False
    """Whether `torch.compile`'s code ran."""
    processes: int = 1
    """That trained together."""
    param_norm: float | None = None
    """Norm of all trainable weights after the last update, not of their averages. This and what
    follows is null where a record is from before they were told."""
    loss_scale: float | None = None
    """What the next loss is multiplied by under fp16; null under other precisions."""
    skipped: int | None = None
    """Updates since the record before that were left out: an overflow of fp16, or a loss or
    gradient that was not finite (`train.on_nonfinite`). Where all were, there is no record."""
    peak_bytes: int | None = None
    """Most memory that was held at once: on a GPU by PyTorch's tensors since the record before; on
    a CPU by the whole process since its start. Of several processes the one that held most."""


@dataclass(frozen=True, kw_only=True)
class EvalRecord:
    """One validation."""

    kind: ClassVar[str] = "eval"
    step: int
    split: str
    loss_nats: float
    """Mean over the tokens scored."""
    tokens: int
    """Tokens scored."""
    method: str
    context_len: int | None
    settings: str = ""
    """The method with everything that changes its result."""
    averaged_from: int | None = None
    """Updates done before the weights whose average was validated; null where none were."""
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """A checkpoint that is safely on disk."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str
    """Relative to the run folder."""
    bytes: int
    best: bool
    """Best validation loss so far."""
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class DoneRecord:
    """The end of a session, with the reason."""

    kind: ClassVar[str] = "done"
    step: int
    reason: str
    """`steps` (all done), `time` (max_seconds), `interrupted`, or what `stop` says: `loss`,
    `patience`, `nonmono`."""
    elapsed_s: float = 0.0


Record = TrainRecord | EvalRecord | CheckpointRecord | DoneRecord
_KINDS: dict[str, type[Any]] = {
    r.kind: r for r in (TrainRecord, EvalRecord, CheckpointRecord, DoneRecord)
}


def to_json(record: Record) -> str:
    """One line without its end, `kind` first. NaN and infinities, which JSON lacks, become null."""
    return json.dumps({"kind": record.kind, **_plain(asdict(record))}, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(line: str) -> Record:
    """The record of a line written by `to_json`.

    Raises:
        ValueError: the line is no record; says what is wrong with it.
    """
    row = json.loads(line)
    kind = row.pop("kind", None) if isinstance(row, dict) else None
    if kind not in _KINDS:
        raise ValueError(f"expected a record of kind {', '.join(_KINDS)}, got {line[:80]!r}")
    names = {f.name for f in fields(_KINDS[kind])}
    if row.keys() - names:
        raise ValueError(
            f"a {kind} record has no {sorted(row.keys() - names)}; it has {sorted(names)}"
        )
    try:
        record: Record = _KINDS[kind](**row)
    except TypeError as error:
        raise ValueError(f"incomplete {kind} record: {error}") from None
    return record
