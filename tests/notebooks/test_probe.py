"""What notebooks ask of a model: exact contexts, the right head, both rules from one memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import workbench
from workbench import inspect, probe
from workbench.errors import ConfigError, DataError
from workbench.metrics import bits_per_token
from workbench.models.language_model import LanguageModel
from workbench.train.config import CacheConfig, EvalConfig


@pytest.fixture
def span_run(tmp_path: Path, span_recipe: Path) -> workbench.Run:
    return workbench.start(span_recipe, out=tmp_path / "span")


@pytest.fixture
def delta_run(tmp_path: Path, delta_recipe: Path) -> workbench.Run:
    return workbench.start(delta_recipe, out=tmp_path / "delta")


def by_hand(model: LanguageModel, tokens: torch.Tensor, at: int, context: int) -> float:
    window = tokens[at - context : at + 1].long()[None]
    with torch.no_grad():
        nll_BT, _ = model.nll(window[:, :-1], window[:, 1:], model.initial_carry(1))
    return bits_per_token(float(nll_BT[0, -1]))


def test_loss_by_context_gives_each_token_exactly_its_context(span_run: workbench.Run) -> None:
    model, tokens = span_run.model.eval(), span_run.corpus.splits["test"][:60]
    points = probe.loss_by_context(model, tokens, [1, 5, 12], sample=8, stretches=2)
    # stretches of 4 tokens from 12 (the longest context) and from the end
    places = [*range(12, 16), *range(56, 60)]
    for point in points:
        expected = [by_hand(model, tokens, at, point.context_len) for at in places]
        assert point.bits == pytest.approx(float(np.mean(expected)), rel=1e-5)
    with pytest.raises(DataError, match="expected at least 1,002"):
        probe.loss_by_context(model, tokens, [1000], sample=4, stretches=2)


def test_attention_of_a_stretch_sums_to_one_under_its_mask(span_run: workbench.Run) -> None:
    text = probe.stretch(span_run.corpus.splits["valid"], 100, 24, before=32)
    seen = probe.attention(span_run.model.eval(), text)
    assert len(seen.probs_LHTS) == len(seen.masks_LHD) == 2
    for probs, mask in zip(seen.probs_LHTS, seen.masks_LHD, strict=True):
        assert probs.shape[:2] == (2, 24) and mask.shape == (2, 32)
        assert probs.sum(-1) == pytest.approx(np.ones((2, 24)), rel=1e-4)
        T, S = probs.shape[1:]
        distance = np.arange(T)[:, None] + S - T - np.arange(S)
        reach = int(np.flatnonzero(mask.max(0) > 0)[-1]) + 1
        assert (probs[:, distance > reach] == 0).all() and (probs[:, distance < 1] == 0).all()


def test_a_stretch_outside_the_text_is_refused() -> None:
    with pytest.raises(DataError, match="got start 90 and length 20"):
        probe.stretch(torch.arange(100), 90, 20, before=4)
    piece = probe.stretch(torch.arange(100), 3, 5, before=10)
    assert piece.before.tolist() == [0, 1, 2] and piece.tokens.tolist() == [3, 4, 5, 6, 7]


def test_both_rules_write_the_same_pairs_into_an_empty_memory(delta_run: workbench.Run) -> None:
    text = probe.stretch(delta_run.corpus.splits["valid"], 100, 12, before=16)
    inputs = probe.fast_weight_inputs(delta_run.model.eval(), text)
    assert len(inputs) == 2 and inputs[0].k_BTHF.shape[:3] == (1, 12, 2)
    assert inputs[0].state_BHFV.abs().sum() > 0, "the text before it was not read"
    both = probe.both_rules(inputs[0], head=1)
    k, v = (x[0, :, 1] for x in (inputs[0].k_BTHF, inputs[0].v_BTHV))
    assert both.W["sum"][-1] == pytest.approx((k.T @ v).numpy(), rel=1e-4, abs=1e-6)
    beta = inputs[0].beta_BTH
    assert beta is not None
    first = torch.outer(k[0], beta[0, 0, 1] * v[0]).numpy()
    assert both.W["delta"][0] == pytest.approx(first, rel=1e-4, abs=1e-7)
    assert both.reads["delta"].shape == (12, 12)
    # the first write lies alone in the memory: its key reads its value's direction
    assert both.reads["delta"][0, 0] == pytest.approx(1.0, abs=1e-4)


def test_baselines_are_bits_per_token_of_the_same_text(span_run: workbench.Run) -> None:
    tokens = span_run.corpus.splits["test"]
    found = probe.baselines(span_run.corpus, tokens)
    assert 0 < found["xz"] < found["unigram"] < 8 and 0 < found["gzip"] < found["unigram"]


def test_inspect_agrees_with_the_model_on_what_is_read(delta_run: workbench.Run) -> None:
    text = probe.stretch(delta_run.corpus.splits["valid"], 50, 8, before=0)
    inputs = probe.fast_weight_inputs(delta_run.model.eval(), text)[0]
    life = inspect.trajectory(inputs, 0, 0)
    reads = torch.einsum("tf,tfv->tv", inputs.q_BTHF[0, :, 0], life.W_TFV)
    assert torch.allclose(reads, life.read_TV, atol=1e-5)


@pytest.mark.parametrize("method", ["carried", "streams"])
def test_a_grid_of_caches_holds_what_evaluations_give(span_run: workbench.Run, method: str) -> None:
    model, tokens = span_run.model, span_run.corpus.splits["valid"][:200]
    config = EvalConfig(method=method, batch_size=3, segment_len=16)
    grid = probe.cache_grid(model, tokens, config, 40, [0.1, 1.0], [0.05, 0.2, 0.4])
    # a carried past is one past, in one row
    plain = workbench.evaluate(model, tokens, config)
    assert grid.plain_nats == pytest.approx(plain.mean_nats, abs=1e-5)
    for i, theta in enumerate([0.1, 1.0]):
        for j, lam in enumerate([0.05, 0.2, 0.4]):
            cache = CacheConfig(window=40, theta=theta, lam=lam)
            one = workbench.evaluate(model, tokens, config.model_copy(update={"cache": cache}))
            assert grid.mean_nats[i, j] == pytest.approx(one.mean_nats, abs=1e-5)
    with pytest.raises(ConfigError, match="carried or streams"):
        windows = EvalConfig(method="windows", context_len=4)
        probe.cache_grid(model, tokens, windows, 40, [1.0], [0.1])
