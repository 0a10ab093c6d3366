"""Measures of a fast-weight memory, against slow loops and against what is known exactly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_recipes import DELTA, write_recipe, write_text

import workbench
from workbench import fast_weight_measures as measures
from workbench import fast_weight_probe, inspect, probe
from workbench.errors import ConfigError
from workbench.models.feature_maps import FavorConfig

rng = np.random.default_rng(0)
T, F, V = 14, 6, 4


def life(rule: str = "delta", keys: np.ndarray | None = None, start: float = 1.0) -> measures.Head:
    """A made-up head, replayed by the package."""
    keys = rng.random((T, F)) if keys is None else keys
    inputs = inspect.FastWeightInputs(
        *(torch.as_tensor(keys, dtype=torch.float64)[None, :, None] for _ in "qk"),
        torch.as_tensor(rng.normal(size=(1, len(keys), 1, V))),
        torch.as_tensor(rng.random((1, len(keys), 1))) if rule == "delta" else None,
        start * torch.as_tensor(rng.normal(size=(1, 1, keys.shape[1], V))),
        rule,
    )
    return fast_weight_probe.head(inputs, 0)


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def test_gram_and_interference_by_loops() -> None:
    keys = rng.normal(size=(T, F))
    found = measures.gram(keys)
    pairs = [(i, j) for i in range(T) for j in range(T)]
    by_hand = {(i, j): cos(keys[i], keys[j]) for i, j in pairs}
    for pair in pairs:
        assert found[pair] == pytest.approx(by_hand[pair], abs=1e-12)
    told = measures.interference(found)
    assert told.overlap == pytest.approx(np.mean([abs(by_hand[p]) for p in pairs if p[0] != p[1]]))
    values = np.linalg.eigvalsh(found)
    assert told.directions == pytest.approx(values.sum() ** 2 / (values**2).sum())


def test_interference_of_orthogonal_and_of_equal_keys() -> None:
    twice = np.concatenate([np.eye(F), 3 * np.eye(F)])
    found = measures.interference(measures.gram(twice))
    assert found.directions == pytest.approx(F)
    # each key meets its double among 2F - 1 others
    assert found.overlap == pytest.approx(1 / (2 * F - 1))
    same = measures.interference(measures.gram(np.ones((5, F))))
    assert same == pytest.approx((1.0, 1.0))
    assert measures.gram(np.zeros((2, F))) == pytest.approx(np.zeros((2, 2)))


def test_effective_rank_of_many_matrices_by_the_definition() -> None:
    many = rng.normal(size=(3, F, V))
    for matrix, found in zip(many, measures.effective_rank(many), strict=True):
        # singular values as roots of the eigenvalues of W^T W
        s = np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix))
        entropy = -sum(p * math.log(p) for p in s / s.sum())
        assert found == pytest.approx(math.exp(entropy))
    special = np.stack([np.eye(F)[:, :V], np.outer(np.ones(F), np.ones(V)), np.zeros((F, V))])
    assert measures.effective_rank(special) == pytest.approx([V, 1, 0], abs=1e-6)


@pytest.mark.parametrize("rule", ["delta", "sum"])
def test_what_a_key_would_read_by_loops(rule: str) -> None:
    memory, token = life(rule), 5
    answer, key = measures.ask(memory, token), memory.keys_TF[token]
    before = memory.start_FV
    changes = []
    for t in range(T):
        k, v = memory.keys_TF[t], memory.values_TV[t]
        held = sum(k[f] * before[f] for f in range(F))
        changes.append(memory.strength_T[t] * (v - held) if rule == "delta" else v)
        before = before + np.outer(k, changes[-1])
        assert memory.W_TFV[t] == pytest.approx(before, rel=1e-4, abs=1e-5)
    for t in (0, 4, 5, T - 1):
        read = key @ memory.W_TFV[t]
        assert answer.own_T[t] == pytest.approx(cos(read, memory.values_TV[token]))
        parts = [(memory.keys_TF[s] @ key) * changes[s] for s in range(t + 1)]
        assert sum(parts) + key @ memory.start_FV == pytest.approx(read, rel=1e-4, abs=1e-4)
        for s in range(T):
            if s > t:
                assert np.isnan(answer.likeness_TT[t, s]) and np.isnan(answer.share_TT[t, s])
                continue
            assert answer.likeness_TT[t, s] == pytest.approx(cos(read, memory.values_TV[s]))
            share = parts[s] @ read / (read @ read)
            assert answer.share_TT[t, s] == pytest.approx(share, rel=1e-3, abs=1e-4)
        total = np.nansum(answer.share_TT[t]) + answer.share_before_T[t]
        assert total == pytest.approx(1.0, abs=1e-4)


def test_orthogonal_keys_are_all_recalled_up_to_the_limit() -> None:
    memory = life("sum", np.eye(F), start=0.0)
    found = measures.capacity(memory, count=F)
    assert memory.limit == F and found.directions == pytest.approx(F)
    assert found.after_A.tolist() == found.written_A.tolist() == list(range(1, F + 1))
    assert found.recalled_A.tolist() == list(range(1, F + 1))
    # one write has rank one, and the matrix has V columns
    assert found.rank_A[0] == pytest.approx(1.0) and found.rank_A[-1] <= V


def test_pairs_are_counted_once_and_lost_when_written_over() -> None:
    keys = np.eye(F)[[0, 1, 0, 0]]
    memory = life("sum", keys, start=0.0)
    values = np.eye(V)[[0, 1, 0, 2]]
    matrices = (keys[:, :, None] * values[:, None, :]).cumsum(0)
    # a new value under the first key replaces what it held
    matrices[3, 0] = values[3]
    memory = memory._replace(values_TV=values, W_TFV=matrices)
    first = measures.first_of_their_kind(keys, values)
    assert first.tolist() == [True, True, False, True]
    found = measures.capacity(memory, count=4)
    assert found.written_A.tolist() == [1, 2, 2, 3]
    # of the two pairs of the first key, the new one is left
    assert found.recalled_A.tolist() == [1, 2, 2, 2]


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_overwriting_follows_its_closed_form(strength: float) -> None:
    key = rng.random(F)
    key /= key.sum()
    found = fast_weight_probe.overwrite(key, strength, again=5)
    gone = strength * float(key @ key)
    for n in range(6):
        # delta: c (1 - c)^n of the old value, 1 - (1 - c)^n of the new, with c what is replaced
        old, new = gone * (1 - gone) ** n, 1 - (1 - gone) ** n
        assert found["delta"][n] == pytest.approx(100 * old / (old + new), rel=1e-4)
        assert found["sum"][n] == pytest.approx(100 / (1 + n), rel=1e-5)
    with pytest.raises(ConfigError, match=r"strength: got 1\.5"):
        fast_weight_probe.overwrite(key, 1.5)


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def dpfp(x: np.ndarray) -> np.ndarray:
    y = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], axis=-1)
    return np.stack([y[..., j] * y[..., j - 1] for j in range(y.shape[-1])], axis=-1)


def opened(tmp_path: Path, mixer: dict[str, object]) -> tuple[workbench.Run, probe.Stretch]:
    recipe = write_recipe(tmp_path / "r.yaml", write_text(tmp_path / "r.txt"), mixer)
    run = workbench.start(recipe, out=tmp_path / "run")
    run.model.eval()
    return run, probe.stretch(run.corpus.splits["valid"], 100, 12, before=16)


def test_other_feature_maps_get_the_same_keys(tmp_path: Path) -> None:
    run, text = opened(tmp_path, DELTA)
    layer = fast_weight_probe.layers(run.model, text)[1]
    found = fast_weight_probe.under_maps(layer)
    assert layer.kind == "elu" and list(found) == ["elu", "favor", "dpfp"]
    keys = layer.slow.k_BTHK[0, :, 1].double().numpy()
    for name, by_hand in (("elu", elu(keys)), ("dpfp", dpfp(keys))):
        expected = by_hand / by_hand.sum(-1, keepdims=True)
        assert found[name].k_BTHF[0, :, 1].numpy() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    # elu is the model's own, with the keys that it has written
    assert torch.equal(found["elu"].k_BTHF, layer.inputs.k_BTHF)
    assert found["favor"].k_BTHF.shape[-1] == found["dpfp"].k_BTHF.shape[-1] == 2 * 8
    assert found["favor"].k_BTHF.sum(-1) == pytest.approx(np.ones((1, 12, 2)), rel=1e-4)
    for each in found.values():
        assert not each.state_BHFV.any() and each.state_BHFV.shape[2] == each.k_BTHF.shape[3]
        assert torch.equal(each.v_BTHV, layer.inputs.v_BTHV)
    state, again = torch.random.get_rng_state(), fast_weight_probe.under_maps(layer)
    assert torch.equal(again["favor"].k_BTHF, found["favor"].k_BTHF)
    assert torch.equal(torch.random.get_rng_state(), state), "a draw for a picture changed others"


def test_favor_features_estimate_the_exponential(tmp_path: Path) -> None:
    """What `under_maps` builds is FAVOR+: its products estimate exp(q . k) without bias."""
    torch.manual_seed(0)
    k, q = (0.5 * torch.randn(4, dtype=torch.float64) for _ in "kq")
    config = FavorConfig(n_projections=4, redraw="never", orthogonal="columns", epsilon=0)
    draws = [config.build(4).double() for _ in range(3000)]
    estimates = torch.stack([m(k) @ m(q) for m in draws])
    error = float(estimates.std()) / len(draws) ** 0.5
    assert float(estimates.mean()) == pytest.approx(math.exp(float(k @ q)), abs=4 * error)


@pytest.mark.parametrize("kind", ["delta_rnn", "delta_lstm"])
def test_gates_are_so_many_more_heads(tmp_path: Path, kind: str) -> None:
    run, text = opened(tmp_path, {"kind": kind, "n_heads": 2, "d_head": 4})
    layer = fast_weight_probe.layers(run.model, text)[0]
    heads = layer.inputs.k_BTHF.shape[2]
    assert heads == (2 if kind == "delta_rnn" else 6)
    keys = elu(layer.slow.k_BTHK[0].double().numpy())
    own = layer.inputs.k_BTHF[0].numpy()
    assert own == pytest.approx(keys / keys.sum(-1, keepdims=True), rel=1e-4)
    assert layer.slow.beta_BTH is not None and layer.inputs.beta_BTH is not None
    assert torch.equal(layer.slow.beta_BTH, layer.inputs.beta_BTH)


def test_a_normalised_memory_keeps_plain_strengths_for_other_maps(tmp_path: Path) -> None:
    run, text = opened(tmp_path, {**DELTA, "read_norm": "memory"})
    layer = fast_weight_probe.layers(run.model, text)[0]
    found = fast_weight_probe.under_maps(layer)
    assert found["dpfp"].beta_BTH is layer.slow.beta_BTH
    strength = layer.slow.beta_BTH
    assert strength is not None and 0 < float(strength.min()) <= float(strength.max()) < 1
    # its own writes are scaled by how much the key reads of all before
    own = layer.inputs.beta_BTH
    assert own is not None and not torch.allclose(own, strength)
    memory = fast_weight_probe.head(layer.inputs, 0)
    assert memory.strength_T == pytest.approx(own[0, :, 0].double().numpy())
