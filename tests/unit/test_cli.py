"""The command line: what it lists, how it refuses, that it starts fast."""

import json
import subprocess
import sys

import pytest
from tiny_run import recipe, write_text

import workbench
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
            *("name", "family", "dataset", "about", "parameters", "published", "paper", "code"),
            "comparable",
        }
        published = entry["dataset"] in ("enwik8", "text8", "lm1b", "ptb", "ptb-char")
        assert bool(entry["comparable"]) == (published or entry["dataset"].startswith("wikitext"))
        for result in entry["published"]:
            tables = {"by_pairs", "steps_by_pairs"} if entry["family"] == "retrieval" else set()
            assert set(result) >= {"metric", "valid", "test", "source", "unverified"} | tables


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
    command = [sys.executable, "-m", "workbench", "recipes", "span-python-tiny"]
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


def test_generate_and_score_use_a_run(tmp_path, capsys):
    text = write_text(tmp_path / "text.txt")
    run = workbench.start(recipe(text, steps=4), out=tmp_path / "run")
    list(run)
    options = ["--prompt", "abc", "--length", "12", "--temperature", "0.7", "--seed", "5"]
    assert cli.main(["generate", str(run.folder.path), *options, "--top-k", "9"]) == 0
    told = capsys.readouterr()
    again = workbench.generate(run, "abc", length=12, temperature=0.7, seed=5, top_k=9)
    assert told.out == f"abc{again.text}\n" and told.err == "seed 5; carried\n"

    scored = workbench.score(run, text.read_bytes()[:50])
    part = tmp_path / "part.txt"
    part.write_bytes(text.read_bytes()[:50])
    assert cli.main(["score", str(run.folder.path), str(part)]) == 0
    assert f"{scored.bits_per_character:.4f} bits per character" in capsys.readouterr().out
    assert cli.main(["score", str(run.folder.path), str(part), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["nats"] for row in rows] == pytest.approx(scored.nll_nats.tolist())
    assert [row["position"] for row in rows] == list(range(1, 50))

    assert cli.main(["score", str(run.folder.path), "nowhere.txt"]) == 2
    assert "no file nowhere.txt" in capsys.readouterr().err
    assert cli.main(["generate", str(tmp_path / "nothing")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_parts_add_up_and_a_shared_tensor_counts_once():
    model = catalogue.unfilled(load_recipe("span-python-tiny"))
    parts = catalogue.parts(model)
    assert set(parts) == {"vocabulary", "mixer", "channel", "norms"}
    # two matrices 128 x 512 and their biases; keys for 256 distances belong to all layers
    assert parts["channel"] == dict.fromkeys("0123", 2 * 128 * 512 + 512 + 128)
    assert parts["mixer"]["0"] - parts["mixer"]["1"] == 256 * 32
    assert sum(sum(numbers.values()) for numbers in parts.values()) == model.n_parameters
