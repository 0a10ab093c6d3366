"""`workbench run`, and parameters that are refused before anything is spent."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import torch
from click.testing import CliRunner
from executed import PLOTLY
from papermill import cli as papermill_cli
from papermill.engines import papermill_engines
from papermill.translators import PythonTranslator
from safetensors.torch import load_file
from small_recipes import SPAN, write_recipe, write_text

from workbench import books, cli
from workbench.cli_run import Heard
from workbench.engine import WorkbenchEngine
from workbench.errors import ConfigError
from workbench.train.folder import RunFolder

TRAIN = books.find("train")
NAMES = sorted(path.stem for path in books.folder().glob("*.ipynb"))


def parameter(annotation: str, default: str = "None") -> books.Parameter:
    return books.Parameter("x", annotation, default, "")


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [3, -1], [True, 3.0, "3", None]),
        ("float", [3, 2.5], ["1e-3", False, None]),
        ("str", ["", "3"], [3, None, ["x"]]),
        ("bool", [True], [1, "true"]),
        ("Optional[int]", [None, 3], [2.5, "None"]),
        ("list[str]", [[], ["a"]], ["a", [1]]),
        ("list[float]", [[1, 2.5]], [["x"], 1.0]),
        ("dict", [{}, {"a": 1}], ["{}", [1]]),
        ("dict[str, Any]", [{"a": [1]}], [{1: 2}]),
        ("Literal['a', 'b']", ["a"], ["c", 1]),
        ("typing.Optional[str]", [None, "a"], [1]),
        ("", [1, "a", None, []], []),
        ("Path", [1, "a"], []),
    ],
)
def test_values_of_a_type(annotation: str, good: list[Any], bad: list[Any]) -> None:
    known = {"x": parameter(annotation)}
    for value in good:
        books.check(known, {"x": value})
    for value in bad:
        with pytest.raises(ConfigError, match="parameter x"):
            books.check(known, {"x": value})


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("str", "3", "3"),
        ("str", "None", "None"),
        ("Optional[str]", "None", None),
        ("Optional[str]", "12", "12"),
        ("Optional[int]", "null", None),
        ("float", "1e-3", 0.001),
        ("int", "1_000", 1000),
        ("bool", "true", True),
        ("list[str]", "[elu, softmax]", ["elu", "softmax"]),
        ("dict", "{train.steps: 3}", {"train.steps": 3}),
        ("", "0.5", 0.5),
    ],
)
def test_a_value_from_the_command_line(annotation: str, text: str, value: Any) -> None:
    read = books.read_value(parameter(annotation), text)
    assert read == value and type(read) is type(value)


def test_all_faults_are_told_with_a_cure() -> None:
    known = {
        "steps": books.Parameter("steps", "Optional[int]", "None", ""),
        "track": books.Parameter("track", "list[str]", "[]", ""),
        "prompt": books.Parameter("prompt", "str", '""', ""),
        "lr": books.Parameter("lr", "float", "1.0", ""),
    }
    with pytest.raises(ConfigError) as caught:
        books.check(known, {"stepz": 3, "track": "wandb", "prompt": 3, "lr": "1e-3"})
    assert str(caught.value).splitlines() == [
        "there is no parameter 'stepz'. Did you mean 'steps'?",
        "parameter track: input should be a valid list; got 'wandb'; expected list[str]; "
        "write it as YAML: -y '{track: wandb}'",
        "parameter prompt: input should be a valid string; got 3; expected str; "
        "as text: -r prompt 3",
        "parameter lr: got the text '1e-3'; YAML 1.1 reads it as text, write 1.0e-03; "
        "expected float",
    ]


def test_the_engine_refuses_before_anything_runs(tmp_path: Path) -> None:
    papermill_engines.register("workbench", WorkbenchEngine)
    out = tmp_path / "out.ipynb"
    command = ["--engine", "workbench", str(TRAIN), str(out), "--no-progress-bar"]
    command += ["-p", "out", str(tmp_path / "run")]
    done = CliRunner().invoke(papermill_cli.papermill, [*command, "-p", "stepz", "3"])
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "Error: there is no parameter 'stepz'. Did you mean 'steps'?" in done.output
    done = CliRunner().invoke(papermill_cli.papermill, [*command, "-r", "steps", "3"])
    assert done.exit_code == 2
    assert "got the text '3'; YAML 1.1 reads it as text, write 3; expected Optional" in done.output
    with pytest.raises(ConfigError, match="Did you mean 'recipe'"):
        papermill.execute_notebook(TRAIN, out, {"recip": "x"}, engine_name="workbench")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_notebook(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", name, "--help"]) == 0
    told = capsys.readouterr().out
    cells = nbformat.read(books.find(name), 4).cells
    (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    title = cells[0].source.partition("\n")[0].removeprefix("# ")
    assert told.startswith(f"workbench run {name}: {title}\n")
    found = PythonTranslator.inspect(cell)
    assert told.count("  -p ") == len(found) > 1
    for p in found:
        assert f"  -p {p.name}: {p.inferred_type_name} = {p.default}\n" in told
        assert p.help in re.sub(r"\s+", " ", told)
        kind = books.kind_of(p.inferred_type_name)
        assert kind is not Any, f"{p.name}: papermill's type {p.inferred_type_name} is not checked"
        books.check({p.name: books.Parameter(*p)}, {p.name: books.Parameter(*p).value()})


def test_help_lists_the_notebooks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-h"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^  (\w+) {2,}[A-Z]", told, re.MULTILINE)[-len(NAMES) :] == NAMES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tran"], "Did you mean 'train'"),
        (["no/such.ipynb"], "there is no notebook no/such.ipynb"),
        (["train", "-p", "stepz", "3"], "Did you mean 'steps'"),
        (["train", "-p", "steps", "many"], "parameter steps: .* got 'many'"),
        (["train", "-p", "overrides", "{a"], "parameter overrides: got '{a', which is no YAML"),
        (["train", "-y", "{steps: '3'}"], "parameter steps: got the text '3'"),
        (["train", "-y", "[1]"], "-y: got .1., expected names and values"),
        (["train", "-f", "none.yaml"], "-f: there is no file none.yaml"),
        (["train", "-p", "recipe", "span-python-tyni"], "Did you mean 'span-python-tiny'"),
    ],
)
def test_what_the_user_can_mend_is_status_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    if "recipe" not in words:
        assert list(tmp_path.iterdir()) == [], "nothing was run"


@pytest.mark.executes("train")
def test_a_training_from_the_command_line(
    tmp_path: Path, span_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "values.yaml").write_text(f"recipe: {span_recipe}\nsteps: 2\n", "utf-8")
    run, out = tmp_path / "run", tmp_path / "run-train.ipynb"
    words = ["run", "train", "-f", str(tmp_path / "values.yaml"), "-p", "out", str(run)]
    words += ["-y", "{overrides: {train.log_every: 1}}", "-p", "steps", "4"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"train.ipynb: the executed copy will be {out}"
    printed = [line for line in told if "4 updates" in line or "step 4" in line or "4/4" in line]
    assert printed, "what the notebook prints is shown"
    assert re.fullmatch(rf"done after \d+ s: {re.escape(str(out))}", told[-2])
    assert told[-1] == f"run folder: {run}, done at step 4"
    assert [row["step"] for row in RunFolder(run).records("train")] == [1, 2, 3, 4]
    assert nbformat.read(out, 4).metadata.papermill.parameters["steps"] == 4


FUSE = """
import pathlib
from typing import Literal
from workbench.models.mixers.qrnn import QRNNConfig

