"""Sliding windows: the original procedure written plainly, and what a pass leaves out of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from workbench import score
from workbench.config import load
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.models.mixers.base import Limits, MixerConfig
from workbench.train import evaluate as module
from workbench.train.config import EvalConfig
from workbench.train.evaluate import evaluate

VOCAB, W = 23, 9
ADAPTIVE = {"kind": "adaptive", "cutoffs": [5, 12], "div_val": 2}
DESCENDING = {"kind": "sinusoid", "order": "descending"}
LEARNED = {"kind": "learned", "n_positions": 9}
CASES = [
    pytest.param(config, id=f"{kind}-{i}")
    for kind, family in MixerConfig.registry.items()
    for i, config in enumerate(family.tiny())
]
SOFTMAX: dict[str, Any] = {
    "kind": "attention", "n_heads": 2, "d_head": 4, "positions": {"kind": "none"},
}  # fmt: skip
DELTA: dict[str, Any] = {"kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "delta"}


def build(mixer: Any, block: dict[str, Any] | None = None, **more: Any) -> LanguageModel:
    block = {"mixer": mixer, "channel": {"kind": "feed_forward", "d_ffn": 24}, **(block or {})}
    if getattr(mixer, "d_hidden", 16) != 16 or getattr(mixer, "project_out", True) is False:
        # widths that change, which no residual bridges
        return widening(mixer, **more)
    data = {"d_model": 16, "stack": [{"block": block, "repeat": 2}], **more}
    return drawn(load(ModelConfig, {"vocabulary": ADAPTIVE, **data}).build(VOCAB))


def widening(mixer: Any, **more: Any) -> LanguageModel:
    width = mixer.build(16).d_out
    vocabulary = {"kind": "plain", "tie_weights": False, "d_hidden": width}
    data = {"d_model": 16, "stack": [{"block": {"mixer": mixer, "residual": "none"}}], **more}
    return drawn(load(ModelConfig, {"vocabulary": vocabulary, **data}).build(VOCAB))


def drawn(model: LanguageModel) -> LanguageModel:
    """With larger weights than at birth, so that a wrong context shows in every digit."""
    torch.manual_seed(5)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.3)
    model.after_step()
    return model.double()


def text(n: int) -> Tensor:
    return torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(n)).to(torch.uint8)


@torch.no_grad()
def plain(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Batch 1, every position through every layer and the softmax, as the code of the papers."""
    model.eval()
    nats = []
    for start in range(len(tokens) - W):
        ids = tokens[start : start + W + 1].long()[None]
        logp, _ = model.log_probs(ids[:, :-1], model.initial_carry(1, Limits(same_length="off")))
        of_targets = -logp[0].gather(1, ids[0, 1:, None])[:, 0]
        nats.append(of_targets if start == 0 else of_targets[-1:])
    return torch.cat(nats)


@pytest.mark.parametrize("config", CASES)
def test_every_mixer_as_in_the_plain_procedure(config: MixerConfig) -> None:
    model, tokens = (
        build(config, positions=DESCENDING if not config.has_memory else {"kind": "none"}),
        text(31),
    )
    expected = plain(model, tokens)
    for batch_size in (1, 5, 100):
        got = evaluate(model, tokens, windows(batch_size=batch_size))
        torch.testing.assert_close(got.nll_nats, expected, rtol=0, atol=1e-10)
    scored = score(model, tokens, config=windows(), alternatives=2).nll_nats
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-10)


def windows(**more: Any) -> EvalConfig:
    return EvalConfig(method="windows", context_len=W, **more)


@pytest.mark.parametrize("residual", ["post_norm", "pre_norm", "pre_norm_normalised"])
@pytest.mark.parametrize("mixer", [SOFTMAX, DELTA], ids=["softmax", "delta"])
@pytest.mark.parametrize("raw", [False, True])
def test_every_wiring_as_in_the_plain_procedure(
    mixer: dict[str, Any], residual: str, raw: bool
) -> None:
    block = {"residual": residual, "mixer": {**mixer, "normed_queries": not raw}}
    if residual != "pre_norm_normalised":
        block["positions"] = {**LEARNED, "memory": "accumulate" if raw else "clean"}
    model, tokens = build(mixer, block), text(25)
    got = evaluate(model, tokens, windows(batch_size=4)).nll_nats
    torch.testing.assert_close(got, plain(model, tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [2, W, W + 1, W + 2, 30])
@pytest.mark.parametrize("n_streams", [1, 2, 3])
@pytest.mark.parametrize("skip_first", [False, True])
def test_streams_of_windows(n: int, n_streams: int, skip_first: bool) -> None:
    model, tokens = build(DELTA, positions=DESCENDING), text(n * n_streams + n_streams - 1)
    config = windows(n_streams=n_streams, skip_first=skip_first, batch_size=4)
    got = evaluate(model, tokens, config)
    length = min(W, n - 1)
    first = length - 1 if skip_first else 0
    for b, nats in enumerate(got.nll_nats.view(n_streams, -1)):
        stream = tokens[b * n : (b + 1) * n]
        if length == W:
            torch.testing.assert_close(nats, plain(model, stream)[first:], rtol=0, atol=1e-10)
        assert len(nats) == n - 1 - first
    assert got.positions.tolist() == [
        b * n + t for b in range(n_streams) for t in range(1 + first, n)
    ]


@pytest.mark.parametrize("mixer", [SOFTMAX, DELTA], ids=["softmax", "delta"])
def test_only_scored_positions_are_written_out(mixer: dict[str, Any]) -> None:
    model = build(mixer, positions=DESCENDING)
    shapes: dict[str, list[tuple[int, ...]]] = {"channel": [], "out": [], "softmax": []}
    last = model.layers[-1]
    for name, module_ in (("channel", last.channel), ("out", last.mixer.get_submodule("out"))):
        assert module_ is not None
        module_.register_forward_pre_hook(
            lambda _, args, seen=shapes[name]: seen.append(tuple(args[0].shape[:2]))
        )
    nll = model.vocabulary.nll
    model.vocabulary.nll = (
        lambda hidden, targets: (  # type: ignore[method-assign]
            shapes["softmax"].append(tuple(hidden.shape[:2])) or nll(hidden, targets)  # type: ignore[func-returns-value]
        )
    )
    evaluate(model, text(W + 8), windows(batch_size=4))
    for seen in shapes.values():
        assert seen == [(1, W), (4, 1), (3, 1)]


def test_windows_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few on a CPU, whose cores and caches one window fills; many where tokens come in turn."""
    monkeypatch.setattr(module, "CACHED_TOKENS", 3 * W + 2)
    lstm = {"kind": "lstm", "d_hidden": 16, "project_out": True}
    for mixer, batch_size, rows in ((DELTA, 16, 3), (DELTA, 2, 2), (lstm, 16, 16)):
        model = build(load(MixerConfig.registry[mixer["kind"]], mixer), positions=DESCENDING)
        assert evaluate(model, text(60), windows(batch_size=batch_size)).rows == rows
    monkeypatch.setattr(module, "CACHED_TOKENS", 1)
    assert evaluate(build(DELTA), text(60), windows()).rows == 1
