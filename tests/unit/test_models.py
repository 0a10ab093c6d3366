"""The language model around its mixers: ends, sharing, initialisation, wiring of residuals."""

import math

import pytest
import torch

from workbench.config import load
from workbench.errors import ConfigError
from workbench.kernels.attention import align_distances
from workbench.models.blocks import BlockConfig
from workbench.models.language_model import ModelConfig, build_model
from workbench.models.mixers.base import Limits
from workbench.models.positions import AbsoluteSinusoid

XL = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 8}
SPAN = {
    **XL,
    "memory_start": "zeros",
    "attend_self": False,
    "positions": {"kind": "relative_learned", "max_distance": 8},
    "span": {"limit": 8, "ramp": 2, "penalty": 0.5, "initial": 0.25},
}
DELTA = {"kind": "fast_weight", "n_heads": 2, "d_head": 4}
FFN = {"kind": "feed_forward", "d_ffn": 12}


def config(*mixers, residual="post_norm", **fields):
    stack = [{"block": {"mixer": m, "channel": FFN, "residual": residual}} for m in mixers]
    return load(ModelConfig, {"d_model": 8, "stack": stack, **fields}, "model")


def tokens(length=10, rows=2, seed=0):
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mixer", [XL, SPAN, DELTA], ids=["xl", "span", "delta"])
@pytest.mark.parametrize("residual", ["post_norm", "pre_norm", "pre_norm_normalised"])
def test_log_probs_sum_to_one_and_agree_with_nll(mixer, residual):
    model = build_model(config(mixer, mixer, residual=residual), 11, seed=0).eval()
    x = tokens()
    log_probs, _ = model.log_probs(x[:, :-1], model.initial_carry(2))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 9))
    nll, _ = model.nll(x[:, :-1], x[:, 1:], model.initial_carry(2))
    torch.testing.assert_close(nll, -log_probs.gather(-1, x[:, 1:, None])[..., 0])


def test_shared_parameters_are_one_tensor_and_counted_once():
    model = build_model(config(XL, XL), 11)
    first, second = (layer.mixer.positions for layer in model.layers)
    assert first.u_HK is second.u_HK and first.v_HK is second.v_HK
    assert first.project.weight is not second.project.weight
    apart = dict(XL, positions={"kind": "relative_sinusoid", "share_biases": False})
    assert build_model(config(apart, apart), 11).n_parameters - model.n_parameters == 2 * 2 * 4


def test_shared_parameters_of_unequal_shape_are_refused():
    with pytest.raises(ConfigError, match=r"share positions\.u_HK"):
        build_model(config(XL, dict(XL, n_heads=1)), 11)


def test_tied_vocabulary_is_one_table():
    tied = build_model(config(XL), 11)
    assert tied.vocabulary.output.weight is tied.vocabulary.embedding.weight
    untied = build_model(config(XL, vocabulary={"kind": "plain", "tie_weights": False}), 11)
    assert untied.n_parameters - tied.n_parameters == 11 * 8
    assert tied.vocabulary.embed(torch.tensor([[3]])).squeeze().div(
        tied.vocabulary.embedding.weight[3]
    ).mean().item() == pytest.approx(math.sqrt(8))


def test_reach_adds_up_over_layers():
    assert build_model(config(XL, SPAN), 11).reach() == 16
    assert build_model(config(XL, SPAN), 11).reach(memory_len=5) == 10
    assert build_model(config(XL, DELTA), 11).reach() is None


def test_penalty_readings_and_clamp_of_spans():
    model = build_model(config(SPAN, SPAN), 11)
    assert model.penalties()["span"].item() == pytest.approx(2 * 0.5 * 8 * 0.25)
    assert model.readings() == {"span": [[2.0, 2.0], [2.0, 2.0]]}
    with torch.no_grad():
        model.layers[0].mixer.span.share_H.copy_(torch.tensor([-0.5, 1.5]))
    model.after_step()
    assert model.readings()["span"][0] == [0.0, 8.0]
    assert build_model(config(DELTA), 11).penalties() == {}


