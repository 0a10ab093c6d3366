"""The language model: embed, a stack of blocks that hand on their state, a distribution.

The paper models are recipes for this one class. Its forward pass is the table of contents:
vocabulary.embed -> positions -> blocks (state in, state out) -> vocabulary.nll.
Paper: arXiv:1901.02860 section 3; arXiv:1708.02182 sections 4.3 to 4.6 (dropout, penalties).
Shapes: B batch, T segment, D model width, C classes, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.carry import Carry
from workbench.config import Config, Positive, Probability, slot
from workbench.errors import ConfigError
from workbench.models import clusters as clusters  # registers the kinds
from workbench.models import mixers as mixers  # registers the kinds
from workbench.models.base import Builds, M, Model
from workbench.models.blocks import Block, BlockConfig
from workbench.models.draws import twice
from workbench.models.dropout import DroppedSymbols, Kind, dropout
from workbench.models.initialisation import initialise, initialise_ends
from workbench.models.mixers.base import CONFIGURED, Limits
from workbench.models.positions import InputPositions, NoPositions, PositionsConfig
from workbench.models.vocabulary import PlainConfig, VocabularyConfig, precise


class Layers(Config):
    """One block config, used for `repeat` layers in a row."""

    block: BlockConfig
    repeat: Positive = 1


class OutputPenalties(Config):
    """What the last layer's output costs in training, in nats per token; 0 for nothing.

    Paper: arXiv:1708.02182 section 4.6 (AR and TAR), with the mean square as its code.
    """

    activation: Annotated[float, Field(ge=0)] = 0.0
    """alpha: factor of the mean square of the output after dropout"""
    temporal: Annotated[float, Field(ge=0)] = 0.0
    """beta: factor of the mean square of the change from token to token, before dropout"""

    def of(self, raw_BTD: Tensor, dropped_BTD: Tensor) -> dict[str, Tensor]:
        """The penalties of one segment that are not 0 by their factor."""
        terms: dict[str, Tensor] = {}
        raw_BTD, dropped_BTD = precise(raw_BTD), precise(dropped_BTD)
        if self.activation:
            terms["activation"] = self.activation * dropped_BTD.square().mean()
        if self.temporal:
            # a segment of one token has no change, and no mean of it
            change_BTD = raw_BTD.diff(dim=1)
            mean = change_BTD.square().sum() / max(1, change_BTD.numel())
            terms["temporal"] = self.temporal * mean
        return terms


class ModelConfig(Config):
    """What the model is made of."""

    d_model: Positive
    """width of the residual stream"""
    stack: Annotated[tuple[Layers, ...], Field(min_length=1)]
    """the layers, first to last"""
    positions: slot(PositionsConfig) = NoPositions()  # type: ignore[valid-type]
    """codes added to the embedding; relative codes belong to the attention mixer"""
    vocabulary: slot(VocabularyConfig) = PlainConfig()  # type: ignore[valid-type]
    p_symbol: Probability = 0.0
    """dropout of symbols: how often one is not read in a whole segment"""
    p_embedding: Probability = 0.0
    """dropout of the embedding"""
    p_output: Probability = 0.0
    """dropout of the last hidden state"""
    dropout: Kind = "element"
    """element: p_embedding, p_output and each block's p_drop fall on single numbers. locked: on
    units, for all tokens of a segment"""
    output_penalties: OutputPenalties = OutputPenalties()
    """activation regularisation, temporal and plain"""
    final_norm: bool = False
    """a LayerNorm before the softmax: pre-norm stacks train better so; the originals have none"""
    init_std: Annotated[float, Field(gt=0)] | None = None
    """Transformer-XL's rule: weights, embeddings and u, v ~ N(0, init_std), LayerNorm gains
    ~ N(1, init_std), biases 0. None: PyTorch's own rules, as the adaptive-span code"""
    init_range: Annotated[float, Field(gt=0)] | None = None
    """alone, AWD-LSTM's rule: embedding and output matrices ~ U(-init_range, init_range), the
    output's biases and the rows of its clusters 0, the rest by PyTorch's own rules. Beside
    init_std: what that draws around 0 is U(-init_range, init_range), as Transformer-XL's option"""
    projection_std: Annotated[float, Field(gt=0)] = 0.01
    """beside init_std: the vocabulary's projections ~ N(0, projection_std)"""
    skip_last_row: bool = False
    """true: what is read never trains the last symbol's embedding, a slip of the AWD-LSTM code"""

    def build(self, vocab_size: int) -> LanguageModel:
        return LanguageModel(self, vocab_size)

    def block_configs(self) -> list[BlockConfig]:
        """The block of each layer, first to last."""
        return [layers.block for layers in self.stack for _ in range(layers.repeat)]

    def repeats_count_twice(self) -> str | None:
        """The layer whose state would take in tokens of `ext_len` twice, if there is any."""
        mixers = enumerate(block.mixer for block in self.block_configs())
        found = (f"layer {i}: the state of {m.kind}" for i, m in mixers if not m.has_memory)
        return next(found, None)

    @property
    def restarting(self) -> str | None:
        """The kind of the position codes that start again at every segment, if there are any."""
        kinds = [self.positions.kind, *(block.positions.kind for block in self.block_configs())]
        return next((kind for kind in kinds if kind != "none"), None)


