"""Sampled softmax: in training the sum over all classes becomes one over a few drawn ones.

Classes must be numbered by falling frequency. They are drawn with replacement from the log-uniform
(Zipf) distribution `P(c) = ln((c + 2) / (c + 1)) / ln(C + 1)`, and each is used once. Every logit,
the target's too, loses the logarithm of the chance that its class was drawn at all: what then tells
the target from the others is the logit of the full softmax.
Paper: arXiv:1412.2007 section 3; the option of arXiv:1901.02860's code, which cannot run there.
Shapes: * any, E embedding width, C classes, S distinct classes drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from workbench.config import Config, Positive
from workbench.models.draws import of_weights

# below every logit, and finite: a row of nothing but accidental hits stays free of NaN
NEVER = -1e30


class SampledConfig(Config):
    """How many classes a training step looks at."""

    n_samples: Positive
    """twice as many are drawn, with replacement, for all tokens of a segment together"""


def log_uniform(n_classes: int) -> Tensor:
    """(C,) probabilities of one draw, in float64."""
    ranks_C = torch.arange(1, n_classes + 1, dtype=torch.float64)
    return (1 / ranks_C).log1p() / math.log(n_classes + 1)


def log_expected(p_C: Tensor, n_draws: int, sign_slip: bool = False) -> Tensor:
    """(C,) `log(1 - (1 - p)^n)`: the chance that a class is among the drawn ones.

    Args:
        p_C: probabilities of one draw, in float64: `1 - p` rounds away the rare classes in float32.
        n_draws: draws with replacement.
        sign_slip: `log(1 - (1 + p)^-n)` instead, as arXiv:1901.02860's code computes it.
    """
    log_missed_C = n_draws * (-p_C.log1p() if sign_slip else (-p_C).log1p())
    return (-log_missed_C.expm1()).log()


def sampled_logits(
    hidden_E: Tensor,
    targets: Tensor,
    weight_CE: Tensor,
    bias_C: Tensor | None,
    drawn_S: Tensor,
    log_expected_C: Tensor,
) -> Tensor:
    """The corrected logits of the target and of the drawn classes.

    Args:
        hidden_E: (*, E) what the softmax reads.
        targets: (*) ids.
        weight_CE, bias_C: the softmax's parameters.
        drawn_S: distinct ids, the same for all targets.
        log_expected_C: as `log_expected` gives it.

    Returns:
        (*, 1 + S), the target first; drawn classes that are the target get `NEVER`.
    """
    offset_C = -log_expected_C if bias_C is None else bias_C - log_expected_C
    target_logit = (hidden_E * weight_CE[targets]).sum(-1) + offset_C[targets]
    logits_S = hidden_E @ weight_CE[drawn_S].T + offset_C[drawn_S]
    hit_S = targets[..., None] == drawn_S
    return torch.cat([target_logit[..., None], logits_S.masked_fill(hit_S, NEVER)], dim=-1)


class LogUniform(nn.Module):
    """The sampler, and what a softmax over its classes sees."""

    def __init__(self, config: SampledConfig, n_classes: int):
        super().__init__()
        self.n_draws, self.n_classes = 2 * config.n_samples, n_classes
        expected_C = log_expected(log_uniform(n_classes), self.n_draws)
        self.register_buffer("log_expected_C", expected_C.float(), persistent=False)

    def draw(self, device: torch.device) -> Tensor:
        """(S,) distinct ids, at most `n_draws`."""
        # the distribution's own inverse: no table of C probabilities is searched
        u = of_weights(device, lambda: torch.rand(self.n_draws, dtype=torch.float64, device=device))
        ids = (u * math.log(self.n_classes + 1)).exp().long() - 1
        return ids.clamp(max=self.n_classes - 1).unique()

    def logits(
        self, hidden_BTE: Tensor, targets_BT: Tensor, weight_CE: Tensor, bias_C: Tensor | None
    ) -> Tensor:
        """As `sampled_logits`, of classes drawn anew at each call.

        The loss over them is less than the full softmax's, and least for the same logits up to a
        constant.
        """
        expected_C = self.get_buffer("log_expected_C")
        drawn_S = self.draw(hidden_BTE.device)
        return sampled_logits(hidden_BTE, targets_BT, weight_CE, bias_C, drawn_S, expected_C)
