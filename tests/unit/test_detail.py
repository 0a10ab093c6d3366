"""Evaluation in detail: ranks, confidence, alternatives by definition, whatever the cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workbench import detail, score
from workbench.config import load
from workbench.data.vocabulary import CharVocabulary
from workbench.detail import evaluate_in_detail
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.train.config import CacheConfig, EvalConfig
from workbench.train.evaluate import evaluate

CHARS = CharVocabulary(list("abcdefgh \n"))
IDS = CHARS.encode("a bad cab\nfaced a bead\n" * 3)
ADAPTIVE = {"kind": "adaptive", "cutoffs": [3, 7]}


def model(vocabulary: dict[str, object] | None = None) -> LanguageModel:
    mixer = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 9}
    torch.manual_seed(2)
    data = {"d_model": 8, "stack": [{"block": {"mixer": mixer}, "repeat": 2}], "p_output": 0.4}
    data |= {"vocabulary": vocabulary} if vocabulary else {}
    return load(ModelConfig, data).build(CHARS.size).double().train()


def naive(log_probs: Tensor, targets: Tensor) -> tuple[list[int], list[float], list[float]]:
    """Rank, confidence and correctness, one token and one class at a time."""
    ranks, sure, right = [], [], []
    for row, target in zip(log_probs.tolist(), targets.tolist(), strict=True):
        ranks.append(1 + sum(1 for other in row if other > row[target]))
        best = [c for c, value in enumerate(row) if value == max(row)]
        sure.append(torch.tensor(max(row)).exp().item())
        right.append(1 / len(best) if target in best else 0.0)
    return ranks, sure, right


@pytest.mark.parametrize("vocabulary", [None, ADAPTIVE], ids=["plain", "adaptive"])
@pytest.mark.parametrize(
    "config",
    [
        EvalConfig(context_len=4, batch_size=3),
        EvalConfig(method="windows", context_len=6, batch_size=4, max_tokens=50),
        EvalConfig(method="streams", batch_size=2, segment_len=7),
        EvalConfig(segment_len=8, cache=CacheConfig(window=12, theta=0.5, lam=0.3)),
    ],
    ids=lambda c: c.describe(),
)
def test_each_token_by_the_definition(
    config: EvalConfig, vocabulary: dict[str, object] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pieces of two tokens, so that a segment takes several
    monkeypatch.setattr(detail, "PIECE_ENTRIES", 2 * CHARS.size)
    subject = model(vocabulary)
    got = evaluate_in_detail(subject, IDS, config, alternatives=3)
    plain, full = evaluate(subject, IDS, config), score(subject, IDS, config=config, log_probs=True)
    assert full.log_probs is not None and subject.training
    torch.testing.assert_close(got.evaluation.nll_nats, plain.nll_nats, rtol=0, atol=1e-10)
    assert torch.equal(got.evaluation.positions, plain.positions)
    assert got.evaluation.settings == plain.settings and got.evaluation.divisor == plain.divisor
    ranks, sure, right = naive(full.log_probs, IDS[full.positions])
    assert got.rank.tolist() == ranks and got.correct.tolist() == right
    assert got.confidence.tolist() == pytest.approx(sure)
    best = full.log_probs.topk(3)
    assert torch.equal(got.alternatives.long(), best.indices)
    torch.testing.assert_close(got.alternative_log_probs, best.values)
    assert got.within(1) == ranks.count(1) / len(ranks) and got.within(CHARS.size) == 1


def test_equal_classes_share_the_prediction() -> None:
    subject = model().float()
    with torch.no_grad():
        subject.vocabulary.output.weight.zero_()
        subject.vocabulary.output.bias.zero_()
        # the first two are likelier than the rest, and equally likely
        subject.vocabulary.output.bias[1:3] = 1.0
    got = evaluate_in_detail(subject, IDS, EvalConfig())
    hit = (IDS[1:] == 1) | (IDS[1:] == 2)
    assert got.correct.tolist() == [0.5 if h else 0.0 for h in hit.tolist()]
    assert got.rank.tolist() == [1 if h else 3 for h in hit.tolist()]


def test_nothing_depends_on_the_batch() -> None:
    subject = model()
    one, many = (
        evaluate_in_detail(subject, IDS, EvalConfig(context_len=5, batch_size=b, segment_len=t))
        for b, t in ((1, 128), (4, 3))
    )
    assert torch.equal(one.rank, many.rank) and torch.equal(one.alternatives, many.alternatives)
    torch.testing.assert_close(one.confidence, many.confidence)
    assert one.alternatives.shape == (len(IDS) - 1, 5)
    every = evaluate_in_detail(subject, IDS, EvalConfig(), alternatives=99)
    assert every.alternatives.shape[1] == CHARS.size
    ones = torch.ones(len(IDS) - 1, dtype=torch.float64)
    torch.testing.assert_close(every.alternative_log_probs.exp().sum(-1), ones)
