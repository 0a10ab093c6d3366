"""Generation and scoring over a tiny model of every registered mixer: it is tested by existing.

What generation reads on, token by token, is what one pass over the whole text gives.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench import generate, score
from workbench.carry import flatten
from workbench.config import load
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.models.mixers.base import Limits, MixerConfig
from workbench.models.vocabulary import VocabularyConfig
from workbench.reading import Reader
from workbench.train.config import CacheConfig, EvalConfig

C, D, LENGTH, CONTEXT = 11, 16, 24, 64
CASES = [
    pytest.param(config, id=f"{kind}-{i}")
    for kind, family in MixerConfig.registry.items()
    for i, config in enumerate(family.tiny())
]
every_mixer = pytest.mark.parametrize("config", CASES)


def build(mixer: MixerConfig | dict[str, Any], **more: Any) -> LanguageModel:
    """Two layers of the mixer, in training mode: whoever reads must know better."""
    stack = [{"block": {"mixer": mixer}, "repeat": 2}]
    data = {"d_model": D, "stack": stack, "p_embedding": 0.5, **more}
    torch.manual_seed(4)
    model = load(ModelConfig, data).build(C).double()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    model.after_step()
    return model.train()


def tokens() -> Tensor:
    return torch.randint(C, (LENGTH,), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def whole(model: LanguageModel, ids: Tensor) -> Tensor:
    """(n, C) log-probabilities after each token, in one pass over the whole text."""
    limits = Limits(CONTEXT, "beyond_self")
    logp, _ = model.eval().log_probs(ids[None], model.initial_carry(1, limits))
    return logp[0]


@every_mixer
@pytest.mark.parametrize("pieces", [[1] * LENGTH, [9, 1, 14]], ids=["tokens", "pieces"])
def test_reading_on_equals_one_pass_over_the_text(config: MixerConfig, pieces: list[int]) -> None:
    model, ids = build(config), tokens()
    reader = Reader(model, EvalConfig(context_len=CONTEXT))
    got = torch.cat([reader.read(part) for part in ids[None].split(pieces, dim=1)])
    ends = [end - 1 for end in itertools.accumulate(pieces)]
    torch.testing.assert_close(got, whole(model, ids)[ends], rtol=0, atol=1e-10)


@every_mixer
def test_a_generated_text_scores_what_it_cost(config: MixerConfig) -> None:
    model = build(config)
    written = generate(model, [1, 2, 3], length=12, samples=3, seed=5, context_len=CONTEXT)
    drawn = list(written)
    assert model.training and all(p.grad is None for p in model.parameters())
    for i, ids in enumerate(written.ids):
        costs = torch.tensor([t.nats for t in drawn if t.sample == i], dtype=torch.float64)
        logp = whole(model, torch.tensor([1, 2, 3, *ids]))[2:-1]
        expected = -logp.gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(costs, expected, rtol=0, atol=1e-10)
        config_ = EvalConfig(context_len=CONTEXT)
        scored = score(model, ids, before=[1, 2, 3], config=config_, log_probs=True, alternatives=3)
        torch.testing.assert_close(scored.nll_nats, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(scored.log_probs, logp, rtol=0, atol=1e-10)
        assert torch.equal(scored.alternatives, logp.topk(3).indices)
        plain = score(model, ids, before=[1, 2, 3], config=config_).nll_nats
        torch.testing.assert_close(plain, expected, rtol=0, atol=1e-10)


@every_mixer
def test_reading_on_leaves_a_past_as_it_was(config: MixerConfig) -> None:
    model = build(config)
    first = generate(model, [1, 2], length=6, seed=1, context_len=CONTEXT)
    past = first.past()
    before = [x.clone() for state in flatten(past.state) for x in state if isinstance(x, Tensor)]
    again = [
        generate(model, length=5, seed=2, past=past, context_len=CONTEXT, samples=n).ids[0]
        for n in (1, 2)
    ]
    assert again[0] == again[1]
    whole_text = [1, 2, *first.ids[0]]
    anew = generate(model, whole_text, length=5, seed=2, context_len=CONTEXT)
    assert anew.ids[0] == again[0], "going on equals beginning again with all of the text"
    after = [x for state in flatten(past.state) for x in state if isinstance(x, Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


RESTARTING = {
    "ascending": ({"kind": "sinusoid", "order": "ascending"}, {"kind": "none"}),
    "descending": ({"kind": "sinusoid", "order": "descending"}, {"kind": "none"}),
    "per-layer": ({"kind": "none"}, {"kind": "learned", "n_positions": 9}),
}


@pytest.mark.parametrize("where", RESTARTING)
def test_where_position_codes_restart_the_window_is_read_again(where: str) -> None:
    positions, in_blocks = RESTARTING[where]
    mixers = [{"kind": "attention", "n_heads": 2, "d_head": 4, "positions": {"kind": "none"}}]
    mixers.append({"kind": "fast_weight", "n_heads": 2, "d_head": 4})
    data = {
        "d_model": D,
        "positions": positions,
        "stack": [{"block": {"mixer": mixer, "positions": in_blocks}} for mixer in mixers],
    }
    torch.manual_seed(1)
    model = load(ModelConfig, data).build(C).double()
    written = generate(model, [3, 1, 4], length=12, context_len=6, seed=3)
    costs = [t.nats for t in written]
    assert written.recomputes and written.settings == "windows, context_len 6"
    text = torch.tensor([3, 1, 4, *written.ids[0]])
    for t, cost in enumerate(costs, start=3):
        with torch.no_grad():
            logp, _ = model.log_probs(text[max(0, t - 6) : t][None], model.initial_carry(1))
        assert cost == pytest.approx(-float(logp[0, -1, text[t]]), abs=1e-10)
    config = EvalConfig(method="windows", context_len=6)
    scored = score(model, text[3:], before=text[:3], config=config)
    # codes may count from a window's end: the first window of an evaluation, which scores all its
    # positions at once, gives them other codes than windows that end there
    full = 0 if where == "ascending" else 3
    assert scored.nll_nats.tolist()[full:] == pytest.approx(costs[full:], abs=1e-10)


VOCABULARIES: dict[str, dict[str, Any]] = {
    "plain": {"d_embed": 6, "tie_projections": True, "sampled": {"n_samples": 4}},
    "adaptive": {"cutoffs": [4, 7], "div_val": 2, "cluster_order": "reversed"},
    "split": {"splits": [3, 8]},
}


@pytest.mark.parametrize("kind", VocabularyConfig.registry)
def test_every_vocabulary_is_read_from_and_scored(kind: str) -> None:
    xl = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": CONTEXT}
    model, ids = build(xl, vocabulary={"kind": kind, **VOCABULARIES[kind]}), tokens()
    reader = Reader(model, EvalConfig(context_len=CONTEXT))
    got = torch.cat([reader.read(one) for one in ids[None].split(1, dim=1)])
    expected = whole(model, ids)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(LENGTH, dtype=torch.float64))
    nats = -expected[:-1].gather(1, ids[1:, None])[:, 0]
    torch.testing.assert_close(score(model.train(), ids).nll_nats, nats, rtol=0, atol=1e-10)
    cache = CacheConfig(window=9, theta=0.3, lam=0.2)
    mixed = [
        score(model, ids, config=EvalConfig(cache=cache), log_probs=all_).nll_nats
        for all_ in (False, True)
    ]
    torch.testing.assert_close(*mixed, rtol=0, atol=1e-10)
    assert (mixed[0] - nats).abs().max() > 1e-3


def test_a_token_costs_the_same_however_long_the_text_is() -> None:
    """Recurrent states and full memories: one forward pass over one token each."""
    for kind in ("fast_weight", "attention"):
        mixer = {"kind": kind, "n_heads": 2, "d_head": 4}
        model = load(ModelConfig, {"d_model": D, "stack": [{"block": {"mixer": mixer}}]}).build(C)
        lengths: list[int] = []
        model.register_forward_hook(lambda m, args, out, seen=lengths: seen.append(args[0].shape))
        written = generate(model, [1] * 7, length=30, context_len=9).finish()
        assert lengths == [(1, 7)] + [(1, 1)] * 29 and not written.recomputes
