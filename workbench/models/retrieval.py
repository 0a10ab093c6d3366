"""Associative retrieval with one memory: write pairs of key and value, read with queries.

    x = [onehot(value), e(key)]      k = W_k x + b      q = W_q e(query) + b      v = onehot(value)

    softmax   y = sum over pairs of softmax(k . q / sqrt(K)) v
    sum       W += v phi(k)^T                             y = W phi(q) / (sum of phi(k) . phi(q))
    delta     W += beta (v - W phi(k)) phi(k)^T           y = W phi(q) / (sum of phi(q)'s entries)
              with each phi(k) divided by its sum
    fwm       as delta, but phi(k) is as it is and        y = layer_norm(W phi(q))
              W /= max(1, |W|) follows

with beta = sigmoid(w_b x + b). The loss is `|y - onehot(target)|^2 / 2`.
Paper: arXiv:2102.11174 section 6.1; fwm is arXiv:2011.07831 as that code compares with it.
Shapes: B sequences, T pairs, Q queries of a sequence, K key width, F features, V values.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from workbench import kernels
from workbench.carry import Carry
from workbench.config import Config, Positive, slot
from workbench.models.base import Model
from workbench.models.feature_maps import FeatureMapConfig, sum_normalise

READ_EPSILON = 1e-6


class RetrievalModelConfig(Config):
    """The memory and the map of its keys."""

    d_key: Positive
    """width of keys and queries before the feature map"""
    rule: Literal["softmax", "sum", "delta", "fwm"]
    """softmax: attention. Others: how a pair is written into a matrix of fast weights"""
    feature_map: slot(FeatureMapConfig) | None = None  # type: ignore[valid-type]
    """null for softmax, which needs none"""
    d_embed: Positive | None = None
    """width of a key's embedding; null: 2.2 times the number of pairs, as the paper's code"""

    @model_validator(mode="after")
    def _consistent(self) -> RetrievalModelConfig:
        if (self.rule == "softmax") != (self.feature_map is None):
            got = getattr(self.feature_map, "kind", None)
            raise ValueError(
                f"rule is {self.rule} and feature_map is {got}: softmax compares keys and queries "
                "themselves (feature_map: null), the other rules need a map such as {kind: elu}"
            )
        return self

    def build(self, vocab_size: int) -> RetrievalModel:
        return RetrievalModel(self, vocab_size)


class RetrievalModel(Model):
    """One layer, one head.

    Args:
        config: what it is made of.
        vocab_size: symbols; the first half are keys, the second values.
    """

    def __init__(self, config: RetrievalModelConfig, vocab_size: int):
        super().__init__()
        self.config, self.vocab_size, self.n_pairs = config, vocab_size, vocab_size // 2
        K, V = config.d_key, self.n_pairs
        d_embed = config.d_embed or int(1.1 * vocab_size)
        self.embedding = nn.Embedding(V, d_embed)
        self.key = nn.Linear(V + d_embed, K)
        self.query = nn.Linear(d_embed, K)
        for layer in (self.key, self.query):
            if config.rule == "softmax":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.uniform_(layer.weight, -1 / math.sqrt(K), 1 / math.sqrt(K))
        self.strength = nn.Linear(V + d_embed, 1) if config.rule in ("delta", "fwm") else None
        self.feature_map = config.feature_map.build(K) if config.feature_map is not None else None

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Half the squared distance of each answer from the target's one-hot vector.

        In nats, up to a constant, if answers are means of Gaussians of unit variance.

        Args:
            tokens_BT: the pairs (key, value, key, value, ...), then the queries' keys.
            targets_BT: a value for each query, (B, Q).
            carry: unused: a sequence is whole.
        """
        n_queries = targets_BT.shape[1]
        pairs_BT2 = tokens_BT[:, :-n_queries].unflatten(1, (-1, 2))
        y_BQV = self(pairs_BT2, tokens_BT[:, -n_queries:])
        wanted_BQV = self._one_hot(targets_BT - self.n_pairs)
        return (y_BQV - wanted_BQV).square().sum(-1) / 2, carry

    def forward(self, pairs_BT2: Tensor, queries_BQ: Tensor) -> Tensor:
        """Answers (B, Q, V) of a memory that holds the pairs.

        Args:
            pairs_BT2: ids of keys and values.
            queries_BQ: ids of keys.
        """
        keys_BT, values_BT = pairs_BT2[..., 0], pairs_BT2[..., 1] - self.n_pairs
        k_BTK = self._of_pairs(self.key, keys_BT, values_BT)
        q_BQK = F.embedding(queries_BQ, self.query(self.embedding.weight))
        if self.feature_map is None:
            scores_BQT = q_BQK @ k_BTK.mT / math.sqrt(self.config.d_key)
            return at_values(scores_BQT.softmax(-1), values_BT, self.n_pairs)
        self.feature_map.begin_segment()
        q_BQF, k_BTF = self.feature_map(q_BQK), self.feature_map(k_BTK)
        if self.strength is None:
            return read_sum(q_BQF, k_BTF, values_BT, self.n_pairs)
        beta_BT1 = self._of_pairs(self.strength, keys_BT, values_BT).sigmoid()
        read = read_delta if self.config.rule == "delta" else read_clipped
        return read(q_BQF, k_BTF, self._one_hot(values_BT), beta_BT1)

    def _of_pairs(self, layer: nn.Linear, keys_BT: Tensor, values_BT: Tensor) -> Tensor:
        """`layer([onehot(value), e(key)])`, by looking up what it makes of each symbol."""
        by_value, by_embedding = layer.weight.split([self.n_pairs, self.embedding.embedding_dim], 1)
        of_keys = F.linear(self.embedding.weight, by_embedding, layer.bias)
        return F.embedding(keys_BT, of_keys) + F.embedding(values_BT, by_value.T)

    def _one_hot(self, values: Tensor) -> Tensor:
        # faster than rows of an identity, and in the type of the weights, unlike F.one_hot
        zeros = self.embedding.weight.new_zeros(*values.shape, self.n_pairs)
        return zeros.scatter_(-1, values[..., None], 1.0)


