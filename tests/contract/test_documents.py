"""What the documents show is true: the example runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from workbench.models.mixers.base import MixerConfig

ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_the_example_mixer_obeys_the_laws() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    known = dict(MixerConfig.registry)
    try:
        # as a notebook cell would run it, without this file's own __future__ import
        code = compile(source, "CONTRIBUTING.md", "exec", dont_inherit=True)
        exec(code, {"__name__": "example"})
        mixers = [c.build(4).double() for c in MixerConfig.registry["leaky"].tiny()]
    finally:
        MixerConfig.registry.clear()
        MixerConfig.registry.update(known)
    for mixer in mixers:
        x_BTD = torch.randn(2, 9, 4, dtype=torch.float64)
        start = mixer.initial_state(2)
        whole, last = mixer(x_BTD, start)
        first, state = mixer(x_BTD[:, :5], start)
        second, state = mixer(x_BTD[:, 5:], state)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole)  # split, causal
        torch.testing.assert_close(state.mean_BD, last.mean_BD)
        assert not start.mean_BD.any()  # value
        assert last.mean_BD.any()