def test_initialisation_rule_of_transformer_xl():
    wide = config(dict(XL, n_heads=8, d_head=16), init_std=0.02).model_copy(update={"d_model": 128})
    model = build_model(wide, 500, seed=0)
    assert model.vocabulary.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.layers[0].mixer.query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    gain = model.layers[0].mixer_norm.weight
    assert gain.mean().item() == pytest.approx(1, abs=0.01) and gain.std() > 0.01
    assert model.layers[0].mixer.positions.u_HK.std().item() == pytest.approx(0.02, rel=0.2)
    assert not model.vocabulary.output.bias.any()


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (build_model(config(XL), 11, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["vocabulary.embedding.weight"], c["vocabulary.embedding.weight"])


def test_align_distances_closed_form():
    T, S = 3, 7
    by_distance = torch.arange(T * S).view(1, 1, T, S).float()
    aligned = align_distances(by_distance)
    for i in range(T):
        for j in range(i + S - T + 1):
            assert aligned[0, 0, i, j] == by_distance[0, 0, i, j + T - 1 - i]


def test_absolute_positions_ascend_or_descend():
    x = torch.zeros(1, 5, 8)
    up = AbsoluteSinusoid().build(8)(x, 5)
    down = AbsoluteSinusoid(order="descending").build(8)(x, 5)
    assert torch.equal(up, down.flip(1))
    torch.testing.assert_close(up[0, 0], torch.tensor([0.0] * 4 + [1.0] * 4))
    torch.testing.assert_close(up[0, 3, 1], torch.tensor(3 * 10000 ** (-2 / 8)).sin())


def test_odd_width_has_no_sinusoid():
    with pytest.raises(ConfigError, match="even width"):
        AbsoluteSinusoid().build(7)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"span": {"limit": 9}}, "no head can learn a key it has no code for"),
        ({"memory_len": 9}, "set memory_len to 8"),
        ({"memory_len": 0}, "attend_self"),
        ({"n_heads": 0}, "n_heads"),
        ({"span": {"limit": 8, "initial": 1.5}}, "span.initial"),
    ],
    ids=str,
)
def test_impossible_attention_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        config({**SPAN, **change})


def test_what_only_a_built_model_can_refuse_is_a_config_error_too():
    nu = {**DELTA, "feature_map": {"kind": "dpfp", "nu": 8}}
    with pytest.raises(
        ConfigError, match=r"feature_map\.nu: got 8, expected 1 to 2 \* d_head - 1 = 7"
    ):
        build_model(config(nu), 11)


def test_memory_normalised_reads_need_the_delta_rule():
    with pytest.raises(ConfigError, match="rule: delta"):
        config({**DELTA, "rule": "sum", "read_norm": "memory"})


def test_trimmed_memory_changes_nothing_but_its_size():
    long = dict(
        SPAN,
        memory_len=200,
        positions={"kind": "relative_learned", "max_distance": 200},
        span={"limit": 200, "ramp": 4, "initial": 0.1},
    )
    full = build_model(config(long), 11, seed=0).eval()
    short = build_model(config({**long, "span": {**long["span"], "trim_memory": True}}), 11)
    short.load_state_dict(full.state_dict())
    short.eval()
    carry_full, carry_short = full.initial_carry(2), short.initial_carry(2)
    for seed in range(4):
        a, carry_full = full(tokens(40, seed=seed), carry_full)
        b, carry_short = short(tokens(40, seed=seed), carry_short)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert carry_full[0].hidden_BMD.shape[1] == 200
    assert carry_short[0].hidden_BMD.shape[1] == 200 - 128 + 64


CODES = [
    {"kind": "sinusoid", "order": "descending"},
    {"kind": "sinusoid"},
    {"kind": "learned", "n_positions": 6},
]
PLAIN = {**XL, "positions": {"kind": "none"}}


