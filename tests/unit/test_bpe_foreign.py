"""Tokenizers of others: which are taken, and why others are refused."""

from __future__ import annotations

import json

import pytest
import torch

from workbench.data.bpe import BpeVocabulary
from workbench.errors import DataError, DataMissing

tokenizers = pytest.importorskip("tokenizers")
PROSE = "It's the cat, the hat;  and 12 cats' hats:\n\n na\u00efve \u5b57 of hatter \U0001f600\n"


def back(vocabulary, data):
    return vocabulary.raw(torch.from_numpy(vocabulary.ids(data)))


def foreign(path, change=lambda data: None, **parts):
    """A tokenizer.json of a byte-level BPE tokenizer with a special token, and changes to it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator([PROSE] * 9, trainer)
    for name, part in parts.items():
        setattr(made, name, part)
    data = json.loads(made.to_str())
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    return made


def test_a_tokenizer_of_others_gives_its_own_ids(tmp_path):
    made = foreign(tmp_path / "tokenizer.json")
    loaded = BpeVocabulary.load(tmp_path / "tokenizer.json")
    assert loaded.size == made.get_vocab_size()
    for line in PROSE.splitlines(keepends=True):
        assert loaded.encode(line).tolist() == made.encode(line).ids
    text = "the <|endoftext|> cat\n"
    assert 0 in made.encode(text).ids and 0 not in loaded.encode(text).tolist()
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.symbol(0) == "<|endoftext|>"
    assert back(loaded, bytes(range(256))) == bytes(range(256))


def test_dropout_truncation_and_padding_of_others_do_not_count(tmp_path):
    path = tmp_path / "tokenizer.json"
    made = foreign(path)
    plain = BpeVocabulary.load(path).encode(PROSE).tolist()
    made.model.dropout = 0.5
    made.enable_truncation(3)
    made.enable_padding(length=50)
    made.save(str(path))
    loaded = BpeVocabulary.load(path)
    assert all(loaded.encode(PROSE).tolist() == plain for _ in range(3))


def llama(data):
    pattern = {"Regex": r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    byte_level = {**data["pre_tokenizer"], "use_regex": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    data["model"]["ignore_merges"] = True


def legacy_merges(data):
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    del data["model"]["type"]


@pytest.mark.parametrize("change", [llama, legacy_merges], ids=lambda f: f.__name__)
def test_other_forms_of_byte_level_tokenizers_are_taken(tmp_path, change):
    path = tmp_path / "tokenizer.json"
    foreign(path, change)
    loaded, made = BpeVocabulary.load(path), tokenizers.Tokenizer.from_file(str(path))
    for line in [*PROSE.splitlines(keepends=True), "a 12345\r\n"]:
        assert loaded.encode(line).tolist() == made.encode(line).ids
    assert back(loaded, PROSE + "\x00 \t") == (PROSE + "\x00 \t").encode()


def without_bytes(data):
    for letter in "\u00f5\u00f6\u00f7":
        del data["model"]["vocab"][letter]


def far_ids(data):
    data["model"]["vocab"]["far"] = 10**9


def no_model(data):
    del data["model"]


def lost_token(data):
    data["model"]["merges"].append(["zzz", "qqq"])


def bert(data):
    data["model"] = {"type": "WordPiece", "vocab": {"[UNK]": 0, "the": 1}, "unk_token": "[UNK]"}


def unigram(data):
    data["model"] = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["the", -1.0]], "unk_id": 0}


def not_byte_level(data):
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}


def no_stage(data):
    data["pre_tokenizer"] = [["ByteLevel"]]


def broken_stage(data):
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [data["pre_tokenizer"], 3]}


def loses_blanks(data):
    data["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, data["pre_tokenizer"]],
    }


def adds_a_blank(data):
    data["pre_tokenizer"]["add_prefix_space"] = True


def normalizes(data):
    data["normalizer"] = {"type": "NFC"}


def ends_words(data):
    data["model"]["end_of_word_suffix"] = "</w>"


def goes_on_with_a_mark(data):
    data["model"]["continuing_subword_prefix"] = "##"


REFUSED = {
    without_bytes: "without tokens for 3 of the 256 bytes",
    far_ids: "ids are not whole numbers from 0 on",
    no_model: "JSON that is no tokenizer",
    lost_token: r"does not load \(.*out of vocabulary",
    bert: "a WordPiece model",
    unigram: "a Unigram model",
    not_byte_level: "not at byte level",
    no_stage: "not at byte level",
    broken_stage: "does not load",
    loses_blanks: "loses or adds blanks",
    adds_a_blank: "loses or adds blanks",
    normalizes: "with a normalizer",
    ends_words: "marks the parts of words",
    goes_on_with_a_mark: "marks the parts of words",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda f: f.__name__)
def test_tokenizers_that_lose_something_are_refused(tmp_path, change):
    path = tmp_path / "tokenizer.json"
    foreign(path, change)
    with pytest.raises(DataError, match=REFUSED[change]) as caught:
        BpeVocabulary.load(path)
    assert str(path) in str(caught.value) and "Leave the file out" in str(caught.value)


DEEP = pytest.param(b"[" * 99_999, id="deep")


@pytest.mark.parametrize(
    "content", [b"{", b"", b"[]", b"3", b"\xff", b'{"model": []}', b"null", DEEP]
)
def test_broken_files_are_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: got .* expected"):
        BpeVocabulary.load(tmp_path / "tokenizer.json")
    with pytest.raises(DataMissing, match=r"expected a tokenizer\.json"):
        BpeVocabulary.load(tmp_path / "none.json")
