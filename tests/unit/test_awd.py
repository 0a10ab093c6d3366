"""What AWD-LSTM and QRNN add to a model: dropout over segments, penalties, widths, pooling."""

import itertools
import math

import pytest
import torch

from workbench.config import load
from workbench.errors import ConfigError, UnknownOriginal
from workbench.models.dropout import DroppedSymbols, Locked
from workbench.models.language_model import ModelConfig, OutputPenalties, build_model
from workbench.models.mixers.qrnn import QRNNConfig
from workbench.originals import awd_lstm

CTOR = {"rnn_type": "LSTM", "ntoken": 11, "ninp": 6, "nhid": 8, "nlayers": 3, "tie_weights": True}


def test_a_locked_mask_is_the_same_at_every_token() -> None:
    torch.manual_seed(0)
    drop, ones = Locked(0.4), torch.ones(64, 7, 50)
    y_BTD = drop(ones)
    assert torch.equal(y_BTD, y_BTD[:, :1].expand_as(y_BTD))
    assert set(y_BTD.unique().tolist()) == {0.0, y_BTD.max().item()}
    assert y_BTD.max().item() == pytest.approx(1 / 0.6)
    assert (y_BTD == 0).float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert not torch.equal(y_BTD[0], y_BTD[1])  # rows differ
    assert not torch.equal(drop(ones), y_BTD)  # and segments
    assert drop.eval()(ones) is ones and Locked(0.0)(ones) is ones


def test_dropped_symbols_are_gone_wherever_they_stand() -> None:
    torch.manual_seed(0)
    drop, tokens_BT = DroppedSymbols(0.3, 40), torch.randint(40, (8, 100))
    y_BTD = drop(torch.ones(8, 100, 3), tokens_BT)
    gone = {int(t) for t in tokens_BT[y_BTD[..., 0] == 0]}
    kept = {int(t) for t in tokens_BT[y_BTD[..., 0] != 0]}
    assert gone and kept and not gone & kept
    assert len(gone) / 40 == pytest.approx(0.3, abs=0.15)
    assert y_BTD.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    x_BTD = torch.ones(8, 100, 3)
    assert drop.eval()(x_BTD, tokens_BT) is x_BTD


def test_weight_drop_works_on_matrices_and_in_training_alone() -> None:
    torch.manual_seed(0)
    mixer = QRNNConfig(d_hidden=30, window=2, p_weight=0.4).build(20)
    weight = mixer.gates.weight
    dropped = mixer.drop_weight(weight)
    zeros = dropped == 0
    assert zeros.float().mean().item() == pytest.approx(0.4, abs=0.04)
    torch.testing.assert_close(dropped[~zeros], weight[~zeros] / 0.6)
    assert torch.equal(mixer.eval().drop_weight(weight), weight)


def naive_qrnn(mixer, x_TD, window, p_zoneout=0.0):
    """Gate by gate and unit by unit, in Python's float64; one row from an empty past."""
    weight, bias = mixer.gates.weight.tolist(), mixer.gates.bias.tolist()
    T, U = len(x_TD), mixer.d_out
    cells, outputs = [0.0] * U, []
    for t in range(T):
        seen = [
            v
            for back in range(window)
            for v in (x_TD[t - back] if t >= back else [0.0] * len(x_TD[0]))
        ]
        gates = [
            sum(w * v for w, v in zip(row, seen, strict=True)) + b
            for row, b in zip(weight, bias, strict=True)
        ]
        sigmoid = [1 / (1 + math.exp(-g)) for g in gates]
        for u in range(U):
            f = sigmoid[U + u] * (1 - p_zoneout)
            cells[u] = f * math.tanh(gates[u]) + (1 - f) * cells[u]
        gate = sigmoid[2 * U :] or [1.0] * U
        outputs.append([o * c for o, c in zip(gate, cells, strict=True)])
    return torch.tensor(outputs, dtype=torch.float64), torch.tensor(cells, dtype=torch.float64)


