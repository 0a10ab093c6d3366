"""`workbench data`: what it lists, where things lie, and wrong names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_world import ARCHIVE, REAL, TEXT, World, world

from workbench import cli
from workbench.data import raw, registry
from workbench.errors import ConfigError


@pytest.fixture(name="world")
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world(tmp_path, monkeypatch) as made:
        yield made


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["get", "pbt"], "no published data 'pbt'. Did you mean 'ptb'?"),
        (["check", "nothing"], "Choose from: adaptive-span-enwik8"),
        (["get", "ptb", "--rule", "awd-lstn"], "no rule 'awd-lstn'. Did you mean 'awd-lstm'?"),
        (["get", "model", "--rule", "plain"], "is a checkpoint, which has no rules"),
        (["where", "pbt"], "Did you mean 'ptb'?"),
    ],
)
def test_a_wrong_name_costs_nothing_and_is_told_the_nearest(
    world: World, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert cli.main(["data", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert world.asked() == []
    with pytest.raises(ConfigError):
        registry.entry("pbt")


def test_the_list(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    raw.get("model")
    assert cli.main(["data", "list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    (corpus,) = [line for line in lines if line.startswith("ptb ")]
    (checkpoint,) = [line for line in lines if line.startswith("model ")]
    assert len(lines) == len(REAL) + 1
    assert head.split()[:6] == ["name", "level", "download", "licence", "recipes", "here"]
    assert corpus.split()[:4] == ["ptb", "word", *f"{len(ARCHIVE)} bytes".split()]
    assert corpus.split()[4:7] == ["CC0", "5", "absent"] and corpus.endswith("a small text")
    assert "~9 bytes" in checkpoint and "downloaded" in checkpoint


def test_the_list_for_programs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list", "--json"]) == 0
    facts = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert facts["ptb"]["here"] == "absent" and facts["ptb"]["recipes"]["awd-lstm"] == 4
    assert facts["ptb"]["rules"]["awd-lstm"]["symbols"] == 5
    assert facts["model"]["kind"] == "checkpoint"


def test_where_it_all_lies(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "where", "ptb"]) == 0
    assert f"ptb would lie in {world.place}" in capsys.readouterr().out
    raw.get("ptb", rules=["plain"])
    raw.get("model")
    assert cli.main(["data", "where"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{world.root}: the environment variable WORKBENCH_DATA; ")
    assert head.endswith(" free")
    paths = [row.split()[0] for row in rows]
    expected = [world.place, *raw.prepared("ptb"), world.root / "checkpoints" / "m.pt"]
    assert paths == [str(path) for path in expected]
    assert rows[-1].split()[1:] == ["7", "bytes"]
    assert rows[0].split()[1:] == [str(sum(map(len, TEXT.values()))), "bytes"]


def test_why_the_data_folder_is_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_DATA")
    assert raw.why_there() == "data/ of this checkout"


def test_several_rules_may_be_asked_for(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "get", "ptb", "--rule", "plain", "--rule", "awd-lstm"]) == 0
    assert "prepared by the rules: plain, awd-lstm\n" in capsys.readouterr().out


def test_a_name_that_the_terminal_has_no_letters_for_is_spelled_out(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workbench", "data", "where"]
    odd = {"PYTHONIOENCODING": "ascii", "WORKBENCH_DATA": str(tmp_path / "\xfcber")}
    done = subprocess.run(command, env={**os.environ, **odd}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path}/\\xfcber: " in done.stdout
