"""Tables of runs: what they become, what is refused before anything starts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from tiny_run import recipe as tiny_recipe
from tiny_run import write_text

import workbench
from workbench import cli, cli_cluster
from workbench.cluster import conduct, job, submission
from workbench.errors import ConfigError
from workbench.sweep import load_sweep, plan


def write(path, **table):
    path.write_text(yaml.safe_dump(table, sort_keys=False), encoding="utf-8")
    return path


def planned(path, folder=Path("sweeps/x")):
    return plan(load_sweep(path), folder, path.parent)


def test_the_grid_multiplies_the_runs(tmp_path):
    table = write(
        tmp_path / "rates.yaml",
        recipe="span-python-tiny",
        overrides={"train.steps": 90, "train.seed": 4},
        runs=[
            {"name": "spans", "overrides": {"train.steps": 80}},
            {"name": "delta", "recipe": "delta-python-tiny"},
        ],
        grid={"train.optimizer.lr": [1e-3, 2e-5], "train.carry": ["keep", "reset"]},
    )
    runs = planned(table)
    assert [run.name for run in runs] == [
        f"{name}-lr{lr}-carry{carry}"
        for name in ("spans", "delta")
        for lr in ("0.001", "2e-05")
        for carry in ("keep", "reset")
    ]
    assert {run.recipe.train.steps for run in runs[:4]} == {80}
    assert {run.recipe.train.steps for run in runs[4:]} == {90}
    assert {run.recipe.train.seed for run in runs} == {4}
    assert runs[6].recipe.train.optimizer.lr == 2e-5 and runs[7].recipe.train.carry == "reset"
    assert runs[4].recipe.name == "delta-python-tiny"
    assert runs[0].job.out == Path("sweeps/x/spans-lr0.001-carrykeep")
    assert load_sweep(table).name == "rates"


def test_values_of_a_grid_have_short_names_of_their_own(tmp_path):
    grid = {
        "train.optimizer": [{"kind": "adam", "lr": 1e-3}, {"kind": "sgd", "lr": 0.1}],
        "model.stack.0.block.p_drop": [0.0],
        "model.stack.0.block.mixer.p_attention": [0.1],
    }
    runs = planned(write(tmp_path / "g.yaml", recipe="txl-python-tiny", grid=grid))
    assert [run.name for run in runs] == [
        "optimizeradam,lr=0.001-p_drop0-p_attention0.1",
        "optimizersgd,lr=0.1-p_drop0-p_attention0.1",
    ]
    both = {"train.clip_norm": [1.0], "train.seed": [1]}
    assert planned(write(tmp_path / "b.yaml", recipe="txl-python-tiny", grid=both))[0].name == (
        "clip_norm1-seed1"
    )


def test_a_recipe_beside_the_table_and_no_runs(tmp_path):
    own = tiny_recipe(write_text(tmp_path / "text.txt"))
    (tmp_path / "own.yaml").write_text(own.to_yaml(), encoding="utf-8")
    (run,) = planned(write(tmp_path / "one.yaml", recipe="own.yaml"))
    assert (run.name, run.recipe) == ("own", own)
    assert run.job.recipe == str(tmp_path / "own.yaml")


def test_the_table_of_the_readme(tmp_path):
    text = (Path(workbench.__file__).parents[1] / "README.md").read_text("utf-8")
    (table,) = re.findall(r"```yaml\n(# lr\.yaml.*?)```", text, re.DOTALL)
    path = tmp_path / "lr.yaml"
    path.write_text(table, encoding="utf-8")
    assert [run.name for run in planned(path)] == [
        f"{name}-lr{lr}" for name in ("spans", "delta") for lr in ("0.002", "0.004")
    ]
    # the options beside it are options of sbatch
    (told,) = re.findall(r"--slurm (\S+)", text.split("# lr.yaml")[1].split("sbatch")[0])
    given, further = submission.settings(
        cli_cluster.options([told]), {"partition", "gpus_per_node"}
    )
    assert given["time"] == 480 and given["gpus_per_node"] == 1 and further == {}


def test_the_gpus_that_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert submission.visible_gpus() == [3, 5]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert submission.visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932")
    with pytest.raises(ConfigError, match="got 'GPU-8932', expected numbers"):
        submission.visible_gpus()
    # the two that are used least
    assert submission.least_used([0, 1, 2, 3], [[0], [1, 0]], 2) == [2, 3]
    assert submission.least_used([0, 1], [[0]], 1) == [1]
    assert submission.least_used([], [[]], 2) == []


SPAN = "span-python-tiny"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"recipee": SPAN}, "t.yaml: there is no field 'recipee' here. Did you mean 'recipe'"),
        ({"recipe": "span-python-tyni"}, "run 'span-python-tyni': .*Did you mean 'span-python-"),
        ({"recipe": SPAN, "overrides": {"train.stepz": 1}}, "Did you mean 'steps'"),
        ({"recipe": SPAN, "runs": [{"nmae": "a"}]}, r"runs\[0\].*Did you mean 'name'"),
        ({"recipe": SPAN, "runs": [{"name": "a"}] * 2}, "2 runs are called 'a'"),
        ({"recipe": SPAN, "runs": [{"name": "a/b"}]}, "must do for a folder"),
        ({"recipe": SPAN, "runs": [{"name": "logs"}]}, "must do for a folder"),
        ({"recipe": SPAN, "grid": {"train.seed": []}}, "grid.train.seed: got no values"),
        ({"recipe": SPAN, "grid": {"train.seed": 1}}, "got 1"),
        ({"recipe": SPAN, "grid": {"train.seed": [1, "x"]}}, "run 'seedx': train.seed"),
        ({"runs": [{"name": "a"}]}, "run 'a' names no recipe"),
        ({"overrides": {}}, "nothing to run"),
        ({"recipe": "retrieval-update-tiny"}, "which has no text"),
        ({"recipe": SPAN, "processes": 0}, "greater than 0"),
    ],
)
def test_a_wrong_table_is_refused_with_the_run_and_a_cure(tmp_path, table, message):
    with pytest.raises(ConfigError, match=message):
        planned(write(tmp_path / "t.yaml", **table))


def test_a_folder_that_holds_another_run_is_refused_before_anything_starts(tmp_path):
    own = tiny_recipe(write_text(tmp_path / "text.txt"), steps=4)
    (tmp_path / "own.yaml").write_text(own.to_yaml(), encoding="utf-8")
    table = write(tmp_path / "t.yaml", recipe="own.yaml", runs=[{"name": "a"}])
    list(workbench.start(own, out=tmp_path / "sweep" / "a"))
    assert planned(table, tmp_path / "sweep")[0].is_done
    assert not planned(table, tmp_path / "other")[0].is_done
    write(table, recipe="own.yaml", runs=[{"name": "a", "overrides": {"train.seed": 9}}])
    with pytest.raises(ConfigError, match=r"run 'a': (?s:.*)train.seed: 9 here, 1 there"):
        planned(table, tmp_path / "sweep")


def test_more_time_than_it_had_makes_a_run_unfinished(tmp_path):
    own = tiny_recipe(write_text(tmp_path / "text.txt"), max_seconds=1e-9)
    (tmp_path / "own.yaml").write_text(own.to_yaml(), encoding="utf-8")
    list(workbench.start(own, out=tmp_path / "sweep" / "own"))
    table = write(tmp_path / "t.yaml", recipe="own.yaml")
    assert planned(table, tmp_path / "sweep")[0].is_done
    write(table, recipe="own.yaml", overrides={"train.max_seconds": 60.0})
    assert not planned(table, tmp_path / "sweep")[0].is_done


def test_a_job_that_was_killed_leaves_a_torn_notebook(tmp_path):
    (run,) = planned(write(tmp_path / "t.yaml", recipe=SPAN), tmp_path)
    run.job.executed.parent.mkdir()
    run.job.executed.write_text('{"cells": [{"cell_type": "co')
    assert conduct.outcome(run) == "failed before it began: its job ended without a word"
    nb = nbformat.v4.new_notebook(metadata={"papermill": {"stopped_by": "SIGTERM"}})
    nbformat.write(nb, run.job.executed)
    assert conduct.outcome(run) == "stopped before it began"


def test_a_comparison_that_fails_is_told(tmp_path):
    said = []
    conduct.compare(tmp_path, ["nothing"], said.append)
    assert said[0].startswith("comparison failed: DataMissing: parameter sweep: no run folder in")


def test_a_dry_run_lists_and_writes_nothing(tmp_path, capsys):
    table = write(tmp_path / "t.yaml", recipe=SPAN, grid={"train.seed": [1, 2]})
    out = tmp_path / "out"
    assert cli.main(["sweep", str(table), "--out", str(out), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "seed2: span-python-tiny  train.seed=2" in told and "2 runs, 0 done" in told
    assert not out.exists()


def test_what_the_command_refuses(tmp_path, capsys):
    table = str(write(tmp_path / "t.yaml", recipe=SPAN))
    for words, message in (
        ([str(tmp_path / "no.yaml")], "there is no table"),
        ([table, "--at-once", "0"], "expected 1 or more"),
        ([table, "--slurm", "partition=x"], "--executor slurm"),
        ([table, "--executor", "slurm", "--slurm", "gpu"], "expected name=value"),
    ):
        assert cli.main(["sweep", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("30:00", 30), ("12:00:00", 720), ("1-00:00:00", 1440),
        ("2-12", 3600), ("2-12:30", 3630),
    ],
)  # fmt: skip
def test_times_as_slurm_writes_them(text, expected):
    assert submission.minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "0:30", "1:2:3:4", "x-12"])
def test_what_is_no_time(text):
    with pytest.raises(ConfigError, match="--slurm time"):
        submission.minutes(text)


def test_options_of_sbatch():
    known = {"partition", "time", "gpus_per_node", "signal_delay_s", "exclusive"}
    options = {"partition": "a,b", "gpus-per-node": "8", "exclusive": "", "licenses": "x:1"}
    assert submission.settings(options, known) == (
        {
            "time": 1440,
            "signal_delay_s": 60,
            "partition": "a,b",
            "gpus_per_node": 8,
            "exclusive": True,
        },
        {"licenses": "x:1"},
    )
    with pytest.raises(ConfigError, match="gpus-per-node: got 'two'"):
        submission.settings({"gpus-per-node": "two"}, known)
    with pytest.raises(ConfigError, match="trains on one node"):
        submission.settings({"nodes": "2"}, known)


def test_without_submitit_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'workbench\[cluster\]'"):
        submission.Local(tmp_path, 1)


def test_a_job_in_words_is_the_same_job(tmp_path, monkeypatch):
    overrides = {"train.optimizer.lr": 1e-5, "train.stop": None, "data.corpus.split": [0.5, 0.5]}
    asked = job.Job("a", tmp_path / "run", tmp_path / "n.ipynb", overrides, 2)
    got = []
    monkeypatch.setattr(job, "train", lambda given: got.append(given) or 75)
    assert job.main(asked.words()) == 75
    assert got == [asked] and asked.parameters()["processes"] == 2
    assert job.main(["a", "--out", "b", "--set", "train.steps"]) == 2


def test_the_slurm_script_is_there_and_is_bash(capsys):
    assert cli.main(["slurm-script"]) == 0
    path = capsys.readouterr().out.strip()
    subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run(["bash", path], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: sbatch" in done.stderr


def test_the_state_of_a_run_by_its_status(tmp_path):
    assert job.state(tmp_path) == ""
    (tmp_path / "status.json").write_text(json.dumps({"state": "stopped"}))
    assert job.state(tmp_path) == "stopped"
