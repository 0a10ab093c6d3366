"""Whole training steps, and reading, at the shapes at which the originals were timed."""

from __future__ import annotations

from functools import partial

import torch

from bench import peers
from bench.case import Case, Results, Ways, Work
from bench.configurations import CONFIGURATIONS, ENWIK8, Configuration, zipf
from workbench.data import Segments
from workbench.data.batches import Reader
from workbench.models.base import evaluating
from workbench.models.mixers.base import Limits
from workbench.train.config import Precision
from workbench.train.trainer import Trainer

TRAIN, EVAL = "training step", "reading"
ORIGINAL, MEASURED, X = "original", "original, as given", "x-transformers, rotary XL"

originals_ms: dict[str, float] = {}
"""configuration -> milliseconds of the original's training step on this machine, if told"""


def training(config: Configuration, device: torch.device, precision: Precision = "fp32") -> Work:
    """One step after another, each handing its state to the next."""
    text = zipf(config.vocab, 4000 * config.B)
    batches = Segments(text, config.B, config.T, reader=Reader(device))
    model = config.model().to(device)
    trainer = Trainer(model, batches, config.train_config(precision), config.name)

    def step() -> Results:
        trainer.update()
        return ()

    # from then on memories are full
    for _ in range(3 if config.name != "span 4096, spread" else 1):
        step()
    trainer.check_finite()
    return step


def in_half(config: Configuration, device: torch.device) -> Ways:
    """A training step in bfloat16 against a time that is asked for."""
    step = training(config, device, precision="bf16")
    return Ways({"auto": step}, measured_ms={f"{config.train_ms:g} ms asked for": config.train_ms})


def reading(config: Configuration, device: torch.device) -> Work:
    """The nats of one segment after another, as validation reads."""
    tokens_BN = zipf(config.vocab, 40 * config.B * config.T).view(config.B, -1).to(device)
    model = config.model().to(device).eval()
    limits = Limits(constant_weights=True)
    carry, place, T = model.initial_carry(config.B, limits), 0, config.T

    def step() -> Results:
        nonlocal carry, place
        begin = place * T % (tokens_BN.shape[1] - T)
        ids_BT = tokens_BN[:, begin : begin + T + 1]
        if config.carry == "reset":
            carry = model.initial_carry(config.B, limits)
        with evaluating(model):
            _, carry = model.nll(ids_BT[:, :-1], ids_BT[:, 1:], carry)
        place += 1
        return ()

    for _ in range(3):
        step()
    return step


def make(config: Configuration, way: str, device: torch.device) -> Ways:
    if way == EVAL:
        assert config.eval_tokens_per_s is not None
        ms = 1e3 * config.B * config.T / config.eval_tokens_per_s
        return Ways({"auto": reading(config, device)}, given_ms={ORIGINAL: ms})
    told = originals_ms.get(config.name)
    ways = Ways(
        {"auto": training(config, device)},
        given_ms={ORIGINAL: config.train_ms},
        measured_ms={} if told is None else {MEASURED: told},
        unlike=frozenset({X}),
    )
    if config.name == "TXL char" and device.type == "cpu":
        try:
            ways.peers[X] = peers.x_transformers_step(config.B, config.T, 128, config.vocab, 0.25)
        except peers.Missing as why:
            ways.missing[X] = str(why)
    return ways


def case(group: str, config: Configuration, way: str) -> Case:
    target = {} if config.target is None else {ORIGINAL: config.target, MEASURED: config.target}
    return Case(
        group=group,
        name=config.name,
        size=f"B{config.B} T{config.T} C{config.vocab}",
        way=way,
        make=partial(make, config, way),
        targets=target if way == TRAIN else {},
    )


def cases() -> list[Case]:
    """Training steps that a target is set for."""
    result = [case("models", config, TRAIN) for config in CONFIGURATIONS if config.target]
    asked = Case(
        group="models",
        name=ENWIK8.name,
        size=f"B{ENWIK8.B} T{ENWIK8.T}",
        way=TRAIN,
        dtype="bfloat16",
        make=partial(in_half, ENWIK8),
        targets={f"{ENWIK8.train_ms:g} ms asked for": 1.0},
        cuda=True,
    )
    return [*result, asked]


def more_cases() -> list[Case]:
    """All other steps, and reading."""
    return [
        case("more_models", config, way)
        for config in CONFIGURATIONS
        for way in (TRAIN, EVAL)
        if way == EVAL or config.target is None
    ]