@pytest.mark.parametrize(
    ("window", "output_gate", "p_zoneout"), [(1, True, 0.0), (2, True, 0.3), (3, False, 0.0)]
)
def test_qrnn_is_its_equations(window: int, output_gate: bool, p_zoneout: float) -> None:
    torch.manual_seed(1)
    config = QRNNConfig(d_hidden=4, window=window, output_gate=output_gate, p_zoneout=p_zoneout)
    mixer = config.build(3).double().eval()
    x_BTD = torch.randn(2, 7, 3, dtype=torch.float64)
    y_BTU, state = mixer(x_BTD, mixer.initial_state(2))
    for b in range(2):
        want_TU, cells_U = naive_qrnn(mixer, x_BTD[b].tolist(), window, p_zoneout)
        torch.testing.assert_close(y_BTU[b].detach(), want_TU, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(state.c_BU[b].detach(), cells_U, rtol=1e-12, atol=1e-12)
    assert torch.equal(state.inputs_BPD, x_BTD[:, 7 - (window - 1) :])


def test_zoneout_keeps_old_values_in_training() -> None:
    torch.manual_seed(0)
    mixer = QRNNConfig(d_hidden=200, p_zoneout=0.3).build(3)
    mask_BTU, share = mixer.zoneout(torch.empty(1, 50, 600))
    assert mask_BTU.shape == (1, 50, 200) and share == 1
    assert mask_BTU.unique().tolist() == [0, 1]
    assert mask_BTU.mean().item() == pytest.approx(0.7, abs=0.02)
    assert mixer.eval().zoneout(torch.empty(1, 50, 600)) == (None, 0.7)
    state = mixer.initial_state(1)
    _, (_, c_BU) = mixer.train()(torch.randn(1, 1, 3), state)
    assert (c_BU == state.c_BU).float().mean().item() == pytest.approx(0.3, abs=0.1)


def test_penalties_of_the_output() -> None:
    raw_BTD = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [3.0, 2.0]]])
    dropped_BTD = torch.tensor([[[2.0, 0.0], [6.0, 0.0], [0.0, 0.0]]])
    terms = OutputPenalties(activation=2.0, temporal=10.0).of(raw_BTD, dropped_BTD)
    assert terms["activation"].item() == pytest.approx(2 * 40 / 6)
    assert terms["temporal"].item() == pytest.approx(10 * 8 / 4)
    assert OutputPenalties().of(raw_BTD, dropped_BTD) == {}
    alone = OutputPenalties(temporal=1.0).of(raw_BTD[:, :1], dropped_BTD[:, :1])
    assert alone["temporal"].item() == 0.0  # one token, no change


def awd(ctor=CTOR, **changes):
    config = load(ModelConfig, {**awd_lstm.model_config(ctor), **changes}, "model")
    return build_model(config, ctor["ntoken"], seed=0)


def test_layers_have_the_widths_of_the_original_and_its_initialisation() -> None:
    model = awd()
    assert [b.mixer.weight_hh.shape[1] for b in model.layers] == [8, 8, 6]
    assert [b.mixer.weight_ih.shape[1] for b in model.layers] == [6, 8, 8]
    table = model.get_parameter("vocabulary.embedding.weight")
    assert model.get_parameter("vocabulary.output.weight") is table
    assert 0.05 < table.abs().max().item() <= 0.1
    assert not model.get_parameter("vocabulary.output.bias").any()
    untied = awd({**CTOR, "tie_weights": False})
    assert untied.get_parameter("vocabulary.output.weight").shape == (11, 8)
    assert [b.mixer.weight_hh.shape[1] for b in untied.layers] == [8, 8, 8]
    with pytest.raises(ConfigError, match="ends in width 5, but the vocabulary reads 6"):
        config = awd_lstm.model_config(CTOR)
        config["stack"][-1]["block"]["mixer"]["d_hidden"] = 5
        load(ModelConfig, config, "model").build(11)


def test_rates_go_where_the_original_has_them() -> None:
    rates = {"dropout": 0.1, "dropouth": 0.2, "dropouti": 0.3, "dropoute": 0.4, "wdrop": 0.5}
    for kind, window in (("LSTM", None), ("GRU", None), ("QRNN", [2, 1, 1])):
        model = awd({**CTOR, **rates, "rnn_type": kind})
        assert [b.drop.p for b in model.layers] == [0.2, 0.2, 0.0]
        assert all(isinstance(b.drop, Locked) for b in model.layers)
        assert isinstance(model.drop_output, Locked) and model.drop_output.p == 0.1
        assert isinstance(model.drop_embedding, Locked) and model.drop_embedding.p == 0.3
        assert model.drop_symbols.p == 0.4
        assert {b.mixer.config.p_weight for b in model.layers} == {0.5}
        if window:
            assert [b.mixer.config.window for b in model.layers] == window