def at_values(weights_BQT: Tensor, values_BT: Tensor, n_values: int) -> Tensor:
    """`weights v` for values v that are one-hot vectors of `values_BT`, which are never built."""
    places_BQT = values_BT[:, None].expand_as(weights_BQT)
    zeros_BQV = weights_BQT.new_zeros(*weights_BQT.shape[:2], n_values)
    return zeros_BQV.scatter_add(-1, places_BQT, weights_BQT)


def read_sum(q_BQF: Tensor, k_BTF: Tensor, values_BT: Tensor, n_values: int) -> Tensor:
    """The sum rule, normalised by the sum of all keys. Few ask, so W itself is never built."""
    scores_BQT = q_BQF @ k_BTF.mT
    y_BQV = at_values(scores_BQT, values_BT, n_values)
    return y_BQV / (scores_BQT.sum(-1, keepdim=True) + READ_EPSILON)


def read_delta(q_BQF: Tensor, k_BTF: Tensor, v_BTV: Tensor, beta_BT1: Tensor) -> Tensor:
    """The delta rule with keys and queries that sum to one."""
    k_BTHF = sum_normalise(k_BTF)[:, :, None]
    empty_BHFV = k_BTF.new_zeros(len(k_BTF), 1, k_BTF.shape[-1], v_BTV.shape[-1])
    # the op reads after each write; only what is there in the end is asked for
    nothing_BTHF = torch.zeros_like(k_BTHF)
    _, W_BHFV = kernels.delta_rule(nothing_BTHF, k_BTHF, v_BTV[:, :, None], beta_BT1, empty_BHFV)
    return q_BQF @ W_BHFV[:, 0] / (q_BQF.sum(-1, keepdim=True) + READ_EPSILON)


def read_clipped(q_BQF: Tensor, k_BTF: Tensor, v_BTV: Tensor, beta_BT1: Tensor) -> Tensor:
    """The fast weight memory's rule: W as a whole is kept within norm 1 from its second write on.

    The answer is the product's LayerNorm, without gain and bias.
    """
    (k_BF, *keys), (v_BV, *values), (beta_B1, *betas) = (
        x.unbind(1) for x in (k_BTF, v_BTV, beta_BT1)
    )
    W_BFV = k_BF[..., None] * (beta_B1 * v_BV)[:, None]
    # the memory is scale * W: like this the backward pass keeps one matrix for each pair, not two
    scale_B11 = torch.ones_like(beta_B1)[..., None]
    for k_BF, v_BV, beta_B1 in zip(keys, values, betas, strict=True):
        old_B1V = (k_BF[:, None] @ W_BFV) * scale_B11
        change_B1V = beta_B1[..., None] * (v_BV[:, None] - old_B1V)
        W_BFV = W_BFV * scale_B11 + k_BF[..., None] * change_B1V
        norm_B11 = torch.linalg.matrix_norm(W_BFV, keepdim=True)
        scale_B11 = 1 / (1 + (norm_B11 - 1).relu())
    return F.layer_norm(q_BQF @ (W_BFV * scale_B11), v_BTV.shape[-1:])
