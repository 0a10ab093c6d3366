"""Generation: what is drawn, when it ends, what is refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from tiny_run import recipe, write_text

import workbench
from workbench import generate
from workbench.config import load
from workbench.data.vocabulary import (
    ByteVocabulary,
    CharVocabulary,
    PreparedVocabulary,
    WordVocabulary,
)
from workbench.errors import ConfigError, DataError, DataMissing
from workbench.generation import draw, sharpened
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.train.run import Run

CHARS = CharVocabulary(list("abcdefgh \n"))
WORDS = WordVocabulary(["the", "cat", "sat", "."])


def model(n_symbols: int, mixer: str = "fast_weight") -> LanguageModel:
    config = {
        "d_model": 8,
        # tied weights would be sure of the token that they have just read
        "vocabulary": {"kind": "plain", "tie_weights": False},
        "stack": [{"block": {"mixer": {"kind": mixer, "n_heads": 2, "d_head": 4}}}],
    }
    torch.manual_seed(2)
    return load(ModelConfig, config).build(n_symbols)


def naive(logits: list[float], temperature: float, k: int | None, p: float | None) -> list[float]:
    """The distribution after temperature, top-k and top-p, in plain Python."""
    weights = [math.exp(x / temperature) for x in logits]
    ranks = sorted(range(len(weights)), key=lambda i: -weights[i])[: k or len(weights)]
    total, mass, kept = sum(weights[i] for i in ranks), 0.0, []
    for i in ranks:
        kept.append(i)
        mass += weights[i] / total
        if mass >= (p or 1.0):
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 4, 50])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.6, 0.999])
def test_the_distribution(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logp = torch.randn(3, 9, generator=torch.Generator().manual_seed(8)).log_softmax(-1)
    sorted_p, order = sharpened(logp, temperature, top_k, top_p)
    got = torch.zeros(3, 9, dtype=torch.float64).scatter(-1, order, sorted_p)
    expected = [naive(row, temperature, top_k, top_p) for row in logp.double().tolist()]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_drawing_follows_the_distribution() -> None:
    p = torch.tensor([[0.5, 0.0, 0.3, 0.2, 0.0]], dtype=torch.float64)
    order = torch.tensor([[3, 1, 0, 2, 4]])
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    drawn = draw(p.expand(1000, -1), order.expand(1000, -1), u)
    counts = drawn.bincount(minlength=5).tolist()
    assert max(abs(a - b) for a, b in zip(counts, [300, 0, 200, 500, 0], strict=True)) <= 1
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert draw(p, order, last).tolist() == [2], "the end of the scale is not a class without mass"


def test_greedy_takes_the_likeliest_and_needs_no_seed() -> None:
    subject = model(CHARS.size)
    got = generate(subject, "abc", length=8, temperature=0, vocabulary=CHARS)
    ids, expected = CHARS.encode("abc"), []
    for _ in range(8):
        with torch.no_grad():
            logp, _ = subject.eval().log_probs(ids[None], subject.initial_carry(1))
        expected.append(int(logp[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor(expected[-1:])])
    assert got.ids == [expected]
    assert got.text == CHARS.decode(torch.tensor(expected))


def test_samples_have_random_numbers_of_their_own() -> None:
    subject = model(CHARS.size)
    torch.manual_seed(77)
    three = generate(subject, "ab", length=30, samples=3, seed=9, vocabulary=CHARS).texts
    one = generate(subject, "ab", length=30, seed=9, vocabulary=CHARS).texts
    assert three[0] == one[0] and len(set(three)) == 3
    assert len(three[0]) == 30
    drawn = torch.rand(1)
    torch.manual_seed(77)
    assert torch.equal(drawn, torch.rand(1)), "the global random numbers are not disturbed"
    a, b = (generate(subject, "ab", length=30, vocabulary=CHARS) for _ in range(2))
    assert a.seed != b.seed
    again = generate(subject, "ab", length=30, seed=a.seed, vocabulary=CHARS)
    assert again.texts == a.texts


def test_tokens_come_one_by_one_and_break_is_safe() -> None:
    subject = model(CHARS.size)
    whole = generate(subject, "ab", length=20, samples=2, seed=1, vocabulary=CHARS)
    begun = generate(subject, "ab", length=20, samples=2, seed=1, vocabulary=CHARS)
    first = list(itertools.islice(begun, 7))
    assert len(begun._ids[0]) == 4, "no more is drawn than was asked for"
    tokens = first + list(begun)
    assert tokens == list(whole)
    for i, text in enumerate(whole.texts):
        assert "".join(t.text for t in tokens if t.sample == i) == text
    assert list(begun) == [] and begun.texts == whole.texts


@pytest.mark.parametrize(
    ("vocabulary", "prompt"),
    [
        (ByteVocabulary(), "\u00e4\u20ac"),
        (WORDS, "the cat"),
        (CHARS, "a\n"),
        (PreparedVocabulary("byte", ["98", "97", "<eos>", "32", "195", "164"]), "ab\n\u00e4"),
    ],
)
def test_pieces_of_text_join_to_the_text(vocabulary: object, prompt: str) -> None:
    subject = model(vocabulary.size)  # type: ignore[attr-defined]
    written = generate(subject, prompt, length=60, seed=3, vocabulary=vocabulary)  # type: ignore[arg-type]
    pieces = "".join(token.text for token in written)
    end = written.text
    # bytes at the end may be the beginning of a character
    assert end.startswith(pieces) and set(end[len(pieces) :]) <= {"\ufffd"}
    assert len(pieces) > 30 and prompt + end == vocabulary.decode(  # type: ignore[attr-defined]
        torch.tensor([*written.prompt.tolist(), *written.ids[0]])
    )


def test_stops() -> None:
    subject = model(CHARS.size)
    free = generate(subject, "ab", length=40, seed=4, vocabulary=CHARS)
    text, ids = free.text, free.ids[0]
    for stop, ends in {
        text[10:12]: text.index(text[10:12]) + 2,
        ids[7]: ids.index(ids[7]) + 1,
        (text[20:23], tuple(ids[15:17])): min(
            text.index(text[20:23]) + 3, text.index(text[15:17]) + 2
        ),
    }.items():
        got = generate(subject, "ab", length=40, seed=4, stop=stop, vocabulary=CHARS)
        assert got.text == text[:ends]
    # samples that are done leave the batch; the others do not notice
    many = generate(subject, "ab", length=40, seed=4, samples=6, stop="a", vocabulary=CHARS)
    alone = [
        generate(subject, "ab", length=40, seed=4 + i, stop="a", vocabulary=CHARS).text
        for i in range(6)
    ]
    assert many.texts == alone and len({len(t) for t in alone}) > 1
    ended = many.past(2)
    more = generate(subject, past=ended, length=5, seed=1, vocabulary=CHARS).text
    whole = [*CHARS.encode("ab"), *many.ids[2]]
    assert more == generate(subject, whole, length=5, seed=1, vocabulary=CHARS).text


def test_without_a_prompt_a_line_begins() -> None:
    for vocabulary, start in ((CHARS, "\n"), (WORDS, "\n"), (CharVocabulary(list("ab ")), " ")):
        subject = model(vocabulary.size)
        got = generate(subject, length=12, seed=1, vocabulary=vocabulary)
        told = generate(subject, start, length=12, seed=1, vocabulary=vocabulary)
        assert got.ids == told.ids
    with pytest.raises(ConfigError, match="neither line end nor blank"):
        generate(model(3), vocabulary=CharVocabulary(list("ab")))


def test_refusals() -> None:
    subject = model(CHARS.size)
    for wrong in (
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_k": 1.5},
        {"seed": "x"},
        {"seed": -1},
        {"seed": 2**70},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"length": 0},
        {"samples": 0},
        {"stop": ""},
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}.* expected"):
            generate(subject, "ab", vocabulary=CHARS, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="vocabulary lacks x, y; expected"):
        generate(subject, "axby", vocabulary=CHARS)
    with pytest.raises(DataError, match=r"lacks dog; .* Write <unk>"):
        generate(model(WORDS.size), "the dog sat", vocabulary=WORDS)
    assert generate(model(WORDS.size), "the <unk> sat", vocabulary=WORDS, length=1).text
    with pytest.raises(DataError, match="can never come"):
        generate(subject, "ab", stop="xyz", vocabulary=CHARS)
    with pytest.raises(ConfigError, match="bare model knows ids only"):
        generate(subject, "ab")
    with pytest.raises(DataError, match="from 0 to 10"):
        generate(subject, [1, 11])
    with pytest.raises(ConfigError, match="give context_len"):
        generate(model(CHARS.size, "attention"), [1, 2])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    run = workbench.start(recipe(write_text(folder / "text.txt"), steps=4), out=folder / "run")
    list(run)
    return run


def test_a_run_its_folder_and_its_path_are_the_same(run: Run) -> None:
    before = {name: x.clone() for name, x in run.model.state_dict().items()}
    run.model.train()
    texts = [
        generate(source, "abc", length=20, seed=3).text
        for source in (run, run.folder, run.folder.path, str(run.folder.path))
    ]
    assert len(set(texts)) == 1 and run.model.training
    assert all(torch.equal(x, before[name]) for name, x in run.model.state_dict().items())
    bare = generate(run.model, "abc", length=20, seed=3, vocabulary=run.corpus)
    assert bare.text == texts[0]
    assert generate(run, b"abc", length=20, seed=3).text == texts[0]


def test_a_model_without_memory_remembers_a_segment(tmp_path: Path) -> None:
    mixer = {"kind": "attention", "n_heads": 2, "d_head": 4}
    shape = {"d_model": 8, "stack": [{"block": {"mixer": mixer}}]}
    text = write_text(tmp_path / "text.txt")
    begun = workbench.start(recipe(text, model=shape, steps=4), out=tmp_path / "run")
    written = generate(begun, "abc", length=3)
    assert written.settings == "carried, context_len 7", "the recipe's segment_len"


def test_a_run_without_its_text_still_knows_ids(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    begun = workbench.start(recipe(text, steps=4), out=tmp_path / "run")
    list(begun)
    text.unlink()
    written = generate(tmp_path / "run", [97, 98], length=4, seed=1)
    assert written.ids == generate(begun, "ab", length=4, seed=1).ids
    with pytest.raises(DataMissing, match="is not there"):
        generate(tmp_path / "run", "ab")
    with pytest.raises(DataMissing, match="is not there"):
        written.text  # noqa: B018
    spelt = generate(tmp_path / "run", "ab", length=4, seed=1, vocabulary=ByteVocabulary())
    assert spelt.ids == written.ids and spelt.text
