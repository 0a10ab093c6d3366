"""The recurrent fast-weight layers against their equations, written out one row and head at a time.

What golden files cannot show is here: gradients of states, any depth, options that the authors'
code never had together.
"""

import pytest
import torch
from torch.nn.functional import elu

from workbench.config import load
from workbench.errors import ConfigError
from workbench.models.feature_maps import FavorConfig
from workbench.models.mixers.base import MixerConfig
from workbench.models.mixers.deep_delta import DeltaDeltaConfig, DeltaMLPConfig
from workbench.models.mixers.delta_recurrent import DeltaLSTMConfig, DeltaRNNConfig
from workbench.models.mixers.fast_weight import FastWeightConfig
from workbench.models.mixers.recurrent_delta import RecurrentDeltaConfig

B, T, H, K, D = 2, 5, 2, 3, 4
SIZES = {"n_heads": H, "d_head": K}


def build(config):
    torch.manual_seed(0)
    return config.build(D).double()


def random_state(mixer):
    """Every tensor of the state random and asking for a gradient."""
    state = mixer.initial_state(B)
    return type(state)(*(torch.rand_like(x).detach().requires_grad_() for x in state))


def assert_equal_with_gradients(mixer, naive):
    """`naive(mixed, state, head)` gives one row and head's values (T, V) before the output map."""
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    state = random_state(mixer)
    y, _ = mixer(x, state)
    mixed = mixer.project(x).view(B, T, H, -1)
    rows = [
        torch.stack([naive(mixed[b, :, h], [s[b] for s in state], h) for h in range(H)], dim=1)
        for b in range(B)
    ]
    expected = torch.stack(rows).flatten(2)
    expected = expected if mixer.out is None else mixer.out(expected)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    leaves = [x, *state, *mixer.parameters()]
    weights = torch.randn_like(y)
    got, want = (
        torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True, retain_graph=True)
        for out in (y, expected)
    )
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def write(W, k, v, beta):
    return W + torch.outer(k, beta * (v - W.T @ k))


def positive(x):
    return elu(x) + 1


def normed(x):
    return positive(x) / positive(x).sum()


def guarded(h):
    e = (h - h.max().detach()).exp()
    return e / (e.sum() + 1e-6)


def test_delta_rnn_fed_back_through_a_softmax():
    def naive(mixed, state, h):
        W, z, R, out, _ = state[0][0, h], state[1][h], state[2][0, h], state[3][h], None
        values = []
        for row in mixed:
            q, k, v, rk, rv = row[: 5 * K].view(5, K)
            beta, rbeta = row[5 * K :].sigmoid()
            W, R = write(W, normed(k), v, beta), write(R, rk.softmax(0), rv, rbeta)
            z = z + normed(k)
            out = W.T @ normed(q) + R.T @ guarded(out)
            values.append(out / K**0.5 / (z @ normed(q) + 1e-5))
        return torch.stack(values)

    assert_equal_with_gradients(build(DeltaRNNConfig(**SIZES, read_norm="output")), naive)


