"""Softmax attention over the segment and a memory of past inputs.

Paper: arXiv:1901.02860 section 3 (segment recurrence, relative positions); arXiv:1905.07799
(adaptive span, a token does not attend to itself); arXiv:1907.01470 section 3 (persistent vectors).
Shapes: B batch, T segment, M memory, S = M + T, H heads, K head width, D model width, N persistent.
State: `Memory`, the newest inputs of this layer (raw: a pre-norm block's LayerNorm is applied when
they are read, so its gradient is complete).
Deviates: dropout on the relative sinusoid is drawn per layer, Transformer-XL's code draws one mask
for all layers; a row whose keys are all hidden gives zeros, the originals' code NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from workbench.config import CarryMode, Config, Positive, Probability, SameLength, slot
from workbench.inspect import tap, wanted
from workbench.kernels.attention import Persistent, Positions, Window, attention, weigh
from workbench.kernels.dropout import Dropout
from workbench.models.mixers.base import (
    CONFIGURED,
    Limits,
    MixerConfig,
    Norm,
    SequenceMixer,
    identity,
)
from workbench.models.mixers.key_values import KeyValues
from workbench.models.mixers.relative import (
    AttentionPositionsConfig,
    NoRelativeConfig,
    RelativeLearnedConfig,
    RelativeSinusoidConfig,
    RelativeTableConfig,
)
from workbench.models.mixers.span import TRIM_STEP, SpanConfig

ANY_DISTANCE = -1  # a window without a bound


class PersistentConfig(Config):
    """Learned key-value pairs that every query can attend to (all-attention)."""

    n_vectors: Positive
    """N per head; they replace the feed-forward sub-layer, so N is about its width"""


class AttentionConfig(MixerConfig):
    """Multi-head attention with segment memory."""

    kind: Literal["attention"] = "attention"
    has_memory: ClassVar[bool] = True
    n_heads: Positive
    d_head: Positive
    """width of one head's keys and values"""
    memory_len: Annotated[int, Field(ge=0)] = 0
    """past inputs kept for the next segment, in tokens"""
    memory_start: Literal["empty", "zeros"] = "empty"
    """zeros: the memory before the text is attended too, as in the adaptive-span code"""
    attend_self: bool = True
    """false: a token sees only tokens before it, as in the adaptive-span paper"""
    same_length: SameLength = "off"
    """equally many keys for every query: memory_len of them, the own token counted
    (including_self, Transformer-XL's PyTorch code) or not (beyond_self, its paper)"""
    ext_memory: Literal["intended", "swapped"] = "intended"
    """where memory ends when the next segment repeats E tokens of this one, with M tokens of memory
    and T of the segment. intended: after M + (T - E), nothing is seen twice. swapped: after
    T + (M - E), as the arguments of a call in Transformer-XL's code come to mean"""
    positions: slot(AttentionPositionsConfig) = RelativeSinusoidConfig()  # type: ignore[valid-type]
    span: SpanConfig | None = None
    """learned spans; None: every head looks as far as memory goes"""
    persistent: PersistentConfig | None = None
    normed_queries: bool = True
    """false: a pre-norm block's LayerNorm is applied to keys and values only, as Transformer-XL's
    code does where its positions are absolute"""
    p_attention: Probability = 0.0
    """dropout of the attention probabilities"""

    @model_validator(mode="after")
    def _consistent(self) -> AttentionConfig:
        limit = self.limit
        codes = self.positions.farthest
        if self.span and codes is not None and self.span.limit > codes:
            raise ValueError(
                f"span.limit {self.span.limit} exceeds positions.max_distance {codes}: "
                "no head can learn a key it has no code for"
            )
        if limit is not None and self.memory_len > limit:
            raise ValueError(
                f"memory_len {self.memory_len} exceeds the farthest visible distance {limit}: "
                f"set memory_len to {limit}"
            )
        if self.same_length != "off" and self.memory_len == 0:
            raise ValueError("same_length needs memory_len > 0: it is the number of visible keys")
        if not self.attend_self and self.memory_len == 0:
            raise ValueError(
                "attend_self: false needs memory_len > 0: the first token would see nothing"
            )
        return self

    @property
    def limit(self) -> int | None:
        """The farthest distance that can be visible, in tokens; None where there is no bound."""
        bounds = [self.span.limit] if self.span else []
        if self.positions.farthest is not None:
            bounds.append(self.positions.farthest)
        return min(bounds, default=None)

    def unfit(self, carry: CarryMode) -> str | None:
        if carry == "reset" and self.memory_len and self.memory_start == "empty":
            return (
                f"memory_len is {self.memory_len}, but train.carry is reset: the memory would "
                "always be empty. Set memory_len: 0, or train.carry: keep"
            )
        return None

    @property
    def reads_raw(self) -> bool:
        return not self.normed_queries

    def build(self, d_model: int) -> SequenceMixer:
        return Attention(self, d_model)

    @classmethod
    def tiny(cls) -> list[MixerConfig]:
        span = SpanConfig(limit=6, ramp=3, penalty=1e-3, initial=0.31)
        dynamic = SpanConfig(limit=6, ramp=3, penalty=1e-3, initial=0.31, dynamic=True)
        learned = RelativeLearnedConfig(max_distance=6)
        past: dict[str, Any] = {"memory_len": 6, "attend_self": False, "memory_start": "zeros"}
        common: dict[str, Any] = {"n_heads": 2, "d_head": 4}
        return [
            cls(**common, memory_len=64),
            cls(**common, memory_len=5, same_length="beyond_self"),
            cls(**common, memory_len=64, positions=NoRelativeConfig()),
            cls(**common, memory_len=64, positions=RelativeTableConfig(n_distances=5)),
            cls(**common, positions=learned, span=span, **past),
            cls(**common, positions=learned, persistent=PersistentConfig(n_vectors=3), **past),
            cls(**common, positions=learned, span=dynamic, **past),
            cls(**common, memory_len=6, span=span, persistent=PersistentConfig(n_vectors=3)),
        ]


