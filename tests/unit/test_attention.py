"""Attention: who sees whom, and what evaluation changes without touching the model."""

import pytest
import torch

from workbench.config import load
from workbench.inspect import capture
from workbench.models.mixers.attention import AttentionConfig
from workbench.models.mixers.base import Limits

XL = {"kind": "attention", "n_heads": 2, "d_head": 4, "memory_len": 8}
D_MODEL = 6


def attention(**fields):
    torch.manual_seed(0)
    mixer = load(AttentionConfig, {**XL, **fields}, "mixer").build(D_MODEL).double().eval()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    return mixer


def inputs(length, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, length, D_MODEL, generator=generator, dtype=torch.float64)


def visible(mixer, pieces, limits):
    """How many keys each query of the text sees, piece by piece."""
    state, counts = mixer.initial_state(2, limits), []
    for x in inputs(sum(pieces)).split(pieces, dim=1):
        with capture(mixer, "attention_probs") as taps:
            _, state = mixer(x, state)
        counts += (taps["attention_probs"][0][0, 0] > 0).sum(-1).tolist()
    return counts


@pytest.mark.parametrize(
    ("same_length", "start", "counts"),
    [
        # arXiv:1901.02860's PyTorch code: memory_len keys at most, the own one counted
        ("including_self", "empty", [1, 2, 3, 4, 5, 6, 7, 8] + 8 * [8]),
        # its TensorFlow code: one key more, and a memory of zeros that is attended
        ("beyond_self", "zeros", 16 * [9]),
        ("off", "empty", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 9, 10, 11, 12]),
    ],
)
def test_how_many_keys_a_query_sees(same_length, start, counts):
    mixer = attention(memory_start=start)
    limits = Limits(same_length=same_length)
    assert visible(mixer, [4, 4, 4, 4], limits) == counts
    configured = attention(memory_start=start, same_length=same_length)
    assert visible(configured, [4, 4, 4, 4], Limits()) == counts


def test_equal_lengths_without_memory_leave_every_query_its_own_key():
    limits = Limits(memory_len=0, same_length="including_self")
    assert visible(attention(), [3, 2], limits) == [1, 1, 1, 1, 1]


def test_evaluation_clamps_distances_as_a_model_configured_so():
    x, positions = inputs(7), {"kind": "relative_sinusoid", "clamp_len": 3}
    plain, clamped = attention(), attention(positions=positions)
    expected, _ = clamped(x, clamped.initial_state(2))
    got, state = plain(x, plain.initial_state(2, Limits(clamp_len=3)))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert state.clamp_len == 3, "the next segment keeps to it"
    unclamped, _ = clamped(x, clamped.initial_state(2, Limits(clamp_len=0)))
    torch.testing.assert_close(unclamped, plain(x, plain.initial_state(2))[0], rtol=0, atol=0)
    assert not torch.equal(unclamped, expected)


@pytest.mark.parametrize(("rule", "kept"), [("intended", [3, 6]), ("swapped", [5, 6])])
def test_repeated_tokens_are_not_kept(rule, kept):
    """Segments of 5 tokens, of which the next repeats 2: nothing is seen twice, nor missed."""
    mixer, text = attention(ext_memory=rule, memory_len=6), inputs(13)
    state, outputs, lengths = mixer.initial_state(2, Limits(ext_len=2)), [], []
    for start in (0, 5):
        begin = max(0, start - 2)
        y, state = mixer(text[:, begin : start + 5], state)
        outputs.append(y[:, start - begin :])
        lengths.append(state.hidden_BMD.shape[1])
    assert lengths == kept
    plain = mixer.initial_state(2)
    expected, plain = mixer(text[:, :5], plain)
    second, plain = mixer(text[:, 5:10], plain)
    torch.testing.assert_close(outputs[0], expected, rtol=0, atol=1e-12)
    same = torch.allclose(outputs[1], second, rtol=0, atol=1e-12)
    assert same == (rule == "intended"), "swapped, the memory holds what is read again"


def test_queries_without_norm_are_the_originals_quirk():
    """A block's norm is for keys and values; queries are made of what comes in."""
    quirk, plain = attention(normed_queries=False), attention()
    x, half = inputs(5), 0.5
    y, _ = quirk(x, quirk.initial_state(2), lambda x: half * x)
    with torch.no_grad():
        # halved inputs through a doubled matrix are queries of whole inputs
        plain.query.weight *= 2
    expected, _ = plain(half * x, plain.initial_state(2))
    torch.testing.assert_close(y, expected)
    assert not torch.allclose(quirk(half * x, quirk.initial_state(2))[0], expected)


@pytest.mark.parametrize("trims", ["trim_keys", "trim_memory"])
def test_keys_beyond_all_spans_take_no_part_in_the_softmax(trims):
    """Nor its sum: far keys with huge logits would leave nothing for the near ones to share."""
    limit, near = 70, 6
    span = {"limit": limit, "ramp": 3, "initial": 0.03, trims: True}
    codes = {"kind": "relative_learned", "max_distance": limit}
    zeros = {"memory_len": limit, "memory_start": "zeros", "attend_self": False}
    mixer = attention(**zeros, positions=codes, span=span)
    with torch.no_grad():
        mixer.span.share_H.fill_(0.03)  # 2.1 tokens: 3 and the ramp are seen, 64 are trimmed
    text = inputs(90)
    state = mixer.initial_state(2)
    _, state = mixer(text[:, :80], state)
    assert state.hidden_BMD.shape[1] == limit
    before, _ = mixer(text[:, 80:], state)
    with torch.no_grad():
        mixer.positions.key_KL[:, : limit - near] *= 1e4
    after, _ = mixer(text[:, 80:], state)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
