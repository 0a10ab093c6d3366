"""The continuous cache against a naive loop, and inside an evaluation."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from workbench.config import load
from workbench.errors import ConfigError
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.train import continuous_cache
from workbench.train.config import CacheConfig, EvalConfig
from workbench.train.continuous_cache import History, mix_log_probs, mix_nll
from workbench.train.evaluate import evaluate

C, D = 7, 4


def naive(
    logp_TC: Tensor, hidden_TD: Tensor, targets_T: Tensor, config: CacheConfig, segment_len: int
) -> list[list[float]]:
    """Probabilities of all classes, token by token, in plain Python numbers."""
    logp, hidden, targets = logp_TC.tolist(), hidden_TD.tolist(), targets_T.tolist()
    table = []
    for t in range(len(targets)):
        first = t - t % segment_len
        # what a segment starts with, and what it has added since
        held = min(first, config.window) + t - first
        p = [math.exp(x) for x in logp[t]]
        if held > (config.window if config.wait == "for_window" else 0):
            mass: dict[int, float] = defaultdict(float)
            for i in range(max(0, t - config.window), t):
                dot = sum(a * b for a, b in zip(hidden[i], hidden[t], strict=True))
                mass[targets[i]] += math.exp(config.theta * dot)
            total = sum(mass.values())
            p = [
                config.lam * mass[c] / total + (1 - config.lam) * x if total else x
                for c, x in enumerate(p)
            ]
        table.append(p)
    return table


def inputs(B: int = 2, n: int = 61) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    logp = torch.randn(B, n, C, generator=generator, dtype=torch.float64).log_softmax(-1)
    hidden = torch.randn(B, n, D, generator=generator, dtype=torch.float64)
    return logp, hidden, torch.randint(C, (B, n), generator=generator)


@pytest.mark.parametrize("wait", ["never", "for_window"])
@pytest.mark.parametrize("window", [1, 5, 12, 200])
@pytest.mark.parametrize("segment_len", [1, 4, 20, 61])
def test_it_equals_a_naive_loop(
    wait: str, window: int, segment_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous_cache, "PIECE", 8)
    config = load(CacheConfig, {"window": window, "theta": 0.9, "lam": 0.3, "wait": wait})
    logp, hidden, targets = inputs()
    nll = -logp.gather(-1, targets[..., None])[..., 0]
    history: History | None = None
    other: History | None = None
    mixed, every = [], []
    for a in range(0, 61, segment_len):
        cut = slice(a, a + segment_len)
        part = (hidden[:, cut], targets[:, cut])
        out, history = mix_nll(nll[:, cut], *part, history, config)
        mixed.append(out)
        out, other = mix_log_probs(logp[:, cut], *part, other, config)
        every.append(out)
        assert history.next_BM.shape[1] <= window
    expected = torch.tensor(
        [naive(*row, config, segment_len) for row in zip(logp, hidden, targets, strict=True)],
        dtype=torch.float64,
    )
    got = torch.cat(every, 1).exp()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.sum(-1), torch.ones(2, 61, dtype=torch.float64))
    target_p = expected.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(torch.cat(mixed, 1), -target_p.log(), rtol=0, atol=1e-12)


def build(kind: str) -> LanguageModel:
    mixer = {"kind": kind, "n_heads": 2, "d_head": 4}
    if kind == "attention":
        mixer["memory_len"] = 6
    torch.manual_seed(3)
    data = {"d_model": 8, "stack": [{"block": {"mixer": mixer}, "repeat": 2}], "p_output": 0.2}
    return load(ModelConfig, data).build(C).double()


@pytest.mark.parametrize("kind", ["attention", "fast_weight"])
@pytest.mark.parametrize("method", ["carried", "streams"])
def test_evaluation_with_a_cache(kind: str, method: str) -> None:
    model = build(kind)
    tokens = torch.randint(C, (80,), generator=torch.Generator().manual_seed(1))
    B = 2 if method == "streams" else 1
    cache = CacheConfig(window=9, theta=0.5, lam=0.2)
    config = EvalConfig(method=method, batch_size=2, segment_len=16, cache=cache)
    got = evaluate(model, tokens, config)
    plain = evaluate(model, tokens, config.model_copy(update={"cache": None, "batch_size": B}))
    assert not torch.equal(got.nll_nats, plain.nll_nats)
    assert got.rows == B and "window=9" in got.settings

    expected = []
    for stream in tokens.view(B, -1):
        with torch.no_grad():
            carry, hidden = model.eval().initial_carry(1), []
            if method == "carried":
                carry = tuple(
                    s._replace(window=s.memory_len) if kind == "attention" else s for s in carry
                )
            for part in stream[None, :-1].split(16, dim=1):
                h, carry = model(part, carry)
                hidden.append(h)
            h = torch.cat(hidden, 1)
            p = naive(model.vocabulary.log_probs(h)[0], h[0], stream[1:], cache, 16)
        expected += [-math.log(row[w]) for row, w in zip(p, stream[1:].tolist(), strict=True)]
    torch.testing.assert_close(got.nll_nats, torch.tensor(expected, dtype=torch.float64))


def test_float32_stays_within_noise_of_float64() -> None:
    config = CacheConfig(window=20, theta=2.0, lam=0.1)
    logp, hidden, targets = inputs()
    exact, _ = mix_log_probs(logp, hidden, targets, None, config)
    got, _ = mix_log_probs(logp.float(), hidden.float(), targets, None, config)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=2e-5)


def test_refusals() -> None:
    for wrong in ({"lam": 1.0}, {"lam": -0.1}, {"window": 0}, {"theta": -1.0}):
        with pytest.raises(ConfigError):
            load(CacheConfig, {"window": 3, "theta": 1.0, "lam": 0.1, **wrong})
