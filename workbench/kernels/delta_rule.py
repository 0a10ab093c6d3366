"""The delta rule: replace what a matrix holds under a key, read it with the query.

Paper: arXiv:2102.11174 eq. 23 to 25 (section 4.1).
Shapes: B batch, T segment, H heads, F key features, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.kernels.checks import check_fast_weights
from workbench.kernels.dispatch import Op


def reference(
    q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor, beta_BTH: Tensor, state_BHFV: Tensor
) -> tuple[Tensor, Tensor]:
    """Correct then read, token by token: `W += k (beta (v - W^T k))^T; y = W^T q`.

    Args:
        q_BTHF: queries, already mapped and normalised; nothing is scaled here.
        k_BTHF: keys, likewise.
        v_BTHV: values.
        beta_BTH: write strengths, 0 (keep what is there) to 1 (replace it).
        state_BHFV: W before the first token; left unchanged.

    Returns:
        What each token's query read, (B, T, H, V), and W after the last token.
    """
    W_BHFV, y = state_BHFV, []
    tokens = zip(
        q_BTHF.unbind(1), k_BTHF.unbind(1), v_BTHV.unbind(1), beta_BTH.unbind(1), strict=True
    )
    for q_BHF, k_BHF, v_BHV, beta_BH in tokens:
        error_BHV = v_BHV - (k_BHF[..., None, :] @ W_BHFV).squeeze(-2)
        W_BHFV = W_BHFV + k_BHF[..., None] * (beta_BH[..., None] * error_BHV)[..., None, :]
        y.append((q_BHF[..., None, :] @ W_BHFV).squeeze(-2))
    return torch.stack(y, dim=1), W_BHFV


def _check(
    q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor, beta_BTH: Tensor, state_BHFV: Tensor
) -> None:
    check_fast_weights("delta_rule", q_BTHF, k_BTHF, v_BTHV, beta_BTH, state_BHFV)


delta_rule = Op("delta_rule", reference, [], check=_check)