@pytest.mark.parametrize("update", ["linear", "sigmoid"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("softmax", ["feedback", "output"])
def test_delta_lstm(update, skip, softmax):
    def naive(mixed, state, h):
        Ws, Rs = list(state[0][:, h]), list(state[2][:, h])
        out, c = state[3][h], state[4][h]
        values = []
        for row in mixed:
            gates, betas = row[: 15 * K].view(3, 5, K), row[15 * K :].sigmoid().view(3, 2)
            fed, a, z = guarded(out) if softmax == "feedback" else out, [], []
            for g, (q, k, v, rk, rv) in enumerate(gates):
                Ws[g] = write(Ws[g], normed(k), v, betas[g, 0])
                Rs[g] = write(Rs[g], rk.softmax(0), rv, betas[g, 1])
                z.append(Ws[g].T @ normed(q))
                a.append(z[g] + Rs[g].T @ fed)
            i, o, u = a[0].sigmoid(), a[2].sigmoid(), a[1]
            u = u.sigmoid() if update == "sigmoid" else u
            c = i * u + (1 - i) * c
            out = o * c + (z[1] if skip else 0)
            out = out.softmax(0) if softmax == "output" else out
            values.append(out / K**0.5)
        return torch.stack(values)

    config = DeltaLSTMConfig(**SIZES, update=update, skip=skip, softmax=softmax)
    assert_equal_with_gradients(build(config), naive)


def test_recurrent_delta():
    mixer = build(RecurrentDeltaConfig(**SIZES))

    def naive(mixed, state, h):
        W, y, values = state[0][h], state[1][h], []
        for row in mixed:
            row = row + y.tanh() @ mixer.recurrent_HKX[h]
            q, k, v = row[: 3 * K].view(3, K)
            W = write(W, k.softmax(0), v, row[3 * K].sigmoid())
            y = W.T @ q.softmax(0)
            values.append(y / K**0.5)
        return torch.stack(values)

    assert_equal_with_gradients(mixer, naive)


def sum_normed(x):
    return positive(x) / (positive(x).sum() + 1e-5)


@pytest.mark.parametrize("unused", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_delta_mlp(depth, unused):
    F = 5
    config = DeltaMLPConfig(**SIZES, d_fast=F, depth=depth, unused_rows=unused)
    mixer = build(config)

    def naive(mixed, state, h):
        ups, downs, values = list(state[0][:, h]), list(state[1][:, h]), []
        pair = depth * (K + F)
        for row in mixed:
            q, keys, vals = row[:K], row[K : K + pair], row[K + pair : K + 2 * pair]
            betas = row[K + 2 * pair : K + 2 * pair + 2 * depth].sigmoid()
            for n in range(depth):
                k1, k2 = keys[n * (K + F) :][:K], keys[n * (K + F) + K :][:F]
                v1, v2 = vals[n * (K + F) :][:F], vals[n * (K + F) + F :][:K]
                ups[n] = write(ups[n], sum_normed(k1), v1, betas[2 * n])
                downs[n] = write(downs[n], sum_normed(k2), v2, betas[2 * n + 1])
                hidden = ups[n].T @ sum_normed(mixer.norms[n](q))
                q = q + downs[n].T @ sum_normed(hidden)
            values.append(q)
        return torch.stack(values)

    assert_equal_with_gradients(mixer, naive)


def test_delta_delta():
    def naive(mixed, state, h):
        first, second, values = state[0][h], state[1][h], []
        for row in mixed:
            first = write(
                first, sum_normed(row[K : 2 * K]), row[2 * K : 5 * K + 1], row[-1].sigmoid()
            )
            fast = first.T @ sum_normed(row[:K])
            q, k, v = fast[: 3 * K].view(3, K)
            second = write(second, sum_normed(k), v, fast[-1].sigmoid())
            values.append(second.T @ sum_normed(q))
        return torch.stack(values)

    assert_equal_with_gradients(build(DeltaDeltaConfig(**SIZES)), naive)


@pytest.mark.parametrize("kind", ["trained", "frozen"])
def test_base_weights_start_the_first_memory(kind):
    mixer = build(DeltaDeltaConfig(**SIZES, base_weights=kind))
    assert mixer.base_HKX.min() >= 1 and mixer.base_HKX.max() <= 2
    assert torch.equal(mixer.initial_state(B).first_BHKX, mixer.base_HKX.expand(B, -1, -1, -1))
    y, _ = mixer(torch.randn(B, T, D, dtype=torch.float64), mixer.initial_state(B))
    y.square().sum().backward()
    assert (mixer.base_HKX.grad is not None) == (kind == "trained")


def test_a_slow_lstm_makes_the_keys_and_hands_on_its_own_state():
    mixer = build(FastWeightConfig(**SIZES, slow_net="lstm"))
    linear = build(FastWeightConfig(**SIZES))
    state = random_state(mixer)
    x = torch.randn(B, T, D, dtype=torch.float64)
    made, slow = mixer.project(x, type(mixer.project.initial_state(B))(*state[2:]))
    linear.project, linear.out = torch.nn.Identity(), mixer.out
    expected, last = linear(made, linear.initial_state(B)._replace(W_BHFV=state.W_BHFV))
    y, after = mixer(x, state)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(after.W_BHFV, last.W_BHFV)
    assert torch.equal(after.h_BU, slow.h_BU) and torch.equal(after.c_BU, slow.c_BU)


@torch.no_grad()
def test_dropped_scores_leave_the_sum_of_keys_and_the_memory_whole():
    config = {**SIZES, "rule": "sum", "key_norm": "none", "read_norm": "output"}
    plain = build(FastWeightConfig(**config))
    dropping = build(FastWeightConfig(**config, p_attention=0.5))
    x, state = torch.randn(B, T, D, dtype=torch.float64), random_state(plain)
    expected, last = plain(x, state)
    torch.testing.assert_close(dropping.eval()(x, state)[0], expected)
    draws = [dropping.train()(x, state) for _ in range(300)]
    assert not torch.allclose(draws[0][0], draws[1][0])
    for _, after in draws[:3]:
        torch.testing.assert_close(after.W_BHFV, last.W_BHFV)
        torch.testing.assert_close(after.z_BHF, last.z_BHF)
    mean = torch.stack([y for y, _ in draws]).mean(0)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.1 * expected.abs().max().item())


def test_scores_are_dropped_under_the_sum_rule_only():
    fields = {"kind": "fast_weight", **SIZES, "p_attention": 0.1}
    with pytest.raises(ConfigError, match="the delta rule has none"):
        load(MixerConfig.registry["fast_weight"], fields)


@pytest.mark.parametrize("redraw", ["each_step", "never"])
def test_favor_redraws_once_a_training_segment_and_saves_the_last_matrix(redraw):
    config = FastWeightConfig(**SIZES, feature_map=FavorConfig(n_projections=4, redraw=redraw))
    mixer, x = build(config), torch.randn(B, T, D, dtype=torch.float64)

    def matrix():
        return mixer.state_dict()["feature_map.projection_KM"].clone()

    first = matrix()
    mixer.eval()(x, mixer.initial_state(B))
    assert torch.equal(matrix(), first), "evaluation uses what was drawn last"
    mixer.train()(x, mixer.initial_state(B))[0].sum().backward()
    assert torch.equal(matrix(), first) == (redraw == "never")
    other = build(config)
    other.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(
        other.eval()(x, other.initial_state(B))[0], mixer.eval()(x, mixer.initial_state(B))[0]
    )


def test_a_feature_map_of_another_width_serves_the_delta_rnn_too():
    config = DeltaRNNConfig(**SIZES, feature_map=FavorConfig(n_projections=4, redraw="never"))
    mixer = build(config)
    state = mixer.initial_state(B)
    assert state.W_BGHFV.shape == (B, 1, H, 8, K) and state.R_BGHKV.shape == (B, 1, H, K, K)
    mixer(torch.randn(B, T, D, dtype=torch.float64), state)


def test_queries_may_go_without_the_blocks_norm():
    config = {**SIZES, "rule": "sum", "key_norm": "none"}
    usual, raw = (build(FastWeightConfig(**config, normed_queries=n)) for n in (True, False))
    x = torch.randn(B, T, D, dtype=torch.float64)
    norm = torch.nn.LayerNorm(D).double()
    y, _ = raw(x, raw.initial_state(B), norm)
    # rows of the projection by head: query, key, value
    mixed = usual.project(norm(x)).view(B, T, H, 3, K).clone()
    mixed[:, :, :, 0] = usual.project(x).view(B, T, H, 3, K)[:, :, :, 0]
    out, usual.project = usual.out, torch.nn.Identity()
    expected, _ = usual(mixed.flatten(2), usual.initial_state(B))
    assert usual.out is out
    torch.testing.assert_close(y, expected)
