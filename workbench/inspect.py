"""Look inside a model: named taps, and the life of a fast-weight matrix.

Modules hand inner values to `tap`, which does nothing unless a `capture` is open. Fused kernels
never hold an attention map or a fast-weight matrix over time, so everything here is computed by
the reference, for one forward pass that somebody wants to look at.

Shapes: B batch, T segment, S memory + segment, H heads, F features, V value width.
Paper: arXiv:2102.11174 section 4.2 (write strength, read before write), arXiv:1905.07799 eq. 4.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

KNOWN = (
    "attention_probs",
    "persistent_probs",
    "span_mask",
    "span_tokens",
    "fast_weight_inputs",
    "slow_outputs",
)

Taps = dict[str, list[Any]]

# a plain global and not a ContextVar: torch.compile guards it instead of breaking the graph
_open: Taps | None = None
# what a notebook's widget reads in one thread is not for a capture in another: one at a time, and
# it hears its own thread alone
_one_at_a_time = threading.RLock()
_listener = 0


class FastWeightInputs(NamedTuple):
    """What one fast-weight layer wrote and asked in one segment, after its feature map."""

    q_BTHF: Tensor
    k_BTHF: Tensor
    v_BTHV: Tensor
    beta_BTH: Tensor | None
    """write strengths in (0, 1); None under the sum rule"""
    state_BHFV: Tensor
    rule: str


class SlowOutputs(NamedTuple):
    """What the slow network of such a layer said, before features and normalisations."""

    k_BTHK: Tensor
    beta_BTH: Tensor | None
    """write strengths in (0, 1); None under the sum rule"""


class Trajectory(NamedTuple):
    """One head's fast weights over the tokens of one segment."""

    W_TFV: Tensor
    """the matrix after each token's write"""
    write_strength_T: Tensor
    """beta, or 1 under the sum rule"""
    update_norm_T: Tensor
    """Frobenius norm of each write"""
    read_TV: Tensor
    """what each token's query reads, after its own write"""


@contextmanager
def capture(model: torch.nn.Module, *names: str) -> Iterator[Taps]:
    """Record named inner values of one forward pass.

    Args:
        model: the model that will be called inside the `with` block.
        names: any of `KNOWN`.

    Another thread that wants to capture waits until this one is done; what others compute meanwhile
    is not recorded.

    Yields:
        name -> list over the layers that have such a value, in order, detached.

    Raises:
        ValueError: an unknown name.
    """
    global _open, _listener
    for name in names:
        if name not in KNOWN:
            raise ValueError(f"there is no tap '{name}'; choose from {', '.join(KNOWN)}")
    taps: Taps = {name: [] for name in names}
    with _one_at_a_time:
        before, _open, _listener = _open, taps, threading.get_ident()
        try:
            with torch.no_grad():
                yield taps
        finally:
            _open = before


def tap(name: str, value: Any) -> None:
    """Offer a value; kept only if an open `capture` asked for `name`."""
    taps = _open
    if taps is not None and name in taps and threading.get_ident() == _listener:
        taps[name].append(value.detach() if isinstance(value, Tensor) else value)


def wanted(name: str) -> bool:
    """Whether an open `capture` asked for `name`: for values that cost something to make."""
    taps = _open
    return taps is not None and name in taps and threading.get_ident() == _listener


def trajectory(
    inputs: FastWeightInputs, row: int, head: int, rule: str | None = None
) -> Trajectory:
    """Replay one head's writes and keep every matrix.

    Args:
        inputs: a value of the tap `fast_weight_inputs`.
        row, head: which batch row and head.
        rule: `"sum"` or `"delta"`; None means the model's own. Asking for the other rule shows
            what the same keys and values would have written under it.

    Returns:
        a `Trajectory`; its `W_TFV` holds T * F * V numbers.
    """
    rule = rule or inputs.rule
    q, k, v = (x[row, :, head].float() for x in (inputs.q_BTHF, inputs.k_BTHF, inputs.v_BTHV))
    beta = torch.ones(len(q)) if inputs.beta_BTH is None else inputs.beta_BTH[row, :, head].float()
    strength = beta.to(q.device) if rule == "delta" else torch.ones_like(q[:, 0])
    W = inputs.state_BHFV[row, head].float()
    matrices, norms, reads = [], [], []
    for q_F, k_F, v_V, b in zip(q, k, v, strength, strict=True):
        change_V = b * (v_V - k_F @ W) if rule == "delta" else v_V
        W = W + torch.outer(k_F, change_V)
        matrices.append(W)
        # the Frobenius norm of an outer product is the product of the norms
        norms.append(k_F.norm() * change_V.norm())
        reads.append(q_F @ W)
    return Trajectory(torch.stack(matrices), strength, torch.stack(norms), torch.stack(reads))


def read_back(life: Trajectory, inputs: FastWeightInputs, row: int, head: int, t: int) -> Tensor:
    """What the key written at token `t` reads from the memory after every token.

    Returns:
        (T,) cosine between the value written at `t` and the value read; before `t` it shows what
        the memory already answered, after `t` how later writes disturb it.
    """
    key_F = inputs.k_BTHF[row, t, head].float()
    value_V = inputs.v_BTHV[row, t, head].float()
    read_TV = torch.einsum("f,tfv->tv", key_F, life.W_TFV)
    return torch.cosine_similarity(read_TV, value_V[None], dim=-1)
