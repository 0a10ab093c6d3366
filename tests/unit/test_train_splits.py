"""Splits and a run: too short for what is asked of them, or without a test split."""

from pathlib import Path

import pytest
from tiny_run import recipe, write_text

import workbench
from workbench.errors import DataError

STREAMS = {"eval.method": "streams", "eval.batch_size": 70}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.batch_size": 300}, r"2,250 tokens, expected at least 2,400 = 300 streams"),
        ({**STREAMS, "train.eval_tokens": 999}, r"text, valid: .* 125 .* at least 140"),
        ({**STREAMS, "train.valid": {}}, r"text, test: .* 125 .* at least 140"),
        ({"data.corpus.split": [0.999, 0.0008, 0.0002]}, r"train 2497, valid 2, test 1 bytes"),
    ],
)
def test_a_split_that_is_too_short_is_refused_before_a_model_is_built(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, said: str
) -> None:
    monkeypatch.setattr("workbench.train.start.build_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(DataError, match=said):
        workbench.start(recipe(text), changes, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_text_without_a_test_split_is_trained_on(text: Path, tmp_path: Path) -> None:
    changes = {"data.corpus.split": [0.9, 0.1, 0.0], "train.steps": 4}
    run = workbench.start(recipe(text), changes, out=tmp_path / "run")
    assert [r.kind for r in run][-1] == "done"
    with pytest.raises(DataError, match=r"shape \(0,\), expected .* at least 2"):
        workbench.evaluate(run.model, run.corpus.splits["test"], run.recipe.eval)
