"""Named taps and the replay of a fast-weight matrix, against the model's own outputs."""

import pytest
import torch

from workbench import inspect, kernels
from workbench.config import load
from workbench.models.language_model import ModelConfig, build_model

SPAN = {
    "kind": "attention",
    "n_heads": 2,
    "d_head": 4,
    "memory_len": 8,
    "memory_start": "zeros",
    "attend_self": False,
    "positions": {"kind": "relative_learned", "max_distance": 8},
    "span": {"limit": 8, "ramp": 2, "initial": 0.25},
    "persistent": {"n_vectors": 3},
}


def model_of(mixer):
    stack = [{"repeat": 2, "block": {"mixer": mixer}}]
    config = load(ModelConfig, {"d_model": 8, "stack": stack})
    return build_model(config, 11, seed=0).eval()


TOKENS = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))


def test_attention_maps_are_distributions_under_their_mask():
    model = model_of(SPAN)
    names = ("attention_probs", "persistent_probs", "span_mask")
    with inspect.capture(model, *names) as taps:
        model(TOKENS, model.initial_carry(2))
    assert [len(taps[name]) for name in names] == [2, 2, 2]
    probs, rest, mask = (taps[name][0] for name in names)
    assert probs.shape == (2, 2, 6, 14) and rest.shape == (2, 2, 6, 3) and mask.shape == (2, 8)
    torch.testing.assert_close(probs.sum(-1) + rest.sum(-1), torch.ones(2, 2, 6))
    # span 2, ramp 2: weight 1 up to distance 3, one half at 4, none from 5 on
    assert mask[0].tolist() == [1, 1, 1, 0.5, 0, 0, 0, 0]
    distance = torch.arange(8, 14)[:, None] - torch.arange(14)
    unseen = (distance < 1) | (distance > 4)
    assert not probs[:, :, unseen].any() and probs[:, :, ~unseen].gt(0).all()


@pytest.mark.parametrize("rule", ["sum", "delta"])
def test_replayed_fast_weights_equal_the_layers_own(rule):
    model = model_of({"kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": rule})
    carry = model(TOKENS.flip(1), model.initial_carry(2))[1]
    with inspect.capture(model, "fast_weight_inputs") as taps:
        _, after = model(TOKENS, carry)
    for layer in range(2):
        inputs = taps["fast_weight_inputs"][layer]
        for row, head in [(0, 0), (1, 1)]:
            life = inspect.trajectory(inputs, row, head)
            torch.testing.assert_close(life.W_TFV[-1], after[layer].W_BHFV[row, head].detach())
            q, k, v, beta, W = inputs[:5]
            op = kernels.delta_rule if rule == "delta" else kernels.sum_rule
            read = op(*(x for x in (q, k, v, beta, W) if x is not None))[0]
            torch.testing.assert_close(life.read_TV, read[row, :, head].detach())


@pytest.mark.parametrize(("kind", "gates"), [("delta_rnn", 1), ("delta_lstm", 3)])
def test_replayed_gates_equal_the_layers_own(kind, gates):
    model = model_of({"kind": kind, "n_heads": 2, "d_head": 4})
    carry = model(TOKENS.flip(1), model.initial_carry(2))[1]
    with inspect.capture(model, "fast_weight_inputs") as taps:
        _, after = model(TOKENS, carry)
    for layer, gate, head in [(0, 0, 1), (1, gates - 1, 0)]:
        life = inspect.trajectory(taps["fast_weight_inputs"][layer], 1, 2 * gate + head)
        own = after[layer].W_BGHFV[1, gate, head].detach()
        torch.testing.assert_close(life.W_TFV[-1], own)


def test_update_norm_is_the_size_of_the_change():
    model = model_of({"kind": "fast_weight", "n_heads": 2, "d_head": 4})
    with inspect.capture(model, "fast_weight_inputs") as taps:
        model(TOKENS, model.initial_carry(2))
    inputs = taps["fast_weight_inputs"][1]
    life = inspect.trajectory(inputs, 0, 1)
    steps = torch.diff(life.W_TFV, dim=0, prepend=inputs.state_BHFV[0, 1][None])
    torch.testing.assert_close(life.update_norm_T, steps.flatten(1).norm(dim=1))
    assert inspect.trajectory(inputs, 0, 1, "sum").write_strength_T.eq(1).all()


def test_read_back_is_perfect_after_a_full_write_with_orthonormal_keys():
    keys = torch.eye(4)[None, :, None]  # (1, T=4, H=1, F=4)
    values = torch.randn(1, 4, 1, 3, generator=torch.Generator().manual_seed(0))
    inputs = inspect.FastWeightInputs(
        keys, keys, values, torch.ones(1, 4, 1), torch.zeros(1, 1, 4, 3), "delta"
    )
    life = inspect.trajectory(inputs, 0, 0)
    torch.testing.assert_close(
        inspect.read_back(life, inputs, 0, 0, t=1), torch.tensor([0.0, 1.0, 1.0, 1.0])
    )


def test_nothing_is_recorded_outside_and_unknown_names_are_refused():
    model = model_of(SPAN)
    with inspect.capture(model, "attention_probs") as taps:
        pass
    model(TOKENS, model.initial_carry(2))
    assert taps == {"attention_probs": []}
    with pytest.raises(ValueError, match="attention_probs"), inspect.capture(model, "maps"):
        pass
