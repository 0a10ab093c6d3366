"""Evaluation as the originals do it, written plainly: what ours must be faster than.

Nothing is slowed down: products run in the layout that PyTorch is fastest at, and both sides share
embedding and softmax. What is repeated is what the original procedures repeat.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.models.base import evaluating
from workbench.models.blocks import Block
from workbench.models.channel import FeedForward
from workbench.models.language_model import LanguageModel
from workbench.models.mixers.attention import Attention
from workbench.models.mixers.relative import RelativeSinusoid


def sliding_windows(model: LanguageModel, tokens_N: Tensor, W: int) -> Tensor:
    """Nats of each token that has W tokens before it.

    A window after another, a fresh state for each, the softmax for all of its positions, of which
    the last one counts (the code of arXiv:2102.11174).
    """
    nll = []
    with evaluating(model):
        for begin in range(len(tokens_N) - W):
            ids_1T = tokens_N[None, begin : begin + W + 1]
            nll_1T, _ = model.nll(ids_1T[:, :-1], ids_1T[:, 1:], model.initial_carry(1))
            nll.append(nll_1T[0, -1])
    return torch.stack(nll)


class TransformerXL:
    """Reads segments with a memory of inputs, as the code of arXiv:1901.02860 does: queries, keys
    and values of memory and segment, and the codes of all distances, are projected at each segment.

    Args:
        model: whose weights are read, at relative sinusoids and post-norm.
        memory_len: inputs of each layer that are kept.
        all_queries: also the queries of the memory are made, for nothing, as the original does.
    """

    def __init__(self, model: LanguageModel, memory_len: int, all_queries: bool = True) -> None:
        self.model, self.memory_len, self.all_queries = model, memory_len, all_queries
        self.projections = []
        for block in model.layers:
            mixer = block.mixer
            assert isinstance(mixer, Attention) and block.residual == "post_norm"
            parts = (mixer.query.weight, mixer.key.weight, mixer.value.weight)
            self.projections.append(torch.cat(parts).detach())

    def start(self, batch_size: int) -> list[Tensor]:
        """No memory in any layer."""
        D = self.model.config.d_model
        return [torch.zeros(batch_size, 0, D, device=self.model.device) for _ in self.projections]

    @torch.no_grad()
    def nll(
        self, tokens_BT: Tensor, targets_BT: Tensor, memory: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Nats of each target, (B, T), and the memory for the next segment."""
        x_BTD, new = self.model.vocabulary.embed(tokens_BT), []
        for block, weight, past_BMD in zip(
            self.model.layers, self.projections, memory, strict=True
        ):
            all_BSD = torch.cat([past_BMD, x_BTD], dim=1)
            new.append(all_BSD[:, -self.memory_len :])
            x_BTD = self._layer(block, weight, all_BSD, x_BTD)
        return self.model.vocabulary.nll(x_BTD, targets_BT), new

    def _layer(self, block: Block, weight: Tensor, all_BSD: Tensor, x_BTD: Tensor) -> Tensor:
        mixer, channel = block.mixer, block.channel
        assert isinstance(mixer, Attention) and isinstance(channel, FeedForward)
        H, K, T = mixer.config.n_heads, mixer.config.d_head, x_BTD.shape[1]

        def heads(x_BSX: Tensor) -> Tensor:
            return x_BSX.unflatten(-1, (H, K)).transpose(1, 2)

        if self.all_queries:
            q, k, v = (heads(x) for x in F.linear(all_BSD, weight).chunk(3, dim=-1))
            q = q[:, :, -T:]
        else:
            q = heads(F.linear(x_BTD, weight[: H * K]))
            k, v = (heads(x) for x in F.linear(all_BSD, weight[H * K :]).chunk(2, dim=-1))
        y_BHTK = relative_attention(mixer.positions, q, k, v)
        y_BTD = mixer.out(y_BHTK.transpose(1, 2).flatten(2))
        x_BTD = block.mixer_norm(x_BTD + y_BTD)
        assert isinstance(block.channel_norm, nn.LayerNorm)
        return block.channel_norm(x_BTD + channel(x_BTD))


def relative_attention(positions: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(((q + u) k_j + (q + w) W_r code(i - j)) / sqrt(K)) v`, all (B, H, *, K)."""
    assert isinstance(positions, RelativeSinusoid)
    T, S, K = q.shape[2], k.shape[2], q.shape[3]
    codes_SD = positions.sinusoid(torch.arange(S - 1, -1, -1, device=q.device))
    r_HSK = positions.project(codes_SD).unflatten(-1, positions.shape).transpose(0, 1)
    content = (q + positions.u_HK[:, None]) @ k.mT
    by_distance = (q + positions.v_HK[:, None]) @ r_HSK.mT
    # column c holds distance S - 1 - c; a row further down, its keys stand one column further right
    shifted = F.pad(by_distance, (1, 0)).view(*by_distance.shape[:2], S + 1, T)[:, :, 1:]
    scores = (content + shifted.reshape(by_distance.shape)) / math.sqrt(K)
    future_TS = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1 + S - T)
    return scores.masked_fill(future_TS, -torch.inf).softmax(-1) @ v