@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("residual", ["post_norm", "pre_norm"])
def test_codes_of_a_layer_reach_memory_only_as_a_copy(codes, residual):
    """Segment by segment with clean memory: as if codes were added anew to all that is read."""
    block = {"mixer": PLAIN, "channel": FFN, "residual": residual, "positions": codes}
    model = build_model(
        load(ModelConfig, {"d_model": 8, "stack": [{"block": block}]}, "model"), 11, seed=0
    ).eval()
    (layer,), x = model.layers, torch.randn(2, 7, 8)
    empty = layer.mixer.initial_state(2)
    _, state = layer(x[:, :4], empty)
    torch.testing.assert_close(state.hidden_BMD, x[:, :4], rtol=0, atol=0)
    got, _ = layer(x[:, 4:], state)
    coded = layer.positions(x, 3)
    layer.positions = None
    norm = layer.mixer_norm if residual == "pre_norm" else lambda y: y
    y, _ = layer.mixer(norm(coded[:, 4:]), empty._replace(hidden_BMD=norm(coded[:, :4])))
    expected = coded[:, 4:] + y
    if residual == "post_norm":
        expected = layer.mixer_norm(expected)
        expected = layer.channel_norm(expected + layer.channel(expected))
    else:
        expected = expected + layer.channel(layer.channel_norm(expected))
    torch.testing.assert_close(got, expected)


def test_codes_of_the_model_refuse_memory_unless_they_are_to_pile_up():
    positions = {"kind": "sinusoid", "order": "descending"}
    model = build_model(config(dict(PLAIN, memory_len=0), positions=positions), 11)
    assert model.initial_carry(2)[0].memory_len == 0
    with pytest.raises(ConfigError, match="memory: accumulate"):
        model.initial_carry(2, Limits(memory_len=4))
    with pytest.raises(ConfigError, match="clamp_len"):
        model.initial_carry(2, Limits(clamp_len=4))
    piling = build_model(config(PLAIN, positions=positions | {"memory": "accumulate"}), 11, seed=0)
    x = tokens()
    _, carry = piling(x[:, :4], piling.initial_carry(2))
    before = carry[0].hidden_BMD.clone()
    _, after = piling(x[:, 4:7], carry)
    codes = piling.positions.codes(7, 3)
    torch.testing.assert_close(after[0].hidden_BMD[:, :4], before + codes[:4])
    assert torch.equal(carry[0].hidden_BMD, before), "the carry that was given is untouched"


def test_positions_and_normalised_residuals_do_not_meet():
    with pytest.raises(ConfigError, match="pre_norm_normalised"):
        load(BlockConfig, {"mixer": XL, "residual": "pre_norm_normalised", "positions": CODES[0]})
    quirk = {"mixer": dict(XL, normed_queries=False), "positions": CODES[0]}
    with pytest.raises(ConfigError, match="normed_queries"):
        load(BlockConfig, quirk)


def test_both_norms_take_the_epsilon():
    block = {"mixer": XL, "channel": FFN, "norm_eps": 1e-12}
    (layer,) = build_model(
        load(ModelConfig, {"d_model": 8, "stack": [{"block": block}]}), 11
    ).layers
    assert layer.mixer_norm.eps == layer.channel_norm.eps == 1e-12


def test_the_last_column_of_a_batch_is_scored_as_it_lies():
    """PyTorch would warn of the copy that it makes to sort such tokens into clusters."""
    vocabulary = {"kind": "adaptive", "cutoffs": [4, 8]}
    model = build_model(config(XL, vocabulary=vocabulary), 11, seed=0).vocabulary
    hidden_BTD, targets_BT = torch.randn(2, 10, 8), tokens()
    whole_BT = model.nll(hidden_BTD, targets_BT)
    torch.testing.assert_close(model.nll(hidden_BTD[:, -1:], targets_BT[:, -1:]), whole_BT[:, -1:])