class Memory(NamedTuple):
    """What attention remembers."""

    hidden_BMD: Tensor
    """the newest inputs of the layer, oldest first"""
    memory_len: int
    """how many to keep"""
    window: int
    """the farthest distance that is visible, or `ANY_DISTANCE`"""
    clamp_len: int
    """distances beyond it share one position code; 0: never"""
    ext_len: int
    """tokens at the end of a segment that the next one repeats"""


Group = TypeVar("Group", Positions | None, Persistent | None)


def narrowed(group: Group, dtype: torch.dtype) -> Group:
    """The tensors of a group of the op's arguments in one type."""
    if group is None:
        return group
    # mypy takes the fields of a constrained type variable for those of its first type
    parts: Any = (None if x is None else x.to(dtype) for x in group)
    return type(group)(*parts)


class Attention(SequenceMixer):
    """`softmax((q + u) k_j + position(distance)) / sqrt(K))`, masked, renormalised, read out."""

    def __init__(self, config: AttentionConfig, d_model: int):
        super().__init__()
        self.config, self.d_out = config, d_model
        H, K = config.n_heads, config.d_head
        self.query = nn.Linear(d_model, H * K, bias=False)
        # keys and values apart: Adagrad's clipping of each tensor (adaptive-span) must see two
        self.key = nn.Linear(d_model, H * K, bias=False)
        self.value = nn.Linear(d_model, H * K, bias=False)
        self.out = nn.Linear(H * K, d_model, bias=False)
        self.positions = config.positions.build(d_model, H, K)
        self.shared = tuple(f"positions.{name}" for name in self.positions.shared)
        self.span = config.span.build(d_model, H) if config.span else None
        if config.persistent:
            N = config.persistent.n_vectors
            # stored small and scaled at use, so that optimizers see entries of the papers' size
            self.persistent_key_HKN = nn.Parameter(torch.randn(H, K, N) / math.sqrt(K))
            self.persistent_value_HNK = nn.Parameter(torch.randn(H, N, K) / math.sqrt(N))

    def initial_state(self, batch_size: int, limits: Limits = CONFIGURED) -> Memory | KeyValues:
        config, limit = self.config, self.config.limit
        memory_len = config.memory_len if limits.memory_len is None else limits.memory_len
        if limit is not None:
            memory_len = min(memory_len, limit)
        same = config.same_length if limits.same_length is None else limits.same_length
        # the own key is visible even to a query that is granted none
        windows = {"including_self": max(0, memory_len - 1), "beyond_self": memory_len}
        clamp_len = self.positions.clamp_len if limits.clamp_len is None else limits.clamp_len
        window = windows.get(same, ANY_DISTANCE)
        weight = self.query.weight
        if limits.constant_weights:
            # spans are constant, too: what no head sees is known once for all
            bounds = [x for x in (self._visible(), window) if x is not None and x != ANY_DISTANCE]
            window, memory_len = min(bounds, default=ANY_DISTANCE), self._kept(memory_len)
            empty_BMHK = weight.new_zeros(batch_size, 0, config.n_heads, config.d_head)
            settings = (memory_len, window, clamp_len, limits.ext_len)
            return KeyValues(empty_BMHK, empty_BMHK, *settings)
        start = memory_len if config.memory_start == "zeros" else 0
        if self.span and self.span.trims_memory:
            start = min(start, self._kept(memory_len))
        hidden_BMD = weight.new_zeros(batch_size, start, weight.shape[1])
        return Memory(hidden_BMD, memory_len, window, clamp_len, limits.ext_len)

    def forward(
        self, x_BTD: Tensor, state: Memory | KeyValues, norm: Norm = identity
    ) -> tuple[Tensor, Memory | KeyValues]:
        return self.forward_last(x_BTD, state, x_BTD.shape[1], norm)

    def forward_last(
        self, x_BTD: Tensor, state: Memory | KeyValues, n_last: int, norm: Norm = identity
    ) -> tuple[Tensor, Memory | KeyValues]:
        if isinstance(state, KeyValues):
            visible = None if state.window == ANY_DISTANCE else state.window
            normed_BTD, k_BSHK, v_BSHK, state = self._recall(x_BTD, state, n_last, norm, visible)
        else:
            visible = self._visible()
            normed_BTD, k_BSHK, v_BSHK, state = self._reread(x_BTD, state, n_last, norm, visible)
        # T is the queries from here on: keys are there for all inputs, whoever asks
        x_BTD = x_BTD[:, -n_last:]
        B, T, _ = x_BTD.shape
        H, K = self.config.n_heads, self.config.d_head
        S = k_BSHK.shape[1]
        asking_BTD = normed_BTD[:, -n_last:] if self.config.normed_queries else x_BTD
        q_BTHK = self.query(asking_BTD).view(B, T, H, K)
        bounds = [S - 1, *(x for x in (visible, state.window) if x not in (None, ANY_DISTANCE))]
        window = Window(0 if self.config.attend_self else 1, min(bounds))
        make = partial(self.positions.codes, clamp_len=state.clamp_len)
        n = window.farthest + 1
        codes_RHK = state.codes(n, make) if isinstance(state, KeyValues) else make(n)
        # dividing the queries instead of the scores touches S / K times fewer numbers
        content_BTHK = self.positions.content_query(q_BTHK) / math.sqrt(K)
        position_BTHK = self.positions.position_query(q_BTHK) / math.sqrt(K)
        positions = self.positions.by_distance(position_BTHK, n, state.clamp_len, codes_RHK)
        # parameters have all their digits under autocast, what was projected has not
        narrow = partial(narrowed, dtype=k_BSHK.dtype)
        content_BTHK, positions = content_BTHK.to(k_BSHK.dtype), narrow(positions)
        span = self.span.soft(asking_BTD) if self.span else None
        seen = (content_BTHK, k_BSHK, window, positions, span, narrow(self._persistent()))
        self._tap(*seen)
        y_BTHK = attention(content_BTHK, k_BSHK, v_BSHK, *seen[2:], self._dropout(x_BTD.device))
        return self.out(y_BTHK.flatten(2)), state

    def _persistent(self) -> Persistent | None:
        """Persistent keys and values at the scale that they are used at."""
        if self.config.persistent is None:
            return None
        key_HNK, value_HNK = self.persistent_key_HKN.mT, self.persistent_value_HNK
        N, K = key_HNK.shape[1:]
        bias_HK = self.positions.content_bias()
        # their query has no content bias: what it would add is taken back
        bias_HN = None if bias_HK is None else -torch.einsum("hk,hnk->hn", bias_HK, key_HNK)
        return Persistent(key_HNK * math.sqrt(K), value_HNK * math.sqrt(N), bias_HN)

    def _dropout(self, device: torch.device) -> Dropout | None:
        if not (self.training and self.config.p_attention):
            return None
        # drawn where it is used: a device must not wait for the host
        seed = torch.randint(2**62, (1,), device=device)
        return Dropout(self.config.p_attention, seed)

    @staticmethod
    def _tap(*seen: Any) -> None:
        """Offer the weights, which the op itself never holds, to those who look inside."""
        if not (wanted("attention_probs") or wanted("persistent_probs")):
            return
        weights = weigh(*seen)
        for name, part in (
            ("attention_probs", weights.keys_BHTS),
            ("persistent_probs", weights.persistent_BHTN),
        ):
            if part is not None:
                tap(name, part if weights.mass_BHT1 is None else part / weights.mass_BHT1)

    def _reread(
        self, x_BTD: Tensor, state: Memory, n_last: int, norm: Norm, visible: int | None
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        """Inputs as they are read, keys and values of memory and segment, and the next state."""
        T, M = x_BTD.shape[1], state.hidden_BMD.shape[1]
        memory_BMD = self._trim(state.hidden_BMD, T, n_last, visible)
        M_read = memory_BMD.shape[1]
        if norm is identity or isinstance(norm, nn.Module):
            memory_BMD, normed_BTD = norm(memory_BMD), norm(x_BTD)
        else:  # codes of positions are counted over both
            both_BSD = norm(torch.cat([memory_BMD, x_BTD], dim=1))
            memory_BMD, normed_BTD = both_BSD.split([M_read, T], dim=1)
        key_BSHK, value_BSHK = self._keys_values(normed_BTD)
        if M_read:
            # apart from the segment: nobody asks for the gradient of a memory that is detached
            key_BMHK, value_BMHK = self._keys_values(memory_BMD)
            key_BSHK = torch.cat([key_BMHK, key_BSHK], dim=1)
            value_BSHK = torch.cat([value_BMHK, value_BSHK], dim=1)
        start, end = self._remembered(state, M + T, T)
        parts = (state.hidden_BMD[:, start:end], x_BTD[:, max(0, start - M) : max(0, end - M)])
        return normed_BTD, key_BSHK, value_BSHK, state._replace(hidden_BMD=torch.cat(parts, dim=1))

    def _recall(
        self, x_BTD: Tensor, state: KeyValues, n_last: int, norm: Norm, visible: int | None
    ) -> tuple[Tensor, Tensor, Tensor, KeyValues]:
        """As `_reread`, with keys and values that were computed when their inputs came."""
        T = x_BTD.shape[1]
        zeros = self.config.memory_start == "zeros"
        if zeros and state.memory_len and state.key_BMHK.shape[1] == 0:
            state = self._after_zeros(x_BTD, state, norm, state.memory_len)
        normed_BTD = norm(x_BTD)
        state = state.extended(*self._keys_values(normed_BTD))
        seen, S = state, state.key_BMHK.shape[1]
        state = state.kept(*self._remembered(state, S, T))
        if visible is not None and self.span and self.span.trims_keys:
            missing = visible + n_last - S
            if missing < 0:
                seen = seen.kept(-missing, S)
            elif missing and zeros:
                seen = self._after_zeros(x_BTD, seen, norm, missing)
        return normed_BTD, seen.key_BMHK, seen.value_BMHK, state

    def _after_zeros(self, x_BTD: Tensor, state: KeyValues, norm: Norm, n: int) -> KeyValues:
        """The state with keys and values of n inputs of zeros before all others."""
        zero_11D = x_BTD.new_zeros(1, 1, x_BTD.shape[2])
        return state.preceded(*self._keys_values(norm(zero_11D)), n)

    def _keys_values(self, seen_BSD: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.config.n_heads, self.config.d_head)
        return self.key(seen_BSD).unflatten(-1, shape), self.value(seen_BSD).unflatten(-1, shape)

    def _remembered(self, state: Memory | KeyValues, S: int, T: int) -> tuple[int, int]:
        """From where to where S inputs, of which T are new, are remembered."""
        M, ext_len = S - T, state.ext_len
        swapped = self.config.ext_memory == "swapped"
        end = T + max(0, M - ext_len) if swapped else M + max(0, T - ext_len)
        known = isinstance(state, KeyValues)
        kept = state.memory_len if known else self._kept(state.memory_len)
        return max(0, end - kept), end

    def _kept(self, memory_len: int) -> int:
        if not (self.span and self.span.trims_memory):
            return memory_len
        return min(memory_len, self.span.limit - self.span.trimmed() + TRIM_STEP)

    def _visible(self) -> int | None:
        """The farthest distance that is attended now; None where there is no bound."""
        if self.span and self.span.trims_keys:
            return self.span.limit - self.span.trimmed()
        return self.config.limit

    def _trim(self, hidden_BMD: Tensor, T: int, n_last: int, visible: int | None) -> Tensor:
        """Drop the memory that no head can see; precede it by zeros where spans have grown.

        Args:
            T: inputs of the segment, of which the last n_last ask.
        """
        if visible is None or not (self.span and self.span.trims_keys):
            return hidden_BMD
        B, M, D = hidden_BMD.shape
        missing = visible + n_last - T - M
        if missing <= 0:
            return hidden_BMD[:, -missing:]
        if self.config.memory_start == "empty":
            return hidden_BMD
        return torch.cat([hidden_BMD.new_zeros(B, missing, D), hidden_BMD], dim=1)

    def change_memory(
        self, state: Memory | KeyValues, change: Callable[[Tensor], Tensor]
    ) -> Memory:
        assert isinstance(state, Memory), "what is changed later is not kept as keys and values"
        return state._replace(hidden_BMD=change(state.hidden_BMD))

    def reach(self, memory_len: int | None = None) -> int:
        memory_len = self.config.memory_len if memory_len is None else memory_len
        return memory_len if self.config.limit is None else min(memory_len, self.config.limit)

    def penalties(self) -> dict[str, Tensor]:
        return {"span": self.span.penalty()} if self.span else {}

    def readings(self) -> dict[str, Tensor]:
        return self.span.readings() if self.span else {}

    def after_step(self) -> None:
        if self.span:
            self.span.clamp()
