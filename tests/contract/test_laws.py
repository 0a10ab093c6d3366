"""The eight laws of carried state, over every registered mixer and each of its tiny configs.

A new mixer is tested by existing: `MixerConfig.registry` is the list of cases. The laws themselves
are in `workbench/laws.py`, where users of a mixer of their own find them too.
"""

from __future__ import annotations

from typing import Any

import pytest

from workbench import laws
from workbench.models import language_model as language_model
from workbench.models.mixers.base import MixerConfig

CASES = [
    pytest.param(config, id=f"{kind}-{i}")
    for kind, family in MixerConfig.registry.items()
    for i, config in enumerate(family.tiny())
]
STATES = CASES + [
    pytest.param(laws.Constant(case.values[0]), id=f"{case.id}-constant")
    for case in CASES
    if case.values[0].has_memory
]
on_configs = pytest.mark.parametrize("config", CASES)
on_states = pytest.mark.parametrize("config", STATES)


def test_there_are_mixers_of_every_family_to_try() -> None:
    assert len(MixerConfig.registry) >= 8 and len(CASES) > 30
    assert 0 < len(STATES) - len(CASES) < len(CASES)


@on_configs
def test_config_survives_yaml_data(config: MixerConfig) -> None:
    laws.yaml_data(config)


@on_states
@pytest.mark.parametrize("pieces", laws.PIECES, ids=str)
def test_law_1_split(config: Any, pieces: tuple[int, ...]) -> None:
    laws.split(config, pieces)


@on_states
@pytest.mark.parametrize("n_last", laws.LAST)
def test_the_last_outputs_alone_are_those_of_the_whole(config: Any, n_last: int) -> None:
    laws.last_outputs(config, n_last)


@on_states
def test_law_2_causal(config: Any) -> None:
    laws.causal(config)


@on_states
def test_law_3_rows(config: Any) -> None:
    laws.rows(config)


@on_states
def test_law_4_value(config: Any) -> None:
    laws.value(config)


@on_configs
def test_law_5_boundary(config: Any) -> None:
    laws.boundary(config)


@on_states
def test_law_6_round_trip(config: Any) -> None:
    laws.round_trip(config)


@on_configs
def test_law_7_compile(config: Any) -> None:
    laws.compiles(config)


@on_configs
def test_law_8_learns(config: Any) -> None:
    laws.learns(config)
