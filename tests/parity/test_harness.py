"""The parity tests themselves: nothing wrong, missing or unknown may pass."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parity.golden import Comparison, Deviation, Golden, NotBuilt, OnlyABug, Unknown
from parity.registry import check
from parity.table import BUG, Row, page
from workbench.originals.links import Link

TESTS = Path(__file__).parents[1]
SMALL = TESTS / "golden" / "adaspan_fixed_span_lt_block_a.npz"

Arrays = dict[str, np.ndarray]
Meta = dict[str, Any]


def altered(target: Path, change: Callable[[Arrays, Meta], None], source: Path = SMALL) -> Path:
    """A copy of a golden file with changed content."""
    with np.load(source, allow_pickle=False) as stored:
        arrays = {key: np.array(stored[key]) for key in stored.files}
    meta = json.loads(str(arrays.pop("meta")))
    change(arrays, meta)
    np.savez(target, meta=json.dumps(meta), **arrays)
    return target


def unchanged(arrays: Arrays, meta: Meta) -> None:
    """Alter nothing."""


def shift_output(arrays: Arrays, meta: Meta) -> None:
    arrays["out/eval/seg1/nll"][0, 0] += 2e-4


def shift_gradient(arrays: Arrays, meta: Meta) -> None:
    grad = arrays["grad/layers.1.attn.proj_key.weight"]
    grad[0, 0] += 1e-4 * np.abs(grad).max()


def add_output(arrays: Arrays, meta: Meta) -> None:
    arrays["out/eval/seg0/entropy"] = np.zeros(3)


def drop_gradient(arrays: Arrays, meta: Meta) -> None:
    del arrays["grad/key_pe"]


def add_parameter(arrays: Arrays, meta: Meta) -> None:
    arrays["param/layers.0.gate"] = np.zeros(3)


def not_a_number(arrays: Arrays, meta: Meta) -> None:
    arrays["out/eval/seg0/nll"][0, 0] = np.nan


def sampling(arrays: Arrays, meta: Meta) -> None:
    meta["codebase"] = "transformer-xl/pytorch (mem_transformer.MemTransformerLM)"
    meta["ctor"] = {"n_token": 9, "sample_softmax": 3}


def foreign(arrays: Arrays, meta: Meta) -> None:
    meta["codebase"] = "gpt"


def unknown_option(arrays: Arrays, meta: Meta) -> None:
    meta["ctor"]["model_params"]["gated"] = True


def test_an_unchanged_copy_passes_under_any_name(tmp_path: Path) -> None:
    assert check(altered(tmp_path / "x.npz", unchanged))


def turn_around(arrays: Arrays, meta: Meta) -> None:
    for key in sorted(arrays, reverse=True):
        arrays[key] = arrays.pop(key)


def say_less(arrays: Arrays, meta: Meta) -> None:
    for name in ("tied", "buffers", "phases", "n_segments", "batch", "semantics", "name"):
        if not meta.get(name) or name == "n_segments":
            meta.pop(name, None)
    for key in [k for k in arrays if k.startswith("out/eval/")]:
        # what stands beside a recurrent layer's outputs is never left out
        if not key.endswith("/nll") and "/hidden/" not in key:
            del arrays[key]


def keep_no_nll(arrays: Arrays, meta: Meta) -> None:
    for key in [k for k in arrays if k.startswith("out/eval/") and k.endswith("/nll")]:
        del arrays[key]


def say_defaults(arrays: Arrays, meta: Meta) -> None:
    if "n_token" in meta["ctor"]:
        defaults = {"clamp_len": -1, "same_length": False, "attn_type": 0, "adapt_inp": False}
        defaults |= {"d_embed": meta["ctor"]["d_model"], "tie_projs": [False], "div_val": 1}
        meta["ctor"] = {**defaults, "sample_softmax": -1, "cutoffs": [], **meta["ctor"]}


@pytest.mark.parametrize("change", [turn_around, say_less, keep_no_nll, say_defaults])
@pytest.mark.parametrize("name", [SMALL.stem, "txl_rel_nomem_a", "txl_dembed_proj_a", "awd_qrnn_a"])
def test_what_a_file_need_not_say(
    tmp_path: Path, name: str, change: Callable[[Arrays, Meta], None]
) -> None:
    assert check(altered(tmp_path / "x.npz", change, SMALL.with_stem(name)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (shift_output, "out/eval/seg1/nll: off by"),
        (shift_gradient, "grad/layers.1.attn.proj_key.weight: off by"),
        (not_a_number, "out/eval/seg0/nll: off by nan"),
        (add_output, "1 arrays not compared: .*entropy"),
        (drop_gradient, "only one side has gradients of .'key_pe'"),
    ],
)
def test_a_difference_fails_by_name(
    tmp_path: Path, change: Callable[[Arrays, Meta], None], expected: str
) -> None:
    path = altered(tmp_path / "adaspan_changed.npz", change)
    with pytest.raises(AssertionError, match=expected):
        check(path)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("mystery_a", foreign, "code base 'gpt' is not known"),
        ("adaspan_a", unknown_option, "gated"),
        ("adaspan_a", add_parameter, "original parameters do not match the links: .*gate"),
        ("adaspan_a", lambda arrays, meta: meta.pop("ctor"), "meta lacks `ctor`"),
        ("adaspan_a", lambda arrays, meta: meta.update(codebase="adaptive-span (x)"), "code base"),
    ],
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, name: str, change: Callable[[Arrays, Meta], None], expected: str
) -> None:
    path = altered(tmp_path / f"{name}.npz", change)
    with pytest.raises(Unknown, match=expected):
        check(path)


def test_a_missing_feature_is_named(tmp_path: Path) -> None:
    path = altered(tmp_path / "adaspan_a.npz", sampling)
    with pytest.raises(NotBuilt, match="sampled softmax"):
        check(path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"")
    with pytest.raises(Unknown, match=r"expected a golden file \(\.npz\)"):
        check(path)


def test_nothing_compared_is_no_success(tmp_path: Path) -> None:
    def strip(arrays: Arrays, meta: Meta) -> None:
        for key in [k for k in arrays if not k.startswith("param/")]:
            del arrays[key]

    golden = Golden(altered(tmp_path / "adaspan_a.npz", strip))
    with pytest.raises(AssertionError, match="nothing was compared"):
        Comparison(golden).finish()


def test_a_file_that_records_only_a_bug_is_listed_as_such(tmp_path: Path) -> None:
    comparison = Comparison(Golden(altered(tmp_path / "adaspan_a.npz", unchanged)))
    comparison.leave_out("out/*", "their mask is one short")
    with pytest.raises(AssertionError, match=r"not compared: .*grad/"):
        comparison.finish()
    comparison.leave_out("grad/*", "so are the gradients")
    with pytest.raises(OnlyABug, match="their mask is one short; so are the gradients"):
        comparison.finish()


def test_links_run_both_ways() -> None:
    def by_head(q: torch.Tensor, kv: torch.Tensor) -> list[torch.Tensor]:
        k, v = kv.chunk(2)
        return [torch.stack([q, v], 1).flatten(0, 1), k.T]

    link = Link(("q", "kv"), ("qv", "k"), by_head)
    theirs = [torch.randn(3, 2), torch.randn(6, 2)]
    back = link.revert(link.convert(theirs), [x.shape for x in theirs])
    for x, y in zip(back, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_the_run_reports_each_file_by_name(tmp_path: Path) -> None:
    altered(tmp_path / "adaspan_right.npz", unchanged)
    altered(tmp_path / "adaspan_wrong.npz", shift_output)
    altered(tmp_path / "adaspan_later.npz", sampling)
    altered(tmp_path / "mystery_a.npz", foreign)
    # a name that tests/golden lists, with content that is not built
    altered(tmp_path / SMALL.name, sampling)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [str(TESTS / "parity" / "test_golden.py"), "--golden", str(tmp_path)]
    command += ["--parity-report", str(tmp_path / ".report" / "parity.md")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, check=False)
    assert run.returncode == 1
    rows = {line.split()[0]: line for line in run.stdout.splitlines() if line.strip()}
    assert "passed  grad" in rows["adaspan_right"]
    assert "not built yet: a model with sampled softmax" in rows["adaspan_later"]
    for name in ("adaspan_wrong", "mystery_a", SMALL.stem):
        assert "FAILED" in rows[name]
    assert "5 files: 1 passed, 1 not built yet, 3 failed" in run.stdout
    text = (tmp_path / ".report" / "parity.md").read_text("utf-8")
    page = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "| 2 | 1 | 0 | 0 | 1 |" in page["adaptive-span"] and "of the tolerance" in text
    assert "| 2 | 0 | 0 | 1 | 1 |" in page["transformer-xl"]
    assert "| passed | grad" in page["adaspan_right"]
    assert "| FAILED |" in page["adaspan_wrong"] and "| 1 | 0 | 0 | 0 | 1 |" in page["gpt"]


def test_an_exact_array_uses_nothing_of_its_tolerance_or_all() -> None:
    exact, off = (Deviation("out/ids", "out", share, 0.0) for share in (0.0, 1e-9))
    assert (exact.used, exact.fine) == (0.0, True)
    assert (off.used, off.fine) == (float("inf"), False)


def test_the_page_says_what_is_left_out_and_why() -> None:
    off = Deviation("out/y", "out", 3e-6, 1e-5)
    table = [
        Row("a", "xl", "passed", [off], {"grad_carry/*": "drops | the state"}),
        Row("b", "xl", f"{BUG}their mask", [], {"out/*": "their mask"}),
    ]
    text = page(table)
    assert "2 files: 1 passed, 1 listed as bug, 0 not built yet, 0 failed" in text
    assert "| xl | 2 | 1 | 1 | 0 | 0 | 3.0e-06, 30% of the tolerance (a, `out/y`) |" in text
    assert "| drops \\| the state | `grad_carry/*` | a |" in text
