"""The eight laws of carried state, over every registered mixer and each of its tiny configs.

A new mixer is tested by existing: `MixerConfig.registry` is the list of cases.
"""

import functools
import io

import pytest
import torch

from workbench import carry as carry_
from workbench.config import dump, load
from workbench.models import language_model as language_model
from workbench.models.mixers import base as mixers
from workbench.models.mixers.base import MixerConfig

D_MODEL, BATCH, LENGTH = 8, 3, 24
CASES = [
    pytest.param(config, id=f"{kind}-{i}")
    for kind, family in MixerConfig.registry.items()
    for i, config in enumerate(family.tiny())
]


class Constant:
    """A config whose mixer is only read with: its state is that of constant weights."""

    def __init__(self, config):
        self.config = config

    def build(self, d_model):
        mixer = self.config.build(d_model)
        limits = mixers.Limits(constant_weights=True)
        mixer.initial_state = functools.partial(mixer.initial_state, limits=limits)
        mixer.forward, mixer.forward_last = map(
            torch.no_grad(), (mixer.forward, mixer.forward_last)
        )
        return mixer

    def __getattr__(self, name):
        return getattr(self.config, name)


STATES = CASES + [
    pytest.param(Constant(case.values[0]), id=f"{case.id}-constant")
    for case in CASES
    if case.values[0].has_memory
]


def build(config, dtype=torch.float64):
    torch.manual_seed(0)
    mixer = config.build(D_MODEL).to(dtype).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():  # zeros (u, v) would hide a term from the laws
            parameter.add_(0.1 * torch.rand_like(parameter))
    return mixer


def inputs(length=LENGTH, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, length, D_MODEL, generator=generator, dtype=dtype)


def leaves(state):
    return [x for x in state if isinstance(x, torch.Tensor)]


def assert_states_equal(a, b, **tolerance):
    assert type(a) is type(b)
    for x, y in zip(a, b, strict=True):
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(x, y, **tolerance)
        else:
            assert x == y


