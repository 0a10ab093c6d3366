"""Checkpoints: everything that an exact continuation needs, safe against a stop at any moment.

A checkpoint is a folder `step-0000500` with `weights.safetensors`, `state.pt` (tensors and plain
numbers only, read with `weights_only`) and `manifest.json` (sizes and sha256 of both, the recipe,
the versions of the software that wrote it). It is written beside its place, flushed to disk and
renamed, so that a checkpoint is whole or not there. Damage done later (a full disk's copy, a
flipped bit) is found when it is read. One of the same step that was there before is
`step-0000500.before` until the new one has its place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from workbench.errors import CheckpointError
from workbench.train import storage
from workbench.train.environment import versions
from workbench.train.records import CheckpointRecord

log = logging.getLogger("workbench")

FORMAT = 1
WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
BEFORE, PARTIAL = ".before", ".partial-"


class Storable(Protocol):
    """A model, or what stands for one whose weights are elsewhere."""

    @property
    def vocab_size(self) -> int: ...
    def state_dict(self) -> Mapping[str, Tensor]: ...
    def load_state_dict(self, weights: Mapping[str, Tensor], /) -> Any: ...


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder whose manifest has been read."""

    path: Path
    step: int
    valid_nats: float | None
    """Validation loss of exactly these weights, if they were validated."""
    manifest: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def record(self, run: Path, best_nats: float | None, elapsed_s: float) -> CheckpointRecord:
        """What a run says of it: its folder, the best validation so far, its clock."""
        return CheckpointRecord(
            step=self.step,
            path=self.path.with_suffix("").relative_to(run).as_posix(),
            bytes=self.nbytes,
            best=self.valid_nats is not None and self.valid_nats == best_nats,
            elapsed_s=elapsed_s,
        )


