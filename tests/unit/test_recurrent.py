"""Recurrent layers against PyTorch's own modules; weight drop; blocks that change the width."""

import pytest
import torch
from torch import nn

from workbench import kernels
from workbench.config import load
from workbench.errors import ConfigError
from workbench.models.language_model import ModelConfig, build_model
from workbench.models.mixers.base import MixerConfig

KINDS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def build(kind, **fields):
    torch.manual_seed(0)
    return MixerConfig.registry[kind](d_hidden=6, **fields).build(4).double()


def twin(mixer, kind):
    """PyTorch's module with the same parameters."""
    module = KINDS[kind](4, 6, batch_first=True).double()
    module.load_state_dict({f"{name}_l0": mixer.get_parameter(name).detach() for name in NAMES})
    return module


def run(mixer, x):
    return mixer(x, mixer.initial_state(len(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_states_and_gradients_are_pytorchs(kind):
    mixer, x = build(kind), torch.randn(2, 5, 4, dtype=torch.float64)
    module = twin(mixer, kind)
    y, state = run(mixer, x)
    expected, last = module(x)
    torch.testing.assert_close(y, expected)
    for leaf, want in zip(state, last if kind == "lstm" else [last], strict=True):
        torch.testing.assert_close(leaf, want[0])
    y.square().sum().backward()
    expected.square().sum().backward()
    for name in NAMES:
        want = module.get_parameter(f"{name}_l0").grad
        torch.testing.assert_close(mixer.get_parameter(name).grad, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_records_say_what_pytorch_ran_it_on(kind, dtype):
    mixer, x = build(kind).to(dtype), torch.randn(2, 5, 4, dtype=dtype)
    kernels.forget()
    with torch.profiler.profile() as profile:
        run(mixer, x)
    onednn = any("mkldnn_rnn_layer" in event.name for event in profile.events())
    assert kernels.ran() == {kind: "onednn" if onednn else "aten"}
    if torch.backends.mkldnn.is_available() and dtype == torch.float32:
        assert onednn == (kind == "lstm")
    kernels.forget()
    with torch.no_grad():
        run(mixer, x)
        assert kernels.ran() == {}
        run(mixer, x[:, :1])
    assert kernels.ran() == {kind: "aten"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_weight_is_used_for_the_whole_segment_and_the_raw_one_learns(kind):
    mixer, x = build(kind, p_weight=0.5), torch.randn(2, 5, 4, dtype=torch.float64)
    mask = (torch.rand_like(mixer.weight_hh) < 0.5).double() * 2
    mixer.drop_weight = lambda weight: weight * mask
    module = twin(mixer, kind)
    with torch.no_grad():
        module.weight_hh_l0.mul_(mask)
    y, _ = run(mixer, x)
    expected, _ = module(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(mixer.weight_hh.grad, module.weight_hh_l0.grad * mask)


def test_weight_drop_scales_the_survivors_in_training_only():
    mixer = build("lstm", p_weight=0.25)
    dropped = mixer.drop_weight(mixer.weight_hh)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], mixer.weight_hh[kept] / 0.75)
    assert 0.6 < kept.double().mean() < 0.9
    assert torch.equal(mixer.eval().drop_weight(mixer.weight_hh), mixer.weight_hh)


def bare(*widths):
    blocks = [
        {"block": {"mixer": {"kind": "lstm", "d_hidden": w}, "residual": "none"}} for w in widths
    ]
    return load(ModelConfig, {"d_model": 4, "stack": blocks}, "model")


def test_without_residual_each_block_is_as_wide_as_the_one_below_ends():
    model = build_model(bare(9, 7, 4), 11, seed=0)
    assert [layer.mixer.weight_ih.shape[1] for layer in model.layers] == [4, 9, 7]
    x = torch.randint(11, (2, 5))
    hidden, carry = model(x, model.initial_carry(2))
    assert hidden.shape == (2, 5, 4)
    assert [state.h_BU.shape[1] for state in carry] == [9, 7, 4]
    embedded = model.vocabulary.embed(x)
    expected, _ = model.layers[0].mixer(embedded, model.initial_carry(2)[0])
    assert torch.equal(model.layers[0](embedded, model.initial_carry(2)[0])[0], expected)


def test_the_last_width_must_be_the_vocabularys():
    with pytest.raises(ConfigError, match="ends in width 9, but the vocabulary reads 4"):
        build_model(bare(7, 9), 11)


def block(**fields):
    mixer = {"kind": "rnn", "d_hidden": 4}
    stack = [{"block": {"mixer": mixer, "channel": {"kind": "feed_forward", "d_ffn": 5}, **fields}}]
    model = build_model(load(ModelConfig, {"d_model": 4, "stack": stack}, "model"), 11, seed=0)
    return model.layers[0]


@pytest.mark.parametrize("residual", ["post_norm", "pre_norm", "pre_norm_normalised"])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_a_mixers_branch_without_its_norm_or_its_residual(residual, adds, norm):
    it = block(residual=residual, mixer_residual=adds, mixer_norm=norm)
    x, state = torch.randn(2, 5, 4), it.mixer.initial_state(2)
    post, read = residual == "post_norm", x
    if norm and not post:
        read = torch.nn.functional.layer_norm(x, (4,))
    y, _ = it.mixer(read, state)
    if adds:
        y = y + (read if residual == "pre_norm_normalised" else x)
    if norm and post:
        y = torch.nn.functional.layer_norm(y, (4,))
    y = it.channel_norm(y + it.channel(y)) if post else y + it.channel(it.channel_norm(y))
    torch.testing.assert_close(it(x, state)[0], y)
    assert isinstance(it.mixer_norm, nn.LayerNorm) == norm


def test_no_residual_leaves_no_room_for_a_channel_mixer():
    with pytest.raises(ConfigError, match="channel is feed_forward, which needs a residual"):
        block(residual="none")
