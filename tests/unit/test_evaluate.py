"""Exactness of evaluation: equal to scoring token by token, however the text is cut."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.config import load
from workbench.errors import ConfigError, DataError
from workbench.models.language_model import LanguageModel, ModelConfig
from workbench.models.mixers.base import Limits
from workbench.train.config import EvalConfig
from workbench.train.cutting import plan_rows
from workbench.train.evaluate import evaluate

VOCAB = 11

XL = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 5}
SPAN = {
    "kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 6, "attend_self": False,
    "memory_start": "zeros", "positions": {"kind": "relative_learned", "max_distance": 6},
    "span": {"limit": 6, "ramp": 3, "initial": 0.4},
}  # fmt: skip
FAST = {"kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "delta"}
SUM = {"kind": "fast_weight", "n_heads": 2, "d_head": 4, "rule": "sum", "read_norm": "output"}
STACKS = {
    "xl": [XL, XL],
    "xl-same-length": [{**XL, "same_length": "beyond_self"}, XL],
    "span": [SPAN, SPAN],
    "fast": [FAST, SUM],
    "mixed": [XL, FAST],
}
CACHE = {"window": 5, "theta": 0.7, "lam": 0.2}
BOUNDED = ["xl", "xl-same-length", "span"]


def build(stack: str, residual: str = "pre_norm", positions: str = "none") -> LanguageModel:
    data = {
        "d_model": 8,
        "positions": {"kind": positions},
        "stack": [{"block": {"mixer": mixer, "residual": residual}} for mixer in STACKS[stack]],
        "p_embedding": 0.3,
    }
    torch.manual_seed(5)
    model = load(ModelConfig, data).build(VOCAB).double()
    for p in model.parameters():
        # larger weights than at birth, so that a wrong context shows in every digit
        p.data.add_(torch.randn_like(p) * 0.3)
    for block in model.layers:
        block.mixer.after_step()
    return model


def text(n: int) -> Tensor:
    return torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(n)).to(torch.uint8)


@torch.no_grad()
def one_by_one_windows(model: LanguageModel, tokens: Tensor, context_len: int) -> Tensor:
    """A forward pass of its own for each token."""
    model.eval()
    nll = []
    for t in range(1, len(tokens)):
        seen = tokens[max(0, t - context_len) : t].long()[None]
        logp, _ = model.log_probs(seen, model.initial_carry(1, Limits(same_length="off")))
        nll.append(-logp[0, -1, int(tokens[t])])
    return torch.stack(nll)


@torch.no_grad()
def one_by_one_carried(model: LanguageModel, tokens: Tensor, context_len: int) -> Tensor:
    """Segments of a single token, one state from the first to the last."""
    model.eval()
    carry = model.initial_carry(1, Limits(memory_len=context_len, same_length="beyond_self"))
    nll = []
    for t in range(1, len(tokens)):
        logp, carry = model.log_probs(tokens[t - 1].long().view(1, 1), carry)
        nll.append(-logp[0, 0, int(tokens[t])])
    return torch.stack(nll)


@torch.no_grad()
def from_definition(model: LanguageModel, tokens: Tensor, context_len: int) -> Tensor:
    """`carried` for attention without any state: the whole text at once, a banded mask."""
    model.eval()
    carry = model.initial_carry(1, Limits(memory_len=context_len, same_length="beyond_self"))
    logp, _ = model.log_probs(tokens[None, :-1].long(), carry)
    return -logp[0].gather(1, tokens[1:, None].long())[:, 0]


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("n", [2, 3, 6, 7, 8, 41])
def test_windows_equal_one_pass_per_token(stack: str, n: int) -> None:
    model, tokens = build(stack), text(n)
    expected = one_by_one_windows(model, tokens, 6)
    for batch_size in (1, 4, 100):
        config = EvalConfig(method="windows", context_len=6, batch_size=batch_size)
        got = evaluate(model, tokens, config)
        assert got.tokens == n - 1
        torch.testing.assert_close(got.nll_nats, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("n", [2, 3, 9, 43])
def test_carried_equals_single_token_segments(stack: str, n: int) -> None:
    model, tokens = build(stack), text(n)
    expected = one_by_one_carried(model, tokens, 4)
    for batch_size, segment_len in itertools.product((1, 2, 3, 7, 50), (1, 3, 64)):
        config = EvalConfig(context_len=4, batch_size=batch_size, segment_len=segment_len)
        got = evaluate(model, tokens, config)
        torch.testing.assert_close(got.nll_nats, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stack", BOUNDED)
@pytest.mark.parametrize("context_len", [3, 6])
def test_carried_equals_the_whole_text_under_a_band(stack: str, context_len: int) -> None:
    model, tokens = build(stack), text(50)
    config = EvalConfig(context_len=context_len, batch_size=3, segment_len=8)
    expected = from_definition(model, tokens, context_len)
    got = evaluate(model, tokens, config).nll_nats
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_rows_side_by_side_are_really_used() -> None:
    tokens = text(200)
    config = EvalConfig(context_len=4, batch_size=6, segment_len=16)
    assert evaluate(build("xl"), tokens, config).rows == 6
    assert evaluate(build("fast"), tokens, config).rows == 1
    assert evaluate(build("mixed"), tokens, config).rows == 1


def test_rows_are_exact_only_with_the_full_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would notice a warm-up one token too short."""
    model, tokens = build("xl"), text(80)
    config = EvalConfig(context_len=4, batch_size=4)
    right = evaluate(model, tokens, config).nll_nats
    monkeypatch.setattr(model, "reach", lambda memory_len=None: 4 * 2 - 1)
    wrong = evaluate(model, tokens, config).nll_nats
    assert (right - wrong).abs().max() > 1e-8