class LanguageModel(Model):
    """A stack of blocks between the two ends of a vocabulary.

    `recompute` makes training keep the inputs of each block alone (arXiv:1604.06174 section 4.2,
    a segment being a block): the backward pass runs each block a second time, with the same draws,
    and gives the same bits. A step of 4 rows of txl-enwik8-base (41 million weights, 12 blocks,
    segments and memory of 512) took 0.9 GiB instead of 1.7 on a CPU, beside weights and their
    gradients, and 1.25 times as long.
    """

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.vocabulary = config.vocabulary.build(config.d_model, vocab_size)
        self.positions = config.positions.build(config.d_model)
        self.drop_symbols = DroppedSymbols(config.p_symbol, vocab_size)
        self.drop_embedding = dropout(config.dropout, config.p_embedding)
        d_hidden = self.vocabulary.d_hidden or config.d_model
        self.blocks = nn.ModuleList(stacked(config, d_hidden))
        self.final_norm = nn.LayerNorm(d_hidden) if config.final_norm else nn.Identity()
        self.drop_output = dropout(config.dropout, config.p_output)
        if config.init_range is not None:
            initialise_ends(self.vocabulary, config.init_range)
        if config.init_std is not None:
            initialise(self, config.init_std, config.init_range, config.projection_std)
        share_across_layers(self)

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last, under their own type."""
        return cast(list[Block], list(self.blocks))

    def initial_carry(self, batch_size: int, limits: Limits = CONFIGURED) -> Carry:
        """The carry before the first token; see `SequenceMixer.initial_state`.

        Raises:
            ConfigError: tokens are to be repeated, and a layer would count them twice; memory
                would keep position codes of the past; a clamp cannot reach the codes.
        """
        self._check_limits(limits)
        if self.config.restarting:
            # codes of the past change from segment to segment, and keys with them
            limits = limits._replace(constant_weights=False)
        return tuple(block.mixer.initial_state(batch_size, limits) for block in self.layers)

    def _check_limits(self, limits: Limits) -> None:
        if limits.ext_len and (culprit := self.config.repeats_count_twice()):
            raise ConfigError(
                f"{culprit} would take in {limits.ext_len} repeated tokens twice; set ext_len: 0, "
                "or start each segment afresh (train.carry: reset)"
            )
        keeps_codes = self.positions is not None and not self.positions.accumulate
        if keeps_codes and any(block.mixer.reach(limits.memory_len) for block in self.layers):
            raise ConfigError(
                f"model.positions is {self.config.positions.kind}, and attention has a memory: it "
                "would keep codes of segments that are over. Use relative positions, put the codes "
                "into the first block (block.positions), set memory_len: 0, or write "
                "model.positions.memory: accumulate, which repeats the original's error"
            )
        if limits.clamp_len is not None and (kind := self.config.restarting):
            raise ConfigError(
                f"clamp_len of an evaluation is for relative positions, and this model's are "
                f"{kind}; set positions.clamp_len of the model instead"
            )

    def forward(
        self, tokens_BT: Tensor, carry: Carry, n_last: int | None = None
    ) -> tuple[Tensor, Carry]:
        """Run one segment.

        Args:
            tokens_BT: ids.
            carry: the states that the segment before left behind; not changed.
            n_last: only the last so many tokens will be asked about; None: all.

        Returns:
            the softmax's input (B, T, D), or (B, n_last, D), and the new carry.
        """
        raw_BTD, carry = self.run_blocks(tokens_BT, carry, n_last)
        return self.drop_output(raw_BTD), carry

    def run_blocks(
        self, tokens_BT: Tensor, carry: Carry, n_last: int | None = None
    ) -> tuple[Tensor, Carry]:
        """As `forward`, without the dropout at the end; of so many last tokens, if told."""
        x_BTD = self.vocabulary.embed(tokens_BT)
        if self.config.skip_last_row:
            last_BT1 = (tokens_BT == self.vocab_size - 1)[..., None]
            x_BTD = torch.where(last_BT1, x_BTD.detach(), x_BTD)
        x_BTD = self.drop_symbols(x_BTD, tokens_BT)
        if self.positions is not None:
            x_BTD, carry = self._coded(self.positions, x_BTD, carry)
        x_BTD = self.drop_embedding(x_BTD)
        new = []
        for i, (block, state) in enumerate(zip(self.layers, carry, strict=True), 1):
            # the layers below hand every token to the last one
            last = n_last if i == len(self.layers) else None
            if self.recompute and self.training and torch.is_grad_enabled():
                x_BTD, state = checkpoint(
                    block, x_BTD, state, last, use_reentrant=False, context_fn=twice
                )
            else:
                x_BTD, state = block(x_BTD, state, last)
            new.append(state)
        return self.final_norm(x_BTD), tuple(new)

    def losses(
        self, tokens_BT: Tensor, targets_BT: Tensor, carry: Carry
    ) -> tuple[Tensor, dict[str, Tensor], Carry]:
        """What training minimises: as `nll`, with all named penalties in nats per token."""
        raw_BTD, carry = self.run_blocks(tokens_BT, carry)
        raw_BTD = raw_BTD[:, -targets_BT.shape[1] :]
        hidden_BTD = self.drop_output(raw_BTD)
        penalties = self.penalties() | self.config.output_penalties.of(raw_BTD, hidden_BTD)
        return self.vocabulary.nll(hidden_BTD, targets_BT), penalties, carry

    def _coded(
        self, positions: InputPositions, x_BTD: Tensor, carry: Carry
    ) -> tuple[Tensor, Carry]:
        """The embedding with its codes, and what the first layer remembers of it."""
        T = x_BTD.shape[1]
        if positions.accumulate:
            first = self.layers[0].mixer.change_memory(
                carry[0], lambda x_BMD: positions.into_memory(x_BMD, T)
            )
            carry = (first, *carry[1:])
        return positions(x_BTD, T), carry

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Negative log-likelihood of each target, (B, T) in nats, and the new carry.

        Where tokens are more than targets, the first ones are context only: the last T are scored.
        """
        hidden_BTD, carry = self.hidden(tokens_BT, targets_BT, carry)
        return self.vocabulary.nll(hidden_BTD, targets_BT), carry

    def hidden(self, tokens_BT: Tensor, targets_BT: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """What the softmax reads for each target of `nll`, (B, T, D), and the new carry."""
        T, n_last = tokens_BT.shape[1], targets_BT.shape[1]
        return cast(tuple[Tensor, Carry], self(tokens_BT, carry, n_last if n_last < T else None))

    def log_probs(self, tokens_BT: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Log-probabilities of all classes, (B, T, C) in nats, and the new carry."""
        hidden_BTD, carry = self(tokens_BT, carry)
        return self.vocabulary.log_probs(hidden_BTD), carry

    def reach(self, memory_len: int | None = None) -> int | None:
        """How many past tokens can influence a prediction when every layer looks back over
        `memory_len` tokens; None where a recurrent state makes it unbounded."""
        total = 0
        for block in self.layers:
            reach = block.mixer.reach(memory_len)
            if reach is None:
                return None
            total += reach
        return total

    def penalties(self) -> dict[str, Tensor]:
        """Named penalties in nats per token, each summed over the layers."""
        total: dict[str, Tensor] = {}
        for block in self.layers:
            for name, value in block.mixer.penalties().items():
                total[name] = total[name] + value if name in total else value
        return total

    def readings(self) -> dict[str, list[list[float]]]:
        """Named quantities per layer and head, such as spans in tokens; {} where there are none."""
        table: dict[str, list[list[float]]] = {}
        for block in self.layers:
            for name, value in block.mixer.readings().items():
                table.setdefault(name, []).append(value.float().cpu().tolist())
        return table

    def after_step(self) -> None:
        """Project parameters back into their range, after each optimizer step."""
        for block in self.layers:
            block.mixer.after_step()


def stacked(model: ModelConfig, d_hidden: int) -> Iterator[Block]:
    """The blocks, each as wide as the one below it ends; the last one has width `d_hidden`.

    Raises:
        ConfigError: the last one does not end in the width that the vocabulary reads.
    """
    width = model.d_model
    for config in model.block_configs():
        block = Block(config, width, model.dropout)
        width = block.d_out
        yield block
    if width != d_hidden:
        raise ConfigError(
            f"model.stack: the last layer ends in width {width}, but the vocabulary reads "
            f"{d_hidden}; give the last layer's mixer that width, or set vocabulary.d_hidden"
        )


def share_across_layers(model: LanguageModel) -> None:
    """Make the parameters that mixers list in `shared` one tensor for all layers of their kind.

    Raises:
        ConfigError: two layers share a parameter and disagree on its shape.
    """
    first: dict[tuple[str, str], tuple[int, nn.Parameter]] = {}
    for layer, block in enumerate(model.layers):
        for path in block.mixer.shared:
            owner_path, _, name = path.rpartition(".")
            owner = block.mixer.get_submodule(owner_path)
            own = owner.get_parameter(name)
            where, parameter = first.setdefault((type(block.mixer).__name__, path), (layer, own))
            if parameter.shape != own.shape:
                raise ConfigError(
                    f"model.stack: layers {where} and {layer} share {path}, but need shapes "
                    f"{tuple(parameter.shape)} and {tuple(own.shape)}; give them equal sizes or "
                    "turn sharing off"
                )
            setattr(owner, name, parameter)


def build_model(config: Builds[M], vocab_size: int, seed: int | None = None) -> M:
    """Build a model; a seed makes its parameters reproducible without touching the global RNG."""
    if seed is None:
        return config.build(vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(vocab_size)
