"""The sum rule: add key times value to a matrix, read it with the query.

Paper: arXiv:2006.16236 section 3.3 (linear attention as a recurrence), arXiv:2102.11174 eq. 18.
Shapes: B batch, T segment, H heads, F key features, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.kernels.checks import check_fast_weights
from workbench.kernels.dispatch import Op


def reference(
    q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor, state_BHFV: Tensor
) -> tuple[Tensor, Tensor]:
    """Write then read, token by token: `W += k v^T; y = W^T q`.

    Args:
        q_BTHF: queries, already mapped and normalised; nothing is scaled here.
        k_BTHF: keys, likewise.
        v_BTHV: values.
        state_BHFV: W before the first token; left unchanged.

    Returns:
        What each token's query read, (B, T, H, V), and W after the last token.
    """
    W_BHFV, y = state_BHFV, []
    for q_BHF, k_BHF, v_BHV in zip(
        q_BTHF.unbind(1), k_BTHF.unbind(1), v_BTHV.unbind(1), strict=True
    ):
        W_BHFV = W_BHFV + k_BHF[..., None] * v_BHV[..., None, :]
        y.append((q_BHF[..., None, :] @ W_BHFV).squeeze(-2))
    return torch.stack(y, dim=1), W_BHFV


def _check(q_BTHF: Tensor, k_BTHF: Tensor, v_BTHV: Tensor, state_BHFV: Tensor) -> None:
    check_fast_weights("sum_rule", q_BTHF, k_BTHF, v_BTHV, None, state_BHFV)


sum_rule = Op("sum_rule", reference, [], check=_check)
