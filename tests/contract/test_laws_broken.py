"""Each law can fail: mixers that break one of them are told so, and by which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import workbench
from workbench import laws
from workbench.errors import ConfigError, LawBroken
from workbench.models.mixers.base import (
    CONFIGURED,
    Limits,
    MixerConfig,
    Norm,
    SequenceMixer,
    identity,
)


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    known = dict(MixerConfig.registry)
    yield
    MixerConfig.registry.clear()
    MixerConfig.registry.update(known)


class SumState(NamedTuple):
    sum_BD: Tensor


class Sum(SequenceMixer):
    """`y_t = W (x_t, decayed sum of the past)`: obeys, where nothing is bent."""

    def __init__(self, config: Any, d_model: int):
        super().__init__()
        self.d_out, self.bent = d_model, config.bent
        self.out = nn.Linear(2 * d_model, d_model)
        self.kept: Any = None

    def initial_state(self, batch_size: int, limits: Limits = CONFIGURED) -> SumState:
        return SumState(self.out.weight.new_zeros(batch_size, self.d_out))

    def forward(
        self, x_BTD: Tensor, state: SumState, norm: Norm = identity
    ) -> tuple[Tensor, SumState]:
        sum_BD, sums = state[0], []
        for x_BD in norm(x_BTD).unbind(1):
            sums.append(sum_BD)
            sum_BD = 0.5 * sum_BD + x_BD
        y_BTD = self.out(torch.cat([x_BTD, torch.stack(sums, dim=1)], dim=-1))
        return self.bend(y_BTD, x_BTD, state, SumState(sum_BD))

    def bend(self, y: Tensor, x: Tensor, old: SumState, new: SumState) -> tuple[Tensor, Any]:
        match self.bent:
            case "future":
                y = y + x.roll(-1, 1)
            case "deaf":
                y = y.detach() * 0 + self.out.bias.sum()
            case "forgets":
                new = SumState(new.sum_BD * 0)
            case "mixes rows":
                y = y + old.sum_BD.sum(0)
            case "in place":
                old.sum_BD.add_(1)
            case "inside":
                self.kept = 0 if self.kept is None else self.kept + 1
                y = y + self.kept
            case "no gradient":
                new = SumState(new.sum_BD.detach())
            case "held":
                self.kept = new.sum_BD if self.kept is None else self.kept
                y = y + self.kept[:, None]
            case "cannot compile":
                y = y if y.sum().item() < 1e9 else x
            case "plain tuple":
                return y, (new.sum_BD,)
        return y, new


class SumConfig(MixerConfig):
    kind: Literal["sum"] = "sum"
    bent: str = ""

    def build(self, d_model: int) -> SequenceMixer:
        return Sum(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        return [cls()]


def broken_by(bent: str, *tried: str) -> str:
    with pytest.raises(LawBroken) as caught:
        workbench.check_mixer(SumConfig(bent=bent), tried or None)
    return str(caught.value)


def test_a_mixer_that_obeys_all() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    verdict = workbench.check_mixer(SumConfig)
    assert torch.equal(torch.rand(1), expected), "random numbers go on as if nothing had been drawn"
    assert verdict.broken == {law: {} for law in laws.LAWS}
    text = str(verdict)
    assert text.startswith("sum: 10 of 10 laws hold") and "BAD" not in text
    assert text.count("\n  ok ") == 10 and text.endswith("tried on SumConfig(bent='')")


@pytest.mark.parametrize(
    ("bent", "law", "words"),
    [
        ("future", "causal", "outputs up to token 0 when token 1 changes"),
        ("forgets", "split", "outputs in pieces of 1, 1,"),
        ("mixes rows", "rows", "outputs of rows by themselves and together"),
        ("in place", "value", "changed in place"),
        ("inside", "value", "the same input gave two outputs"),
        ("no gradient", "boundary", "no gradient crosses"),
        ("held", "boundary", "crosses a detached carry"),
        ("held", "round trip", "what is kept is not all"),
        ("cannot compile", "compile", "data-dependent"),
        ("deaf", "learns", "expected a quarter less"),
        ("deaf", "causal", "felt by no output"),
        ("plain tuple", "rows", "expected a NamedTuple"),
    ],
)
def test_a_mixer_that_breaks_one(bent: str, law: str, words: str) -> None:
    text = broken_by(bent, law)
    assert f"BAD {law}" in text and words in text and f"SumConfig(bent='{bent}')" in text


def test_all_that_is_wrong_is_told_at_once() -> None:
    text = broken_by("forgets", "split", "causal", "boundary")
    assert "1 of 3 laws hold" in text
    assert "BAD split" in text and "ok  causal" in text and "BAD boundary" in text


def test_last_outputs_and_yaml_are_promises_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(self: Any, x: Tensor, state: Any, n: int, norm: Any = None) -> Any:
        y, state = self(x, state)
        return y[:, :n], state

    monkeypatch.setattr(Sum, "forward_last", early)
    assert "BAD last outputs" in broken_by("", "last outputs")
    monkeypatch.setattr(SumConfig, "__eq__", lambda *_: False)
    assert "BAD yaml" in broken_by("", "yaml")


def test_a_law_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'causal'"):
        workbench.check_mixer(SumConfig, ["casual"])