def digest(data: str | bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def save(
    folder: Path,
    step: int,
    model: Storable,
    state: Mapping[str, Any],
    *,
    recipe_sha256: str,
    recipe: Mapping[str, Any] | None = None,
    valid_nats: float | None = None,
) -> Checkpoint:
    """Write a checkpoint; when this returns it is on the disk, whole.

    Args:
        folder: `checkpoints` of the run folder.
        step: updates done.
        model: its parameters and buffers; a tensor under several names is stored once.
        state: nested dicts and lists of tensors, numbers, text, booleans and None.
        recipe_sha256: of the recipe these weights belong to.
        recipe: that recipe as plain data.
        valid_nats: validation loss of these weights, if known.

    Raises:
        CannotWrite: the disk is full or read-only; what was there is untouched, nothing is left.
    """
    final = folder / f"step-{step:07d}"
    partial = folder / f"{PARTIAL}{final.name}-{os.getpid()}"
    weights, aliases = _unshared(model.state_dict())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "valid_nats": valid_nats,
        "recipe_sha256": recipe_sha256,
        "recipe": json.loads(json.dumps(recipe)),
        "versions": versions(),
        "vocab_size": model.vocab_size,
        "aliases": aliases,
    }
    what = f"the checkpoint of step {step}"
    needed_bytes = storage.tensor_bytes([weights, state]) + storage.SPARE_BYTES
    with storage.writing(what, folder):
        if not folder.is_dir():
            folder.mkdir(parents=True)
            storage.flush(folder.parent)
        _tidy(folder)
    with storage.writing(what, folder, needed_bytes):
        try:
            _fill(partial, weights, state, manifest)
            _put(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return Checkpoint(final, step, valid_nats, manifest)


def _fill(
    partial: Path, weights: dict[str, Tensor], state: Mapping[str, Any], manifest: dict[str, Any]
) -> None:
    """Write the three files, the manifest completed by what the others hold, and flush them."""
    partial.mkdir()
    # save_file would make it readable for its owner only
    (partial / WEIGHTS).write_bytes(safetensors.torch.save(weights))
    with (partial / STATE).open("wb") as file:
        torch.save(dict(state), file)
    manifest["files"] = {name: _fingerprint(partial / name) for name in (WEIGHTS, STATE)}
    manifest["sha256"] = digest(json.dumps(manifest, sort_keys=True))
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for name in (WEIGHTS, STATE, MANIFEST, "."):
        storage.flush(partial / name)


def _put(partial: Path, final: Path) -> None:
    """Give a checkpoint its place; at every moment it or the one before is there by its name."""
    before = final.with_name(final.name + BEFORE)
    if final.exists():
        # of the same step: damaged, or saved before the step was validated
        os.replace(final, before)
    os.replace(partial, final)
    storage.flush(final.parent)
    if before.exists():
        _delete(before)


def _tidy(folder: Path) -> None:
    """Clear away what a process left that was killed while it wrote or deleted."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path)
    for before in folder.glob(f"step-*{BEFORE}"):
        final = before.with_suffix("")
        if final.exists():
            _delete(before)
        else:
            os.replace(before, final)


def _delete(path: Path) -> None:
    """Delete a checkpoint, which is whole until it has lost its name."""
    if not path.is_dir():
        path.unlink()
        return
    leaving = path.with_name(f"{PARTIAL}{path.name}")
    os.replace(path, leaving)
    shutil.rmtree(leaving)


def _unshared(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each storage once, and the names of the others: safetensors refuses shared storage."""
    weights: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    owners: dict[tuple[Any, ...], str] = {}
    for name, tensor in named.items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        owner = owners.setdefault(identity, name) if tensor.numel() else name
        if owner == name:
            weights[name] = tensor.detach().cpu().contiguous().clone()
        else:
            aliases[name] = owner
    return weights, aliases


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def read(path: Path) -> Checkpoint:
    """A checkpoint by its manifest alone, which is checked.

    Raises:
        CheckpointError: it is missing, torn or altered.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected = manifest.pop("sha256")
        got = digest(json.dumps(manifest, sort_keys=True))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path.name}: {MANIFEST} cannot be read ({error!r})") from None
    if got != expected:
        raise CheckpointError(f"{path.name}: {MANIFEST} was altered after it was written")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path.name}: got checkpoint format {manifest['format']}, this version reads {FORMAT}"
        )
    return Checkpoint(path, manifest["step"], manifest["valid_nats"], manifest)


def verify(path: Path) -> Checkpoint:
    """Read a checkpoint's manifest and compare both files with it.

    Raises:
        CheckpointError: something is missing, torn or altered; says what.
    """
    checkpoint = read(path)
    for name, expected in checkpoint.manifest["files"].items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path.name}: {name} is missing")
        try:
            got = _fingerprint(path / name)
        except OSError as error:
            raise CheckpointError(f"{path.name}: {name} cannot be read ({error})") from None
        if got["bytes"] != expected["bytes"]:
            raise CheckpointError(
                f"{path.name}: {name} has {got['bytes']} bytes, expected {expected['bytes']}"
            )
        if got["sha256"] != expected["sha256"]:
            raise CheckpointError(f"{path.name}: {name} was altered (its sha256 differs)")
    return checkpoint


def folders(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first, whole or not."""
    found = folder.glob("step-*") if folder.is_dir() else ()
    return sorted(found, key=lambda p: (p.stem, p.suffix != BEFORE), reverse=True)


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; None where there are none at all.

    A damaged one is passed over with a warning that says so.

    Raises:
        CheckpointError: there are checkpoints and all are damaged.
    """
    faults = []
    for path in folders(folder):
        try:
            found = verify(path)
        except CheckpointError as error:
            faults.append(str(error))
            log.warning("passing over a damaged checkpoint, using the one before: %s", error)
            continue
        return found
    if not faults:
        return None
    raise CheckpointError(
        f"every checkpoint in {folder} is damaged:\n  "
        + "\n  ".join(faults)
        + "\nPut back a copy, or delete the run folder to begin again"
    )


def best(folder: Path) -> Checkpoint | None:
    """The whole checkpoint with the lowest validation loss; None where none was validated."""
    validated = [c for c in _readable(folder) if c.valid_nats is not None]
    for candidate in sorted(validated, key=lambda c: (c.valid_nats, c.step)):
        try:
            return verify(candidate.path)
        except CheckpointError as error:
            log.warning("passing over a damaged checkpoint, using the next best: %s", error)
    return None


def _readable(folder: Path) -> list[Checkpoint]:
    """Newest first, those whose manifest can be read."""
    found = []
    for path in folders(folder):
        try:
            found.append(read(path))
        except CheckpointError as error:
            log.warning("passing over a damaged checkpoint: %s", error)
    return found


def prune(folder: Path, keep: int, keep_every: int | None = None) -> None:
    """Delete all checkpoints but the newest and the best one.

    Args:
        folder: `checkpoints` of the run folder.
        keep: how many of the newest stay.
        keep_every: those of every so many-th update stay too.

    Raises:
        CannotWrite: the folder has become read-only.
    """
    readable = _readable(folder)
    validated = [c for c in readable if c.valid_nats is not None]
    spared = {c.path for c in readable[:keep]}
    spared |= {c.path for c in sorted(validated, key=lambda c: (c.valid_nats, c.step))[:1]}
    spared |= {c.path for c in readable if keep_every and c.step % keep_every == 0}
    with storage.writing("(delete old checkpoints)", folder):
        for path in folders(folder):
            if path not in spared:
                _delete(path)


def load_weights(checkpoint: Checkpoint, model: Storable) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        CheckpointError: they are those of another model; names the first difference.
    """
    try:
        weights = safetensors.torch.load_file(checkpoint.path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{checkpoint.path}: {WEIGHTS} cannot be read ({error})") from None
    for alias, owner in checkpoint.manifest["aliases"].items():
        weights[alias] = weights[owner]
    expected = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    got = {name: tuple(x.shape) for name, x in weights.items()}
    if got != expected:
        name = min(n for n in got.keys() | expected.keys() if got.get(n) != expected.get(n))
        raise CheckpointError(
            f"{checkpoint.path}: these are the weights of another model: '{name}' has shape "
            f"{got.get(name, 'none')} in the file, {expected.get(name, 'none')} in the model. "
            "Use the recipe that the weights were trained with"
        )
    model.load_state_dict(weights)


def compare_versions(checkpoint: Checkpoint) -> None:
    """Warn where another PyTorch wrote a checkpoint that is about to be continued."""
    theirs, ours = checkpoint.manifest.get("versions", {}).get("torch"), versions()["torch"]
    # none: from before versions were written down
    if theirs not in (None, ours):
        log.warning(
            "%s was written with torch %s, this is torch %s: the run goes on, but it is not "
            "promised to be bit for bit what it would have been",
            checkpoint.path.name, theirs, ours,
        )  # fmt: skip


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The part of a checkpoint that is not weights, on the CPU.

    Raises:
        CheckpointError: the file holds something else than tensors and plain values.
    """
    try:
        state = torch.load(checkpoint.path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file makes the reader say
        raise CheckpointError(f"{checkpoint.path}: {STATE} cannot be read ({error})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{checkpoint.path}: {STATE} holds no named values")
    return state
