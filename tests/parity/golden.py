"""Golden files and the comparison rule that all of them share.

A file holds inputs, original parameters (`param/`), outputs (`out/`) and gradients (`grad/`), made
by the papers' code. Nothing here knows a code base. The rule, per array:

    out:   max|x - y| <= tolerance * max(1, max|y|); integers are equal
    grad:  max|x - y| <= tolerance * max(max|y|, 1e-3 * largest gradient of the group)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.errors import UnknownOriginal, Unsupported

# what the file's meta says is not understood; is understood and missing in the workbench
Unknown, NotBuilt = UnknownOriginal, Unsupported


class OnlyABug(Exception):
    """A file in which nothing is left to compare: it records what the original gets wrong."""


class Golden:
    """One `.npz` file, read without pickle."""

    needs: tuple[str, ...] = ("codebase", "ctor", "recommended_tolerance")

    def __init__(self, path: Path):
        self.path, self.name = path, path.stem
        if path.suffix != ".npz":
            raise Unknown(f"{path.name}: expected a golden file (.npz)")
        with np.load(path, allow_pickle=False) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        if "meta" not in self.arrays:
            raise Unknown(f"{path.name}: there is no array `meta`, so it is no golden file")
        self.meta: dict[str, Any] = json.loads(str(self.arrays.pop("meta")))
        self.meta = {"tied": {}, "buffers": [], **self.meta}
        for field in self.needs:
            if field not in self.meta:
                raise Unknown(f"{path.name}: meta lacks `{field}`")

    @property
    def ctor(self) -> dict[str, Any]:
        """The original constructor's arguments."""
        return self.meta["ctor"]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.arrays if key.startswith(prefix)]

    def tensor(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """An array as a tensor; `dtype` None keeps the stored one."""
        value = torch.from_numpy(np.array(self.arrays[key]))
        return value if dtype is None else value.to(dtype)

    def parameters(self) -> dict[str, Tensor]:
        """Original name -> value: no buffers, and a shared tensor only under its first name."""
        left_out = {*self.meta["buffers"], *self.meta["tied"]}
        names = [key.removeprefix("param/") for key in self.keys("param/")]
        return {name: self.tensor(f"param/{name}") for name in names if name not in left_out}

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each of `parameters`."""
        return {name: value.shape for name, value in self.parameters().items()}

    def n_segments(self, stream: str = "main") -> int:
        """How many segments `input/<stream>/` has."""
        return sum(1 for _ in self.segments(stream))

    def segments(self, stream: str) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(number, tokens, targets) of `input/<stream>/`, in the file's own layout."""
        i = 0
        while f"input/{stream}/seg{i}/data" in self:
            at = f"input/{stream}/seg{i}"
            yield i, self.tensor(f"{at}/data"), self.tensor(f"{at}/target")
            i += 1
        if i == 0:
            raise Unknown(f"{self.name}: there is no input stream `{stream}`")


class Deviation(NamedTuple):
    """How far one array is off, as a share of its scale."""

    key: str
    kind: str
    share: float
    tolerance: float

    @property
    def fine(self) -> bool:
        return self.share <= self.tolerance  # NaN is not

    @property
    def used(self) -> float:
        """The share of the tolerance that is used up; infinite where none was granted."""
        if not self.tolerance:
            return 0.0 if self.share == 0 else math.inf
        return self.share / self.tolerance


class Comparison:
    """Collects the deviations of one run over a file; `finish` makes sure that none was left out.

    Args:
        golden: the expected arrays.
        precision: what the run computed in, for messages.
    """

    def __init__(self, golden: Golden, precision: str = "float32"):
        self.golden, self.precision = golden, precision
        self.deviations: list[Deviation] = []
        self.left_out: dict[str, str] = {}
        self._done: set[str] = set()

    def out(self, key: str, got: Tensor | float) -> None:
        """Compare an output; `key` is its full name in the file."""
        want = self._want(key, got)
        kind = "out"
        if any(fnmatch(key, pattern) for pattern in self.golden.meta.get("ill_conditioned", [])):
            kind = "out:ill_conditioned"
        self._record(key, kind, got, want, scale=max(1.0, float(np.abs(want).max())))

    def also(self, key: str, got: Tensor | float) -> None:
        """Compare an output that not every file has."""
        if key in self.golden:
            self.out(key, got)

    def grad(self, group: str, name: str, got: Tensor, kind: str = "grad") -> None:
        """Compare the gradient `<group>/<name>`; `kind` names its tolerance."""
        key = f"{group}/{name}"
        want = self._want(key, got)
        arrays = self.golden.arrays
        largest = max(float(np.abs(arrays[k]).max()) for k in self.golden.keys(f"{group}/"))
        scale = max(float(np.abs(want).max()), 1e-3 * largest)
        self._record(key, kind, got, want, scale)

    def leave_out(self, pattern: str, why: str) -> None:
        """Do not compare arrays whose names match; the report says `why`."""
        matching = [key for key in self.golden.arrays if fnmatch(key, pattern)]
        if not matching:
            raise Unknown(f"{self.golden.name}: nothing matches '{pattern}' ({why})")
        self._done.update(matching)
        self.left_out[pattern] = why

    def finish(self) -> list[Deviation]:
        """All deviations.

        Raises:
            AssertionError: an array is off, or one was never compared.
            OnlyABug: all arrays were left out, with reasons.
        """
        expected = [k for p in ("out/", "grad", "extra/grad") for k in self.golden.keys(p)]
        missed = [key for key in expected if key not in self._done]
        assert not missed, f"{self.golden.name}: {len(missed)} arrays not compared: {missed[:5]}"
        if self.left_out and not self.deviations:
            raise OnlyABug("; ".join(self.left_out.values()))
        assert self.deviations, f"{self.golden.name}: nothing was compared"
        off = [d for d in self.deviations if not d.fine]
        lines = [
            f"{d.key}: off by {d.share:.2e} of its scale, tolerance {d.tolerance:.1e}" for d in off
        ]
        assert not off, (
            f"{self.golden.name} in {self.precision}: {len(off)} of {len(self.deviations)} arrays "
            "differ:\n" + "\n".join(lines[:12])
        )
        return self.deviations

    def _want(self, key: str, got: Tensor | float) -> np.ndarray:
        if key not in self.golden:
            raise Unknown(f"{self.golden.name}: there is no array '{key}' to compare with")
        want = self.golden.arrays[key]
        shape = tuple(got.shape) if isinstance(got, Tensor) else ()
        assert shape == want.shape, f"{self.golden.name} {key}: shape {shape}, want {want.shape}"
        return want.astype(np.float64)

    def _record(
        self, key: str, kind: str, got: Tensor | float, want: np.ndarray, scale: float
    ) -> None:
        value = got.detach().double().numpy() if isinstance(got, Tensor) else np.float64(got)
        share = float(np.abs(value - want).max()) / scale if want.size else 0.0
        exact = np.issubdtype(self.golden.arrays[key].dtype, np.integer)
        tolerance = 0.0 if exact else self.golden.meta["recommended_tolerance"][kind]
        self.deviations.append(Deviation(key, kind, share, tolerance))
        self._done.add(key)