def test_losses_are_nll_and_penalties_of_the_same_forward_pass() -> None:
    ctor = {**CTOR, "dropout": 0.5, "dropouti": 0.3, "dropoute": 0.2, "wdrop": 0.3}
    model = awd(ctor, output_penalties={"activation": 2.0, "temporal": 1.0}).train()
    tokens_BT, carry = torch.randint(11, (2, 9)), model.initial_carry(2)
    torch.manual_seed(5)
    nll_BT, penalties, _ = model.losses(tokens_BT[:, :-1], tokens_BT[:, 1:], carry)
    torch.manual_seed(5)
    hidden_BTD, _ = model(tokens_BT[:, :-1], carry)
    assert torch.equal(nll_BT, model.vocabulary.nll(hidden_BTD, tokens_BT[:, 1:]))
    assert penalties["activation"].item() == pytest.approx(2 * hidden_BTD.square().mean().item())
    assert penalties.keys() == {"activation", "temporal"}


def test_the_last_row_is_skipped_on_request_alone() -> None:
    tokens_BT = torch.tensor([[10, 3, 10, 4]])
    for skip in (False, True):
        model = awd({**CTOR, "tie_weights": False}, skip_last_row=skip)
        nll_BT, _ = model.nll(tokens_BT[:, :-1], tokens_BT[:, 1:], model.initial_carry(1))
        nll_BT.sum().backward()
        grad = model.get_parameter("vocabulary.embedding.weight").grad
        assert grad[3].any() and bool(grad[10].any()) is not skip


@pytest.mark.parametrize(
    "change", [{"rnn_type": "RNN_TANH"}, {"peepholes": True}, {"ntoken": None}], ids=str
)
def test_other_models_are_refused_by_name(change: dict) -> None:
    ctor = {k: v for k, v in {**CTOR, **change}.items() if v is not None}
    for function in (awd_lstm.model_config, awd_lstm.links):
        with pytest.raises(UnknownOriginal, match=next(iter(change))):
            function(ctor)


def test_splits_are_taken_as_given_or_as_the_criterion_keeps_them() -> None:
    for splits in ((3, 7), [0, 3, 7, 100000000]):
        config = awd_lstm.model_config({**CTOR, "splits": splits})
        assert config["vocabulary"]["splits"] == (3, 7)
        assert {link.theirs[0] for link in awd_lstm.links({**CTOR, "splits": splits})} >= {
            "criterion/tail_vectors",
            "criterion/tail_bias",
        }
    assert (
        awd_lstm.model_config({**CTOR, "splits": [0, 100000000]})["vocabulary"]["kind"] == "plain"
    )


@pytest.mark.parametrize("kind", awd_lstm.CELLS)
def test_every_parameter_is_linked_once_and_trained(kind: str) -> None:
    options = itertools.product((1, 3), (True, False), ((), (4,), (3, 7)), (0.0, 0.5))
    for n_layers, tied, splits, wdrop in options:
        ctor = {**CTOR, "rnn_type": kind, "nlayers": n_layers, "tie_weights": tied}
        ctor |= {"splits": splits, "wdrop": wdrop}
        model = awd(ctor)
        linked = [name for link in awd_lstm.links(ctor) for name in link.ours]
        assert sorted(linked) == sorted(name for name, _ in model.named_parameters())
        theirs = {name for link in awd_lstm.links(ctor) for name in link.theirs}
        assert any("_raw" in name for name in theirs) == (kind == "QRNN" or wdrop > 0)
        tokens_BT = torch.arange(11)[None].repeat(2, 2)
        nll_BT, _ = model.nll(tokens_BT[:, :-1], tokens_BT[:, 1:], model.initial_carry(2))
        nll_BT.sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in model.parameters())
