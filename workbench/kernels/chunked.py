"""The rules in matrix products over chunks of tokens: PyTorch alone, for want of a kernel.

Within a chunk all tokens are handled at once; the matrix W is carried from chunk to chunk.
Paper: arXiv:2406.06484 section 3 (the delta rule as a triangular system, its WY form).
Shapes: B batch, T segment, H heads, F features, V value width; N chunks of C tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.kernels.features import sum_normalise, widened

CHUNK = 32


def delta_rule(
    q_BTHF: Tensor,
    k_BTHF: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    state_BHFV: Tensor,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """As the reference of the op: what a token writes is a linear function of W at its chunk."""
    q, k = (_chunks(_keys(x, normalise)) for x in (q_BTHF, k_BTHF))
    v, beta = (_chunks(widened(x)) for x in (v_BTHV, beta_BTH[..., None]))
    # u_i = beta_i (v_i - W^T k_i - sum over j < i of (k_i . k_j) u_j), solved for all u at once
    later = ((beta * k) @ k.mT).tril(-1)
    both = torch.cat([beta * v, beta * k], dim=-1)
    solved = torch.linalg.solve_triangular(later, both, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    y_BTHV, W_BHFV = _scan(q, k, values, keys, widened(state_BHFV), q_BTHF.shape[1])
    return y_BTHV.to(v_BTHV.dtype), W_BHFV.to(state_BHFV.dtype)


def sum_rule(
    q_BTHF: Tensor,
    k_BTHF: Tensor,
    v_BTHV: Tensor,
    state_BHFV: Tensor,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """As the reference of the op."""
    q, k = (_chunks(_keys(x, normalise)) for x in (q_BTHF, k_BTHF))
    v = _chunks(widened(v_BTHV))
    y_BTHV, W_BHFV = _scan(q, k, v, None, widened(state_BHFV), q_BTHF.shape[1])
    return y_BTHV.to(v_BTHV.dtype), W_BHFV.to(state_BHFV.dtype)


def _keys(x_BTHF: Tensor, normalise: bool) -> Tensor:
    x_BTHF = widened(x_BTHF)
    return sum_normalise(x_BTHF) if normalise else x_BTHF


def _chunks(x_BTHX: Tensor) -> Tensor:
    """(B, H, N, C, X), filled up with zeros, which write nothing."""
    T = x_BTHX.shape[1]
    C = min(CHUNK, T)
    x_BHTX = torch.nn.functional.pad(x_BTHX.transpose(1, 2), (0, 0, 0, -T % C))
    return x_BHTX.unflatten(2, (-1, C))


def _scan(
    q: Tensor, k: Tensor, values: Tensor, keys: Tensor | None, W_BHFV: Tensor, T: int
) -> tuple[Tensor, Tensor]:
    """Carry W over the chunks; `values - keys W` is what a chunk writes under its keys."""
    scores, y = (q @ k.mT).tril(), []
    # unbind, not slices: the backward pass of a slice fills a whole tensor for every chunk
    removed = [None] * q.shape[2] if keys is None else list(keys.unbind(2))
    chunks = zip(*(x.unbind(2) for x in (q, k, values, scores)), removed, strict=True)
    for q_n, k_n, u_n, scores_n, keys_n in chunks:
        if keys_n is not None:
            u_n = u_n - keys_n @ W_BHFV
        y.append(q_n @ W_BHFV + scores_n @ u_n)
        W_BHFV = W_BHFV + k_n.mT @ u_n
    y_BHTV = torch.stack(y, dim=2).flatten(2, 3)[:, :, :T]
    return y_BHTV.transpose(1, 2), W_BHFV
