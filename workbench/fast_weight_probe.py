"""Fast-weight memories of a model, and the same keys under other feature maps and rules.

Papers: arXiv:2102.11174 sections 4.2 (delta rule) and 5 (feature maps).
Shapes: B batch, T segment, H heads, K a head's key before and F after its feature map, V value
width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from workbench import inspect, probe
from workbench.errors import ConfigError
from workbench.fast_weight_measures import Array, Head
from workbench.models.feature_maps import (
    Dpfp,
    DpfpConfig,
    Elu,
    EluConfig,
    Favor,
    FavorConfig,
    FeatureMap,
    Softmax,
    Tanh,
    features,
)
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.delta_recurrent import DeltaRecurrent
from workbench.models.mixers.fast_weight import FastWeight

RULES = ("delta", "sum")
_KINDS: dict[type[FeatureMap], str] = {
    Elu: "elu",
    Favor: "favor",
    Dpfp: "dpfp",
    Softmax: "softmax",
    Tanh: "tanh",
}


class Layer(NamedTuple):
    """What one fast-weight layer did with a stretch."""

    inputs: inspect.FastWeightInputs
    slow: inspect.SlowOutputs
    feature_map: FeatureMap

    @property
    def kind(self) -> str:
        """Name of the model's own feature map."""
        return _KINDS.get(type(self.feature_map), type(self.feature_map).__name__.lower())


def layers(model: LanguageModel, text: probe.Stretch) -> list[Layer]:
    """Look at all fast-weight layers while they read a stretch, after what lies before it."""
    carry = probe.after(model, text.before)
    with inspect.capture(model, "fast_weight_inputs", "slow_outputs") as taps:
        model(text.tokens[None].to(model.device), carry)
    mixers = [m for m in model.modules() if isinstance(m, FastWeight | DeltaRecurrent)]
    found = zip(taps["fast_weight_inputs"], taps["slow_outputs"], mixers, strict=True)
    return [Layer(inputs, slow, m.feature_map) for inputs, slow, m in found]


def head(inputs: inspect.FastWeightInputs, at: int, rule: str | None = None) -> Head:
    """The life of one head's matrix.

    Args:
        inputs: of its layer.
        at: which head, from 0.
        rule: `delta` or `sum`; None: the model's own.
    """
    life = inspect.trajectory(inputs, 0, at, rule)
    keys, values, start = (
        _numbers(x)
        for x in (inputs.k_BTHF[0, :, at], inputs.v_BTHV[0, :, at], inputs.state_BHFV[0, at])
    )
    strength, size = _numbers(life.write_strength_T), _numbers(life.update_norm_T)
    told = rule or inputs.rule
    return Head(_numbers(life.W_TFV), start, keys, values, strength, size, told)


def _numbers(x: Tensor) -> Array:
    return x.detach().double().cpu().numpy()


def under_maps(layer: Layer, seed: int = 1) -> dict[str, inspect.FastWeightInputs]:
    """The same keys and values as other feature maps would have them written, in an empty memory.

    All features are divided by their sum, which keeps the delta rule's writes bounded
    (arXiv:2102.11174 section 4.2). FAVOR+ has as many random directions as the key has entries,
    so as many features as DPFP with nu = 1, and its directions come from `seed`. The model's own
    map is among them, or takes the place of its kind, with its own size and normalisation: it
    alone is the one that these keys were learned for.

    Args:
        layer: its keys before the feature map.
        seed: of FAVOR+.

    Returns:
        name of the feature map -> what the layer would have written.
    """
    keys_BTHK, state = layer.slow.k_BTHK, layer.inputs.state_BHFV
    width = keys_BTHK.shape[-1]
    favor = FavorConfig(n_projections=width, redraw="never", orthogonal="columns")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps: dict[str, FeatureMap] = {
            c.kind: c.build(width) for c in (EluConfig(), favor, DpfpConfig())
        }
    found: dict[str, inspect.FastWeightInputs] = {}
    for name, feature_map in maps.items():
        keys_BTHF = features(feature_map.to(keys_BTHK.device), "sum", keys_BTHK)
        empty = state.new_zeros(*state.shape[:2], keys_BTHF.shape[-1], state.shape[-1])
        found[name] = layer.inputs._replace(
            q_BTHF=keys_BTHF, k_BTHF=keys_BTHF, beta_BTH=layer.slow.beta_BTH, state_BHFV=empty
        )
    found[layer.kind] = layer.inputs._replace(state_BHFV=torch.zeros_like(state))
    return found


def overwrite(key_F: ArrayLike, strength: float, again: int = 8) -> dict[str, Array]:
    """Write an old value under a key, then a new one under the same key again and again.

    The two values are orthogonal and have length 1, and the memory is empty before.

    Args:
        key_F: the key, after the feature map.
        strength: of the delta rule's writes, 0 to 1.
        again: writes of the new value.

    Returns:
        rule -> (1 + again,) share of the old value, in per cent of old and new, in what the key
        reads after each write.

    Raises:
        ConfigError: the strength is not above 0 and at most 1.
    """
    if not 0 < strength <= 1:
        raise ConfigError(f"strength: got {strength}, expected more than 0 and at most 1")
    key = torch.as_tensor(np.asarray(key_F), dtype=torch.float64)
    old_new = torch.tensor([[1.0, 0.0], *[[0.0, 1.0]] * again], dtype=torch.float64)
    keys = key.expand(1, 1 + again, -1)[:, :, None]
    beta = torch.full((1, 1 + again, 1), strength, dtype=torch.float64)
    empty = key.new_zeros(1, 1, len(key), 2)
    inputs = inspect.FastWeightInputs(keys, keys, old_new[None, :, None], beta, empty, "delta")
    found = {}
    for rule in RULES:
        old_T, new_T = _numbers(inspect.trajectory(inputs, 0, 0, rule).read_TV).T
        found[rule] = 100 * old_T / (old_T + new_T)
    return found
