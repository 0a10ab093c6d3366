"""Dynamic spans (arXiv:1905.07799 section 2.2): against the formulas, written as loops."""

import math

import pytest
import torch

from workbench.config import load
from workbench.errors import ConfigError
from workbench.models.language_model import ModelConfig, build_model
from workbench.models.mixers.attention import AttentionConfig

LIMIT, RAMP, N_HEADS, D_HEAD, D_MODEL = 7, 3, 2, 4, 6
MIXER = {
    "kind": "attention",
    "n_heads": N_HEADS,
    "d_head": D_HEAD,
    "memory_len": LIMIT,
    "memory_start": "zeros",
    "attend_self": False,
    "positions": {"kind": "relative_learned", "max_distance": LIMIT},
    "span": {"limit": LIMIT, "ramp": RAMP, "penalty": 0.5, "initial": 0.25, "dynamic": True},
}


def mixer():
    torch.manual_seed(0)
    attention = load(AttentionConfig, MIXER, "mixer").build(D_MODEL).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, 0, 0.7)
    return attention


def span_by_formula(attention, x_D, head):
    v, b = attention.span.v_HD[head], attention.span.b_H[head]
    z = float(sum(a * c for a, c in zip(v.tolist(), x_D.tolist(), strict=True))) + float(b)
    return LIMIT / (1 + math.exp(-z))


def read_by_formula(attention, text_SD, query, head):
    """What one head reads at one position of a text, key by key (equations 1 to 4)."""
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    q, k, v = (linear.weight[rows] for linear in (attention.query, attention.key, attention.value))
    span = span_by_formula(attention, text_SD[query], head)
    scores, masks, values = [], [], []
    for distance in range(1, LIMIT + 1):
        x_D = text_SD[query - distance]
        code = attention.positions.key_KL[:, LIMIT - distance]
        scores.append(float((q @ text_SD[query]) @ (k @ x_D + code)) / math.sqrt(D_HEAD))
        masks.append(min(max((RAMP + 1 + span - distance) / RAMP, 0.0), 1.0))
        values.append(v @ x_D)
    top = max(scores)
    weights = [m * math.exp(s - top) for m, s in zip(masks, scores, strict=True)]
    total = sum(weights)
    return sum(w / total * value for w, value in zip(weights, values, strict=True))


def test_outputs_penalty_and_readings_are_the_formulas():
    attention = mixer()
    generator = torch.Generator().manual_seed(1)
    x_BTD = torch.randn(2, 9, D_MODEL, generator=generator, dtype=torch.float64)
    state, parts = attention.initial_state(2), []
    with torch.no_grad():
        for piece in x_BTD.split([4, 5], dim=1):
            y, state = attention(piece, state)
            parts.append(y)
        text = torch.cat([torch.zeros(2, LIMIT, D_MODEL, dtype=torch.float64), x_BTD], dim=1)
        for b in range(2):
            for t in range(9):
                heads = [read_by_formula(attention, text[b], LIMIT + t, h) for h in range(N_HEADS)]
                expected = attention.out(torch.cat(heads))
                # the 1e-8 in the normaliser
                torch.testing.assert_close(
                    torch.cat(parts, 1)[b, t], expected, rtol=1e-6, atol=1e-6
                )
        spans = [
            [span_by_formula(attention, x_BTD[b, t], h) for b in range(2) for t in range(4, 9)]
            for h in range(N_HEADS)
        ]
    means = [sum(z) / len(z) for z in spans]
    spreads = [
        math.sqrt(sum((z - m) ** 2 for z in zs) / len(zs))
        for zs, m in zip(spans, means, strict=True)
    ]
    assert attention.penalties()["span"].item() == pytest.approx(0.5 * sum(means) / N_HEADS)
    assert attention.readings()["span"].tolist() == pytest.approx(means)
    assert attention.readings()["span_spread"].tolist() == pytest.approx(spreads)


def model():
    block = {"mixer": MIXER, "channel": {"kind": "feed_forward", "d_ffn": 8}}
    config = load(ModelConfig, {"d_model": D_MODEL, "stack": [{"block": block}]}, "model")
    return build_model(config, 5, seed=0).train()


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_the_penalty_shortens_the_spans_of_the_tokens(compiled):
    trained = model()
    tokens = torch.randint(5, (3, 13), generator=torch.Generator().manual_seed(2))
    losses = torch.compile(trained.losses, backend="aot_eager") if compiled else trained.losses
    optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
    penalties = []
    for _ in range(4):
        _, terms, _ = losses(tokens[:, :-1], tokens[:, 1:], trained.initial_carry(3))
        optimizer.zero_grad()
        terms["span"].backward()
        optimizer.step()
        penalties.append(terms["span"].item())
    assert penalties[0] == pytest.approx(0.5 * LIMIT * 0.25), "every token at the initial span"
    assert penalties == sorted(penalties, reverse=True) and penalties[-1] < 0.9 * penalties[0]
    assert trained.layers[0].mixer.span.v_HD.grad.abs().sum() > 0, "tokens differ in their spans"
    assert min(trained.readings()["span_spread"][0]) > 0


def test_before_any_text_the_readings_are_those_of_the_bias():
    fresh = model()
    assert fresh.readings()["span"][0] == pytest.approx([0.25 * LIMIT] * N_HEADS)
    assert fresh.readings()["span_spread"] == [[0.0] * N_HEADS]


@pytest.mark.parametrize(
    ("change", "says"), [({"initial": 0.0}, "sigmoid"), ({"trim_memory": True}, "trim_memory")]
)
def test_impossible_dynamic_spans_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        load(AttentionConfig, {**MIXER, "span": {**MIXER["span"], **change}}, "mixer")
