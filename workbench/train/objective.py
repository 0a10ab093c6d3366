"""What training minimises: nats per token, plus named penalties. Every term keeps its name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def objective(nll_BT: Tensor, penalties: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms of the loss; their sum is what is differentiated.

    Args:
        nll_BT: nats of each target.
        penalties: weighted scalars in nats per token, as `LanguageModel.penalties` gives them.

    Returns:
        {"nll": mean over all targets, and each penalty under its name}.

    Raises:
        ValueError: a penalty is no scalar or takes the name of the likelihood.
    """
    terms = {"nll": nll_BT.mean()}
    for name, value in penalties.items():
        if name in terms:
            raise ValueError(f"a penalty is called '{name}', which is the likelihood; rename it")
        if value.numel() != 1:
            raise ValueError(
                f"penalty '{name}' has shape {tuple(value.shape)}, expected a scalar in nats per "
                "token; reduce it in the mixer"
            )
        terms[name] = value.reshape(())
    return terms


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The scalar to differentiate."""
    return torch.stack([x.to(terms["nll"].dtype) for x in terms.values()]).sum()