class FusedConfig(QRNNConfig):
    kind: Literal["fused"] = "fused"
    def build(self, d_model):
        mixer = super().build(d_model)
        mixer.register_forward_pre_hook(burn)
        return mixer

def burn(mixer, args):
    fuse = pathlib.Path(FUSE)
    if mixer.training and fuse.is_file():
        left = int(fuse.read_text())
        if left == 0:
            raise RuntimeError("the fuse has burnt")
        fuse.write_text(str(left - 1))
"""


def test_a_training_that_fails_leaves_the_error_what_came_before_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last update is bit for bit that of a run which nothing happened to."""
    fuse = tmp_path / "fuse"
    nb = nbformat.read(TRAIN, 4)
    at = next(i for i, c in enumerate(nb.cells) if "parameters" in c.metadata.get("tags", []))
    # a mixer of the user's, which fails as a GPU might, at the 13th update
    nb.cells.insert(at + 1, nbformat.v4.new_code_cell(FUSE.replace("FUSE)", f"{str(fuse)!r})")))
    book = tmp_path / "mine.ipynb"
    nbformat.write(nb, book)
    mixer = {"kind": "fused", "d_hidden": 16}
    recipe = write_recipe(tmp_path / "r.yaml", write_text(tmp_path / "t.txt"), mixer)
    run, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    words = ["run", str(book), "-p", "recipe", str(recipe), "-p", "out"]

    fuse.write_text(str(2 * 12))  # two layers
    assert cli.main([*words, str(run.path)]) == 1
    told = capsys.readouterr()
    assert "workbench: RuntimeError: the fuse has burnt" in told.err
    assert f"run folder: {run.path}, failed at step " in told.out
    out = tmp_path / "run-mine.ipynb"
    cells = nbformat.read(out, 4).cells
    failed = [o for c in cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert [(o.ename, o.evalue) for o in failed] == [("RuntimeError", "the fuse has burnt")]
    (shown,) = [o for c in cells for o in c.get("outputs", []) if PLOTLY in o.get("data", {})]
    drawn = json.dumps(shown.data[PLOTLY]["data"])
    assert '"x"' in drawn and run.records("train")[-1]["step"] == 12, "what came before is drawn"
    assert run.status()["state"] == "failed" and "the fuse has burnt" in run.status()["message"]
    assert run.records("checkpoint")[-1]["step"] == 10

    fuse.unlink()
    assert cli.main([*words, str(run.path)]) == 0
    assert "done after" in capsys.readouterr().out
    assert cli.main([*words, str(whole.path)]) == 0
    newest = [max(x.checkpoints.glob("*/weights.safetensors")) for x in (run, whole)]
    ours, theirs = map(load_file, newest)
    assert len(theirs) > 10 and set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [[row["loss_nats"] for row in x.records("train")] for x in (run, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 10


def test_a_stopped_training_is_status_75(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    recipe = write_recipe(tmp_path / "long.yaml", text, SPAN, steps=1_000_000, eval_every=999_999)
    run = RunFolder(tmp_path / "run")
    words = ["run", "train", "-p", "recipe", str(recipe), "-p", "out", str(run.path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", *words], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while len(run.records("train")) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped; the same command goes on after " in told
    assert run.status()["state"] == "stopped"


def test_what_is_heard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    heard = Heard()
    heard.write("one\n")
    heard.write("\rbar 1\rbar 2")  # soon after the last: of these the last alone
    heard.write("\rbar 3")
    assert capsys.readouterr().out == "one\n"
    heard.write("\n")
    heard.write("\x1b]0;title\x07two\n\n")
    assert capsys.readouterr().out == "bar 3\n\\x1b]0;title\\x07two\n\n"
    monkeypatch.setattr("workbench.cli_run.EVERY_S", 0.0)
    heard.write("\rbar 4")
    assert capsys.readouterr().out == "bar 4\n"
    heard.rewrites = True
    heard.write("\rbar 5")
    heard.write("three\n")
    heard.write("\rbar 6")
    heard.end()
    assert capsys.readouterr().out == "\r\x1b[Kbar 5\nthree\n\r\x1b[Kbar 6\n"