def test_float32_stays_within_noise_of_float64() -> None:
    for stack in STACKS:
        model, tokens = build(stack), text(60)
        configs = [
            EvalConfig(method=method, context_len=5, batch_size=b)
            for method in ("carried", "windows")
            for b in (1, 5)
        ]
        exact = [evaluate(model, tokens, c).nll_nats for c in configs]
        model.float()
        for config, expected in zip(configs, exact, strict=True):
            got = evaluate(model, tokens, config).nll_nats
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("n_inputs", range(1, 40))
def test_plan_scores_every_position_once(n_inputs: int) -> None:
    for batch_size, reach in itertools.product((1, 2, 3, 8, 64), (0, 1, 2, 5, 39, 100, None)):
        rows, stride, warm_up = plan_rows(n_inputs, batch_size, reach)
        scored = list(range(stride + warm_up))
        for row in range(1, rows):
            assert row * stride < n_inputs
            scored += range(row * stride + warm_up, row * stride + warm_up + stride)
        assert scored[:n_inputs] == list(range(n_inputs))
        assert rows == 1 or warm_up == reach
        assert rows <= batch_size


def test_it_leaves_the_model_as_it_was() -> None:
    model = build("xl")
    for mode in (True, False):
        model.train(mode)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        torch.manual_seed(1)
        evaluate(model, text(20), EvalConfig(context_len=4))
        assert model.training is mode
        torch.testing.assert_close(torch.rand(1), torch.rand(1, generator=seeded(1)))
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_mode_is_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("xl").train()

    def fails(*args: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "nll", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(model, text(20), EvalConfig(context_len=4))
    assert model.training


@pytest.mark.parametrize("method", ["carried", "windows"])
def test_progress_rises_to_the_end(method: str) -> None:
    seen: list[tuple[int, int]] = []
    config = EvalConfig(method=method, context_len=4, batch_size=3, segment_len=5)
    evaluate(build("xl"), text(44), config, progress=lambda *x: seen.append(x))
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == (43, 43)


def test_only_the_first_tokens_when_asked() -> None:
    model, tokens = build("xl"), text(44)
    all_of = evaluate(model, tokens, EvalConfig(context_len=4)).nll_nats
    some = evaluate(model, tokens, EvalConfig(context_len=4, max_tokens=11))
    torch.testing.assert_close(some.nll_nats, all_of[:10], rtol=0, atol=1e-10)
    assert some.mean_nats == pytest.approx(float(all_of[:10].mean()))


@pytest.mark.parametrize("stack", ["xl", "mixed"])
def test_without_a_context_attention_uses_its_own_memory(stack: str) -> None:
    model, tokens = build(stack), text(44)
    (own,) = {mixer["memory_len"] for mixer in STACKS[stack] if "memory_len" in mixer}
    result = evaluate(model, tokens, EvalConfig(batch_size=3, segment_len=7))
    said = evaluate(model, tokens, EvalConfig(context_len=own))
    assert result.context_len is None
    torch.testing.assert_close(result.nll_nats, said.nll_nats, rtol=0, atol=1e-10)
    other = evaluate(model, tokens, EvalConfig(context_len=own - 1)).nll_nats
    assert (other - said.nll_nats).abs().max() > 1e-6


def test_refusals() -> None:
    model, config = build("xl"), EvalConfig(context_len=4)
    for n in (0, 1):
        with pytest.raises(DataError, match="at least 2 tokens"):
            evaluate(model, text(n), config)
    with pytest.raises(DataError, match="knows 11 symbols"):
        evaluate(model, torch.tensor([1, 11]), config)
    with pytest.raises(ConfigError, match=r"positions are sinusoid.*eval.method: windows"):
        evaluate(build("fast", positions="sinusoid"), text(9), config)


def test_windows_serve_models_with_absolute_positions() -> None:
    model, tokens = build("fast", positions="sinusoid"), text(20)
    got = evaluate(model, tokens, EvalConfig(method="windows", context_len=5, batch_size=4))
    expected = one_by_one_windows(model, tokens, 5)
    torch.testing.assert_close(got.nll_nats, expected, rtol=0, atol=1e-10)


# ---- streams -------------------------------------------------------------------------------------


@torch.no_grad()
def naive_streams(
    model: LanguageModel, tokens: Tensor, B: int, T: int, limits: Limits, fresh: bool = False
) -> list[list[Tensor]]:
    """Each stream on its own, a list of the nats of each of its segments."""
    model.eval()
    n = len(tokens) // B
    table = []
    for b in range(B):
        stream, carry, parts = tokens[b * n : (b + 1) * n].long(), None, []
        for start in range(0, n - 1, T):
            ids = stream[max(0, start - limits.ext_len) : min(start + T, n - 1) + 1][None]
            if carry is None or fresh:
                # a fresh state meets no token twice
                carry = model.initial_carry(1, limits._replace(ext_len=0) if fresh else limits)
            logp, carry = model.log_probs(ids[:, :-1], carry)
            nats = -logp[0].gather(1, ids[0, 1:, None])[:, 0]
            parts.append(nats[min(start, limits.ext_len) :])
        table.append(parts)
    return table


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("fresh", [False, True])
def test_streams_equal_each_stream_on_its_own(stack: str, fresh: bool) -> None:
    model, tokens, (B, T) = build(stack), text(101), (3, 7)
    config = EvalConfig(
        method="streams", batch_size=B, segment_len=T, carry="reset" if fresh else "keep"
    )
    table = naive_streams(model, tokens, B, T, Limits(), fresh)
    expected = torch.cat([torch.cat(parts) for parts in table])
    got = evaluate(model, tokens, config)
    assert got.tokens == B * (101 // B - 1) and got.rows == B
    torch.testing.assert_close(got.nll_nats, expected, rtol=0, atol=1e-10)
    assert got.mean_nats == pytest.approx(float(expected.mean()), abs=1e-12)
    # every token of a stream but its first
    n = 101 // B
    assert got.positions.tolist() == [b * n + t for b in range(B) for t in range(1, n)]


def test_streams_are_averaged_as_the_originals_do() -> None:
    model, tokens, (B, T) = build("xl"), text(101), (2, 9)
    parts = naive_streams(model, tokens, B, T, Limits())
    # means of whole blocks over all streams, the shorter last one (here 4 tokens) dropped
    blocks = [torch.stack([p[i] for p in parts]).mean() for i in range(49 // T)]
    expected = {
        "of_blocks": torch.stack(blocks).mean(),
        "over_tokens": torch.cat([torch.cat(p) for p in parts]).sum() / (B * 50),
    }
    for average, value in expected.items():
        config = EvalConfig(method="streams", batch_size=B, segment_len=T, average=average)
        got = evaluate(model, tokens, config)
        assert got.mean_nats == pytest.approx(float(value), abs=1e-12)
        assert len(got.positions) == got.tokens == len(got.nll_nats)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(3),
        Limits(0),
        Limits(4, "including_self"),
        Limits(4, "beyond_self", 2),
        Limits(2, ext_len=3),
    ],
)
def test_streams_use_the_limits_asked_for(limits: Limits) -> None:
    model, tokens = build("xl"), text(60)
    fields = {
        name: getattr(limits, name) for name in limits._fields if name in EvalConfig.model_fields
    }
    config = EvalConfig(method="streams", batch_size=2, segment_len=5, **fields)
    expected = torch.cat([torch.cat(p) for p in naive_streams(model, tokens, 2, 5, limits)])
    got = evaluate(model, tokens, config).nll_nats
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    own = evaluate(model, tokens, EvalConfig(method="streams", batch_size=2, segment_len=5))
    assert (own.nll_nats - expected).abs().max() > 1e-6, "the limits must matter here"


def test_streams_serve_models_with_absolute_positions() -> None:
    model, tokens = build("fast", positions="sinusoid"), text(40)
    sizes = {"batch_size": 1, "segment_len": 6, "carry": "reset"}
    for ext_len in (0, 4):
        config = EvalConfig(method="streams", ext_len=ext_len, **sizes)
        got = evaluate(model, tokens, config).nll_nats
        limits = Limits(ext_len=ext_len)
        expected = torch.cat(naive_streams(model, tokens, 1, 6, limits, fresh=True)[0])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_windows_in_streams_and_without_the_first() -> None:
    model, tokens = build("fast"), text(41)
    whole = [one_by_one_windows(model, tokens[b * 20 : b * 20 + 20], 6) for b in range(2)]
    config = EvalConfig(method="windows", context_len=6, batch_size=4, n_streams=2)
    got = evaluate(model, tokens, config)
    torch.testing.assert_close(got.nll_nats, torch.cat(whole), rtol=0, atol=1e-10)
    last = evaluate(model, tokens, config.model_copy(update={"skip_first": True}))
    expected = torch.cat([w[5:] for w in whole])
    torch.testing.assert_close(last.nll_nats, expected, rtol=0, atol=1e-10)
    assert last.positions.tolist() == [*range(6, 20), *range(26, 40)]


def test_settings_say_what_changes_the_result() -> None:
    assert EvalConfig(batch_size=3).describe() == "carried"
    windows = EvalConfig(method="windows", context_len=5, skip_first=True)
    assert windows.describe() == "windows, context_len 5, skip_first True"
    streams = EvalConfig(method="streams", batch_size=10, segment_len=80, memory_len=0)
    assert streams.describe() == "streams, batch_size 10, segment_len 80, memory_len 0"


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_len": 3},
        {"method": "streams", "context_len": 3},
        {"carry": "reset"},
        {"average": "of_blocks"},
        {"skip_first": True},
        {"method": "windows", "context_len": 3, "cache": CACHE},
    ],
)
def test_a_setting_without_effect_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="says nothing under method"):
        load(EvalConfig, wrong)


def test_streams_need_text_for_each() -> None:
    config = EvalConfig(method="streams", batch_size=6, segment_len=5)
    with pytest.raises(DataError, match="11 tokens for 6 streams, expected at least 12"):
        evaluate(build("xl"), text(11), config)
    config = EvalConfig(method="streams", batch_size=2, segment_len=5, average="of_blocks")
    with pytest.raises(DataError, match="at least 12"):
        evaluate(build("xl"), text(11), config)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "carried"},
        {"method": "windows", "context_len": 4},
        {"method": "streams", "memory_len": 6},
    ],
)
def test_any_type_in_which_tokens_are_stored_gives_the_same(fields: dict[str, Any]) -> None:
    model, config = build("xl"), EvalConfig(segment_len=5, **fields)
    expected = evaluate(model, text(44), config).nll_nats
    for dtype in (torch.int16, torch.uint16, torch.int32, torch.int64):
        assert torch.equal(evaluate(model, text(44).to(dtype), config).nll_nats, expected)
