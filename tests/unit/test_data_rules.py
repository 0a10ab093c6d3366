"""The rules of the published corpora against plain Python, on texts as nobody should write them."""

import random

import naive
import pytest
import replicas

from workbench.data import pieces, registry
from workbench.data.published import Published

WORDS = ["the", "cat", "sat", "<unk>", "é", "N", "n", "<eos>", "@-@", "x\u200by", "\ufeffz"]
SIGNS = ["a", "b", "c", "_", "é", "<", "9"]
RULES = [(name, rule) for name, rule in registry.symbols() if name != "lm1b"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    return tmp_path


def compare(name, rule, texts):
    corpus = Published(name=name, rule=rule).open()
    symbols, ids = naive.expected(rule, name, texts)
    assert corpus.vocabulary.symbols() == {"symbols": symbols}
    assert {split: tokens.tolist() for split, tokens in corpus.splits.items()} == ids
    return corpus


def symbols_of(name, rng):
    if name == "enwik8":
        return [str(value) for value in rng.sample(range(256), 9)]
    return SIGNS if name in ("text8", "ptb-char") else WORDS


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "rule"), RULES)
def test_prepared_files_give_what_plain_python_gives(root, name, rule, seed):
    check_prepared(root, name, rule, seed)


@pytest.mark.parametrize("name", ["enwik8", "text8", "wikitext-103"])
def test_it_does_not_matter_where_the_work_is_cut(root, monkeypatch, name):
    monkeypatch.setattr(pieces, "CHUNK_BYTES", 1)
    check_prepared(root, name, "adaptive-span", seed=1)


def check_prepared(root, name, rule, seed):
    rng = random.Random(f"{name} {rule} {seed}")
    some = symbols_of(name, rng)
    # valid and test have symbols that train lacks, where the rule can say which ids they get
    missing = 0 if (name, rule) == ("ptb-char", "plain") or name == "text8" else seed % 3
    texts = {
        split: replicas.odd_text(rng, some[missing:] if split == "train" else some)
        + " ".join(some[missing:]).encode()
        for split in naive.SPLITS
    }
    (root / name).mkdir()
    for split, text in texts.items():
        (root / name / f"{split}.txt").write_bytes(text)
    compare(name, rule, texts)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["enwik8", "text8"])
@pytest.mark.parametrize("rule", ["transformer-xl", "adaptive-span"])
def test_raw_files_give_what_the_authors_preparation_gives(root, name, rule, seed):
    rng = random.Random(seed)
    signs = list(b"ab  c") if name == "text8" else [10, 10, 13, 32, 65, 0, 255, 195]
    data = bytes(rng.choices(signs, k=rng.choice([400, 437])))
    (root / name).mkdir()
    (root / name / name).write_bytes(data)
    compare(name, rule, naive.prepared(name, data))
