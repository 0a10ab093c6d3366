"""Checkpoints that the papers' training scripts wrote, imported, and run on recorded tokens.

Beside them lie `*.expected.npz` with what the original models give. Nothing goes by a file's name:
an expectation lists its files, and what each file is follows from its contents.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.adaptive_span import compare_caches
from parity.fast_weight import compare_states as compare_fast_weights
from parity.golden import Comparison, Golden, Unknown
from parity.transformer_xl import compare_memories
from workbench.carry import Carry
from workbench.exchange import Layout, export_state_dict, import_checkpoint
from workbench.models.language_model import LanguageModel
from workbench.originals import fast_weight
from workbench.originals.checkpoint import ADAPTIVE_SPAN, FAST_WEIGHT, Original
from workbench.originals.optimizer import FoundOptimizer, find_optimizer
from workbench.originals.reader import read

EXPECTED = ".expected.npz"
OUT = 1e-5
"""the tolerance that is stated for these files"""


class Expected(Golden):
    """What the original model of one or several checkpoints computes."""

    needs = ("codebase", "files")

    def __init__(self, path: Path):
        super().__init__(path)
        self.meta.setdefault("recommended_tolerance", {"out": OUT})


def folder_of(golden: Path) -> Path:
    return golden / "checkpoints"


def files(golden: Path) -> list[Path]:
    """Everything beside the expectations."""
    folder = folder_of(golden)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        p
        for p in found
        if p.is_file() and not p.name.startswith((".", "README")) and not p.name.endswith(EXPECTED)
    ]


def expectation(path: Path) -> Expected:
    """The expectation that lists a checkpoint."""
    for candidate in sorted(path.parent.glob(f"*{EXPECTED}")):
        expected = Expected(candidate)
        if path.name in expected.meta["files"]:
            return expected
    raise Unknown(f"{path.name}: no {EXPECTED[1:]} beside it lists it")


def check(path: Path, scratch: Path) -> list[Comparison]:
    """Import a checkpoint and compare all that its expectation holds; an optimizer's is read.

    Raises:
        NotBuilt: it needs what the workbench lacks.
        Unknown: it is not understood.
        AssertionError: we compute something else.
    """
    expected, value = expectation(path), read(path)
    optimizer = find_optimizer(value)
    if optimizer is not None:
        check_optimizer(expected, optimizer)
    if isinstance(value, dict) and "model" not in value:
        check_scalars(expected, value)
        return []
    imported = import_checkpoint(path, scratch / "run", asked=asked(expected))
    model = imported.folder.load_model()
    assert isinstance(model, LanguageModel)
    check_parameters(expected, export_state_dict(model, Layout.at(scratch / "run")))
    comparisons = []
    for dtype in (torch.float32, torch.float64):
        compare = Comparison(expected, str(dtype).removeprefix("torch."))
        run(model.to(dtype), imported.original, compare)
        compare.finish()
        comparisons.append(compare)
    return comparisons


def asked(expected: Expected) -> dict[str, Any]:
    """What the file does not say, as the makers of the expectation knew it."""
    if "carry_over_fast_weight" in expected.meta:
        return {"carry": "keep" if expected.meta["carry_over_fast_weight"] else "reset"}
    if "adapt_span_params" not in expected.meta.get("ctor", {}):
        return {}
    span, sizes = expected.ctor["adapt_span_params"], expected.ctor["model_params"]
    return {
        "ramp": span["adapt_span_ramp"],
        "span_loss": span["adapt_span_loss"],
        "span_init": span["adapt_span_init"],
        "span_cache": span["adapt_span_cache"],
        **{name: sizes[name] for name in ("block_size", "dropout", "emb_dropout")},
    }


def check_parameters(expected: Expected, exported: dict[str, torch.Tensor]) -> None:
    """The way back gives the original state dict, bit for bit, tied tensors and buffers too."""
    want = {key.removeprefix("param/"): expected.arrays[key] for key in expected.keys("param/")}
    odd = sorted(want.keys() ^ exported.keys())
    assert not odd, f"{expected.name}: only one side has {odd}"
    for name, value in want.items():
        assert np.array_equal(exported[name].numpy(), value), f"{expected.name}: {name} differs"


def run(model: LanguageModel, original: Original, compare: Comparison) -> None:
    """The recorded tokens, segment by segment, as the original's evaluation feeds them."""
    expected, carry = compare.golden, None
    carried = original.asked.get("carry") == "keep" or original.remembers
    time_first = original.codebase != ADAPTIVE_SPAN
    for i, data, target in expected.segments("main"):
        at = f"out/eval/seg{i}"
        tokens_BT, targets_BT = (x.t() if time_first else x for x in (data, target))
        if carry is None or not carried:
            carry = model.initial_carry(len(tokens_BT))
        with torch.no_grad():
            nll_BT, carry = model.nll(tokens_BT, targets_BT, carry)
        compare.out(f"{at}/nll", nll_BT.t() if time_first else nll_BT)
        if f"{at}/loss" in expected:
            compare.out(f"{at}/loss", nll_BT.mean())
        compare_states(original)(compare, at, carry)


def compare_states(original: Original) -> Callable[[Comparison, str, Carry], None]:
    """What compares a code base's memories, caches or fast weights, where some are recorded."""
    if original.codebase == ADAPTIVE_SPAN:
        return compare_caches
    if original.codebase == FAST_WEIGHT and not fast_weight.is_attention(original.ctor):
        return compare_fast_weights
    return compare_memories


def check_optimizer(expected: Expected, found: FoundOptimizer) -> None:
    """What is recorded of an optimizer: kind, settings, state, updates."""
    want = expected.meta.get("optimizer")
    if want is None:
        return
    assert list(found.n_parameters) == want["n_params"]
    for group, recorded in zip(found.groups, want["param_groups"], strict=True):
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in group.items()} == recorded
    assert sorted(found.state_keys) == want["state_keys"]
    assert found.step == want["step"]
    assert want.get("type", found.kind).lower() == found.kind


def check_scalars(expected: Expected, value: dict[str, Any]) -> None:
    """What is recorded of the plain numbers beside an optimizer's state."""
    for key, number in expected.meta.get("opt_file", {}).items():
        assert value[key] == number, f"{expected.name}: {key}"
    if "best_epoch" in value and "latest_opt_keys" in expected.meta:
        assert sorted(value) == expected.meta["latest_opt_keys"]
