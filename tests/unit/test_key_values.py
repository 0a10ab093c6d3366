"""Keys and values kept instead of inputs: the same numbers, each projected once, copied seldom."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workbench import carry as carry_
from workbench.config import load
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.models.mixers import attention
from workbench.models.mixers.attention import AttentionConfig, Memory
from workbench.models.mixers.base import Limits
from workbench.models.mixers.key_values import Buffer, KeyValues

D, B = 8, 2
XL: dict[str, Any] = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 9}
SPAN = XL | {"attend_self": False, "memory_start": "zeros"}
LEARNED = {"kind": "relative_learned", "max_distance": 30}
LEARNED_SPAN = {"limit": 30, "ramp": 3, "initial": 0.2}
CONFIGS = {
    "xl": XL,
    "clamped": XL | {"positions": {"kind": "relative_sinusoid", "clamp_len": 4}},
    "including self": XL | {"same_length": "including_self"},
    "beyond self": XL | {"same_length": "beyond_self"},
    "table": XL | {"positions": {"kind": "relative_table", "n_distances": 5}},
    "no positions": XL | {"positions": {"kind": "none"}},
    "raw queries": XL | {"positions": {"kind": "none"}, "normed_queries": False},
    "swapped": XL | {"ext_memory": "swapped"},
    "zeros": XL | {"memory_start": "zeros"},
    "zeros, swapped": XL | {"memory_start": "zeros", "ext_memory": "swapped"},
    "span, swapped": SPAN | {"ext_memory": "swapped", "memory_len": 24, "positions": LEARNED,
                             "span": LEARNED_SPAN | {"trim_keys": True}},
    "persistent": XL | {"persistent": {"n_vectors": 3}},
    "span": SPAN | {"positions": LEARNED, "span": LEARNED_SPAN},
    "span, keys trimmed": SPAN | {"positions": LEARNED, "span": LEARNED_SPAN | {"trim_keys": True}},
    "span, memory trimmed": SPAN
    | {"memory_len": 30, "positions": LEARNED, "span": LEARNED_SPAN | {"trim_memory": True}},
    "span, from nothing": XL
    | {"positions": LEARNED, "span": LEARNED_SPAN | {"trim_memory": True}},
    "span of each token": SPAN | {"positions": LEARNED, "span": LEARNED_SPAN | {"dynamic": True}},
    "all": SPAN
    | {"positions": LEARNED, "span": LEARNED_SPAN, "persistent": {"n_vectors": 3}},
}  # fmt: skip
CUTS = [[1] * 40, [7, 1, 1, 16, 15], [40], [5] * 8]


def built(name: str) -> tuple[attention.Attention, nn.LayerNorm]:
    torch.manual_seed(1)
    mixer = load(AttentionConfig, CONFIGS[name]).build(D).double().eval()
    norm = nn.LayerNorm(D).double()
    for parameter in [*mixer.parameters(), *norm.parameters()]:
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    mixer.after_step()
    assert isinstance(mixer, attention.Attention)
    return mixer, norm


def inputs(length: int = 40) -> Tensor:
    return torch.randn(
        B, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )


@pytest.fixture(autouse=True)
def no_gradients(monkeypatch: pytest.MonkeyPatch) -> Any:
    # spans are trimmed in steps that tiny ones would never reach
    monkeypatch.setattr(attention, "TRIM_STEP", 4)
    monkeypatch.setattr("workbench.models.mixers.span.TRIM_STEP", 4)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cut", CUTS, ids=["tokens", "pieces", "whole", "segments"])
@pytest.mark.parametrize(
    "limits",
    [Limits(), Limits(6, "beyond_self", 3), Limits(40)],
    ids=lambda limits: f"{limits[:3]}",
)
def test_the_same_numbers_as_from_inputs(name: str, cut: list[int], limits: Limits) -> None:
    mixer, norm = built(name)
    known: Any = mixer.initial_state(B, limits._replace(constant_weights=True))
    state: Any = mixer.initial_state(B, limits)
    assert isinstance(known, KeyValues) and isinstance(state, Memory)
    for x_BTD in inputs().split(cut, dim=1):
        expected, state = mixer(x_BTD, state, norm)
        n_last = (x_BTD.shape[1] + 1) // 2
        last, _ = mixer.forward_last(x_BTD, known, n_last, norm)
        got, known = mixer(x_BTD, known, norm)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(last, expected[:, -n_last:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["xl", "swapped", "beyond self", "zeros, swapped", "span, swapped"]
)
@pytest.mark.parametrize("ext_len", [1, 3, 5, 7])
def test_repeated_tokens_are_not_kept(name: str, ext_len: int) -> None:
    mixer, norm = built(name)
    states: list[Any] = [
        mixer.initial_state(B, Limits(ext_len=ext_len, constant_weights=known))
        for known in (False, True)
    ]
    for start in range(0, 35, 5):
        x_BTD = inputs()[:, max(0, start - ext_len) : start + 5]
        outputs = []
        for i, state in enumerate(states):
            y_BTD, states[i] = mixer(x_BTD, state, norm)
            outputs.append(y_BTD)
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


def test_no_state_sees_what_comes_after_it() -> None:
    """Going on from any earlier state, as often as one likes, in any order."""
    mixer, norm = built("xl")
    x_BTD, limits = inputs(), Limits(20, "beyond_self")
    states: list[Any] = [mixer.initial_state(B, limits._replace(constant_weights=True))]
    for one in x_BTD.split(1, dim=1):
        states.append(mixer(one, states[-1], norm)[1])
    before = [[leaf.clone() for leaf in state[:2]] for state in states]
    expected, _ = mixer(x_BTD, mixer.initial_state(B, limits), norm)
    for start in (0, 17, 39, 5, 39, 17, 38):
        cuts = (carry_.rows((states[start],), b, b + 1)[0] for b in range(B))
        (joined,) = carry_.join([(state,) for state in cuts])
        for state in (states[start], joined):
            got, _ = mixer(x_BTD[:, start:], state, norm)
            torch.testing.assert_close(got, expected[:, start:], rtol=0, atol=1e-12)
    for state, leaves in zip(states, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(state[:2], leaves, strict=True))


def test_each_token_is_projected_once_and_the_past_is_seldom_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mixer, norm = built("xl")
    made: list[int] = []
    init = Buffer.__init__

    def counted(self: Buffer, keys: Tensor, *rest: Any) -> None:
        made.append(keys.shape[1])
        init(self, keys, *rest)

    monkeypatch.setattr(Buffer, "__init__", counted)
    rows = dict.fromkeys(("key", "value", "positions.project"), 0)
    for name in rows:

        def count(_: nn.Module, args: Any, __: Any, name: str = name) -> None:
            rows[name] += args[0].shape[-2]

        mixer.get_submodule(name).register_forward_hook(count)
    limits = Limits(400, constant_weights=True)
    state = mixer.initial_state(B, limits)
    x_BTD, n = inputs(), 2000
    for x in itertools.islice(itertools.cycle(x_BTD.split(1, dim=1)), n):
        _, state = mixer(x, state, norm)
    assert rows["key"] == rows["value"] == n
    # room for a quarter more each time, and codes for all that it can hold
    assert len(made) < 30 and sum(made) < 4 * n
    assert rows["positions.project"] < 6 * 500


RESTARTING: dict[str, dict[str, Any]] = {
    "accumulated": {"positions": {"kind": "sinusoid", "memory": "accumulate"}},
    "per layer": {"block": {"positions": {"kind": "learned", "n_positions": 9}}},
}


@pytest.mark.parametrize("where", [None, *RESTARTING])
def test_where_codes_restart_inputs_are_kept(where: str | None) -> None:
    fields = dict(RESTARTING[where]) if where else {}
    block = {"mixer": CONFIGS["no positions"], **fields.pop("block", {})}
    model = load(ModelConfig, {"d_model": D, "stack": [{"block": block}], **fields}).build(7)
    assert isinstance(model, LanguageModel)
    (state,) = model.initial_carry(1, Limits(constant_weights=True))
    assert type(state) is (Memory if where else KeyValues)
    assert type(model.initial_carry(1)[0]) is Memory, "training follows its weights"
