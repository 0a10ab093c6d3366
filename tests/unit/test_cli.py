"""The command line: what it lists, how it refuses, that it starts fast."""

import json
import subprocess
import sys

import pytest

from workbench import catalogue, cli
from workbench.recipe import load_recipe, recipe_names


def test_recipes_as_a_table(capsys):
    assert cli.main(["recipes", "python", "tiny"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["recipe", "dataset", "parameters", "published"]
    names = [name for name in recipe_names() if "python" in name and "tiny" in name]
    assert [row.split()[0] for row in rows] == names
    assert any(row.split()[1:3] == ["python-source", "865,040"] for row in rows)


def test_recipes_as_json(capsys):
    assert cli.main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found] == recipe_names()
    for entry in found:
        assert set(entry) == {
            *("name", "family", "dataset", "about", "parameters", "published", "paper", "code")
        }
        for result in entry["published"]:
            assert set(result) >= {"metric", "valid", "test", "source", "unverified"}


@pytest.mark.parametrize("command", [["recipes", "nothing-like-it"], []])
def test_a_users_mistake_is_one_message_and_status_2(command, capsys):
    try:
        status = cli.main(command)
    except SystemExit as refused:  # argparse's own
        status = refused.code
    told = capsys.readouterr()
    assert status == 2 and told.out == ""
    assert "workbench: " in told.err and "Traceback" not in told.err


def test_a_reader_that_has_enough_is_no_error():
    command = [sys.executable, "-m", "workbench", "recipes", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_help_needs_no_torch():
    code = """import sys, workbench.cli
try: workbench.cli.main(["-h"])
finally: print("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "recipes" in done.stdout and done.stdout.endswith("False\n")


def test_the_best_known_figure():
    results = [
        {"metric": "bpc", "valid": None, "test": None, "unverified": True},
        {"metric": "bpc", "valid": 1.05, "test": 1.02, "unverified": False},
    ]
    assert catalogue.figure(results) == "1.02 bpc"
    results[1] |= {"test": None, "unverified": True}
    assert catalogue.figure(results) == "1.05 bpc (valid) ?"
    assert catalogue.figure([]) == "-"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("span-enwik8-small", "span"),
        ("all-attention-wt103-base-io", "all-attention"),
        ("awd-ptbc-lstm", "awd"),
        ("txl-tf-enwik8-base", "txl-tf"),
        ("retrieval-capacity", "retrieval"),
    ],
)
def test_the_family_stands_before_the_dataset(name, family):
    assert catalogue.family(name) == family


def test_parameters_are_unknown_where_the_text_decides():
    tiny = load_recipe("span-python-tiny")
    assert catalogue.count_parameters(tiny) == 865_040
    words = {"data.corpus": {"kind": "text", "path": "a/book.txt", "level": "word"}}
    entry = catalogue.entry(load_recipe("span-python-tiny", words))
    assert (entry.parameters, entry.dataset) == (None, "book")