def run(mixer, x, pieces):
    """Feed `x` in segments of the given lengths from the initial state."""
    state, outputs = mixer.initial_state(len(x)), []
    for part in x.split(pieces, dim=1):
        y, state = mixer(part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("config", CASES)
def test_config_survives_yaml_data(config):
    assert load(type(config), dump(config)) == config


@pytest.mark.parametrize("config", STATES)
@pytest.mark.parametrize("pieces", [[1] * LENGTH, [7, 1, 16], [12, 12]], ids=str)
def test_law_1_split(config, pieces):
    mixer, x = build(config), inputs()
    whole, whole_state = run(mixer, x, [LENGTH])
    parts, parts_state = run(mixer, x, pieces)
    if getattr(config, "same_length", "off") == "off" and getattr(config, "limit", None) is None:
        assert mixer.reach() is None or mixer.reach() >= LENGTH, "the law needs memory long enough"
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)
    assert_states_equal(parts_state, whole_state, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("config", STATES)
@pytest.mark.parametrize("n_last", [1, 5, 10])
def test_the_last_outputs_alone_are_those_of_the_whole(config, n_last):
    mixer, x = build(config), inputs()
    _, state = mixer(x[:, :14], mixer.initial_state(BATCH))
    whole, whole_state = mixer(x[:, 14:], state)
    last, last_state = mixer.forward_last(x[:, 14:], state, n_last)
    torch.testing.assert_close(last, whole[:, -n_last:], rtol=0, atol=1e-12)
    assert_states_equal(last_state, whole_state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", STATES)
def test_law_2_causal(config):
    mixer, x = build(config), inputs()
    for t in (0, 9, LENGTH - 2):
        changed = x.clone()
        changed[:, t + 1] += 1.0
        y, _ = mixer(x, mixer.initial_state(BATCH))
        z, _ = mixer(changed, mixer.initial_state(BATCH))
        torch.testing.assert_close(z[:, : t + 1], y[:, : t + 1], rtol=0, atol=1e-12)
        assert (z[:, t + 1 :] != y[:, t + 1 :]).any(), "the change must be felt afterwards"


@pytest.mark.parametrize("config", STATES)
def test_law_3_rows(config):
    mixer, x = build(config), inputs()
    _, state = mixer(x, mixer.initial_state(BATCH))
    more = inputs(5, seed=2)
    whole, whole_state = mixer(more, state)
    cuts = [(0, 1), (1, BATCH)]
    parts = [mixer(more[a:b], carry_.rows((state,), a, b)[0]) for a, b in cuts]
    torch.testing.assert_close(torch.cat([y for y, _ in parts]), whole, rtol=0, atol=1e-12)
    joined = carry_.join([(s,) for _, s in parts])[0]
    assert_states_equal(joined, whole_state, rtol=0, atol=1e-12)
    for leaf in leaves(whole_state):
        assert leaf.shape[0] == BATCH, "every tensor leaf has batch on dim 0"


@pytest.mark.parametrize("config", STATES)
def test_law_4_value(config):
    mixer, x = build(config), inputs()
    _, state = mixer(x, mixer.initial_state(BATCH))
    before, x_before = [leaf.clone() for leaf in leaves(state)], x.clone()
    first, first_state = mixer(x, state)
    second, second_state = mixer(x, state)
    assert torch.equal(first, second)
    assert_states_equal(first_state, second_state, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(state), strict=True))
    assert torch.equal(x, x_before)


@pytest.mark.parametrize("config", CASES)
def test_law_5_boundary(config):
    mixer = build(config)
    x = inputs(4).requires_grad_()
    _, state = mixer(x, mixer.initial_state(BATCH))
    y, _ = mixer(inputs(4, seed=2), state)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    assert gradient.abs().sum() > 0, "the gradient crosses the segment boundary"
    y, _ = mixer(inputs(4, seed=2), carry_.detach((state,))[0])
    (gradient,) = torch.autograd.grad(y.square().sum(), x, allow_unused=True)
    assert gradient is None, "and a detached carry stops it"


@pytest.mark.parametrize("config", STATES)
def test_law_6_round_trip(config):
    mixer, x = build(config), inputs()
    _, state = mixer(x, mixer.initial_state(BATCH))
    file = io.BytesIO()
    torch.save({"weights": mixer.state_dict(), "carry": carry_.flatten((state,))}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    other = config.build(D_MODEL).to(torch.float64).eval()
    other.load_state_dict(loaded["weights"])
    restored = carry_.unflatten(loaded["carry"], like=(other.initial_state(BATCH),))[0]
    expected, got = mixer(x, state), other(x, restored)
    assert torch.equal(expected[0], got[0])
    assert_states_equal(expected[1], got[1], rtol=0, atol=0)


@pytest.mark.parametrize("config", CASES)
def test_law_7_compile(config):
    # two tokens: a loop over tokens is unrolled, and each one takes as long to compile
    mixer, x = build(config, torch.float32), inputs(2, dtype=torch.float32)
    x.requires_grad_()  # as in a model, where it comes from an embedding
    torch._dynamo.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    _, state = mixer(x, mixer.initial_state(BATCH))
    state = carry_.detach((state,))[0]  # as the trainer hands it on
    expected, got = mixer(x, state), compiled(x, state)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-6)
    assert_states_equal(got[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CASES)
def test_law_8_learns(config):
    """One layer learns to name the token before the last one, which no token alone tells."""
    model_config = language_model.ModelConfig.model_validate(
        {
            "d_model": 16,
            "stack": [
                {"block": {"mixer": config, "channel": {"kind": "feed_forward", "d_ffn": 32}}}
            ],
        }
    )
    model = language_model.build_model(model_config, vocab_size=8, seed=0).train()
    tokens = torch.randint(8, (8, 33), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        nll, _ = model.nll(tokens[:, 1:], tokens[:, :-1], model.initial_carry(8))
        optimizer.zero_grad()
        nll[:, 1:].mean().backward()
        optimizer.step()
        model.after_step()
        losses.append(nll[:, 1:].mean().item())
    assert losses[-1] < 0.75 * losses[0], losses[::5]
