"""A run on a text of byte pairs, from training to generation and scores."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_run import recipe

import workbench
from workbench import generate, score
from workbench.cli import main
from workbench.config import load
from workbench.train.run import Run

pytest.importorskip("tokenizers")
TEXT = "It's the cat; the na\u00efve hat,\n\n and 12 \u5b57 of hatter \U0001f600\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "text.txt").write_text(TEXT * 60, encoding="utf-8")
    corpus = {"kind": "text", "path": str(folder / "text.txt"), "level": "bpe"}
    asked = recipe(folder / "text.txt", steps=4)
    data = asked.model_dump(mode="json")
    data["data"]["corpus"] = corpus
    begun = workbench.start(load(type(asked), data), out=folder / "run")
    list(begun)
    return begun


def test_units_of_a_score(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    got = score(run, TEXT, before="\n")
    assert got.characters == len(TEXT) and got.n_bytes == len(TEXT.encode())
    bits = got.total_nats / math.log(2)
    assert got.bits_per_byte == pytest.approx(bits / len(TEXT.encode()))
    assert got.bits_per_character == pytest.approx(bits / len(TEXT))
    assert len(got.nll_nats) < len(TEXT) and got.unknown == 0
    assert "".join(got.symbols).startswith("It's␣the␣cat")
    torn = score(run.folder, b"the \xff\xf0\x9f hat\n")
    assert torn.n_bytes == len(b"the \xff\xf0\x9f hat\n") - 3, "the first token was only read"
    path = run.folder.path / "some.txt"
    path.write_bytes(TEXT.encode())
    main(["score", str(run.folder.path), str(path)])
    told = capsys.readouterr().out
    assert "bits per token, perplexity" in told and "per byte" in told


def test_a_run_is_compared_by_bits_per_byte(run: Run) -> None:
    assert run.corpus.unit == "token"
    assert run.corpus.comparable.endswith("bits per byte with every level")
    info = json.loads((run.corpus.folder / "info.json").read_text("utf-8"))
    assert sum(info["bytes"].values()) == len(TEXT.encode()) * 60


def test_pieces_of_generated_text_join_to_the_text(run: Run) -> None:
    written = generate(run, "the na\u00efve", length=60, seed=3, temperature=3.0)
    pieces = "".join(token.text for token in written)
    end = written.text
    # bytes at the end may be the beginning of a character
    assert end.startswith(pieces) and set(end[len(pieces) :]) <= {"\ufffd"} and len(pieces) > 60
    assert run.corpus.vocabulary.decode(torch.tensor(written.ids[0])) == end


def test_a_stop_is_found_inside_tokens(run: Run) -> None:
    # the end of one token and the beginning of the next: no token by itself
    for seed in range(20):
        free = generate(run, "the", length=80, seed=seed, temperature=1.5)
        raw = [run.corpus.vocabulary.raw(torch.tensor([i])) for i in free.ids[0]]
        pairs = [i for i in range(8, 60) if len(raw[i]) > 1 and len(raw[i + 1]) > 1]
        if pairs:
            break
    at, text = pairs[0], free.text
    stop = (raw[at][-1:] + raw[at + 1][:1]).decode()
    first = next(i for i in range(80) if stop.encode() in b"".join(raw[: i + 1]))
    stopped = generate(run, "the", length=80, seed=seed, temperature=1.5, stop=stop)
    assert stopped.ids[0] == free.ids[0][: first + 1]
    assert stop in stopped.text and text.startswith(stopped.text)
